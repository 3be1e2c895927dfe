#!/usr/bin/env bash
# Builds the image, starts the relay and Prometheus with docker-compose.yml, and checks both from outside:
# two users exchange messages, the ledger has the right figures, the container is confined, a stop under load
# drains, and the load generator finds no fault. Needs Docker with compose, and Python with `websockets`.
# Leaves only the image behind.
#
#   tests/containers.sh
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\033[1m%s\033[0m\n' "$*"; }
fail() {
  printf 'containers: %s\n' "$*" >&2
  docker compose logs --tail 20 >&2 || true
  exit 1
}
is() { # is WHAT FOUND EXPECTED
  [[ $2 == "$3" ]] || fail "$1 is $2, expected $3"
  printf '  %s: %s\n' "$1" "$2"
}
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# Without a registry, a script beside the project makes images with these names.
if [[ -x ../shared/containers/base-images ]]; then
  ../shared/containers/base-images debian rust distroless prometheus
fi
docker info >/dev/null 2>&1 || { echo "containers: no Docker engine answers: docker info fails" >&2; exit 1; }

# A name of its own, so that other projects on this machine are not disturbed.
export COMPOSE_PROJECT_NAME=switchboard-test-$$
RELAY_PORT=$(free_port)
PROMETHEUS_PORT=$(free_port)
REVISION=$(git rev-parse HEAD)
export RELAY_PORT PROMETHEUS_PORT REVISION
relay=ws://127.0.0.1:$RELAY_PORT/

work=$(mktemp -d)
alone=$COMPOSE_PROJECT_NAME-alone
finish() {
  docker rm --force "$alone" >/dev/null 2>&1 || true
  docker compose down --volumes --remove-orphans --timeout 1 >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap finish EXIT

say "image"
docker compose build switchboard
image=$(docker compose config --images switchboard | grep '^switchboard:')
base=$(sed -n 's/^ARG RUNTIME_IMAGE=//p' Dockerfile)
size() { docker image inspect --format '{{.Size}}' "$1"; }
added=$(($(size "$image") - $(size "$base")))
printf '  size: %d KB on a base of %d KB\n' $((added / 1000)) $(($(size "$base") / 1000))
((added <= 16000000)) || fail "the image adds $added bytes to its base"
label() { docker image inspect --format "{{index .Config.Labels \"org.opencontainers.image.$1\"}}" "$image"; }
is "label version" "$(label version)" "$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)"
is "label revision" "$(label revision)" "$REVISION"

answer() { # answer QUERY: the number that Prometheus returns
  curl --silent --show-error --fail --get --data-urlencode "query=$1" \
    "http://127.0.0.1:$PROMETHEUS_PORT/api/v1/query" |
    python3 -c 'import json, sys; print(*(one["value"][1] for one in json.load(sys.stdin)["data"]["result"]))'
}
answers() { # answers QUERY NUMBER: waits for a scrape and an evaluation of the rules
  local found
  for _ in $(seq 300); do
    found=$(answer "$1")
    [[ $found == "$2" ]] && break
    sleep 0.1
  done
  is "$1" "$found" "$2"
}

say "prometheus without the relay"
docker compose up --wait prometheus
answers 'up{job="switchboard"}' 0

say "up"
docker compose up --wait switchboard prometheus
docker compose ps --format 'table {{.Service}}\t{{.Status}}\t{{.Ports}}' | tee "$work/ps"
lists() { grep -Eqx "$1" "$work/ps" || fail "docker compose ps shows no line $1"; }
lists "prometheus +Up .* \\(healthy\\) +127\.0\.0\.1:$PROMETHEUS_PORT->9090/tcp *"
# Docker lists the two ports in either order.
lists "switchboard +Up .* \\(healthy\\) +(9090/tcp, )?127\.0\.0\.1:$RELAY_PORT->8080/tcp(, 9090/tcp)? *"
container=$(docker compose ps -q switchboard)
state() { docker inspect --format "$1" "$container"; }
is "health" "$(state '{{.State.Health.Status}}')" healthy
docker compose exec -T switchboard /usr/local/bin/switchboard healthcheck || fail "the health check fails"
is "published" "$(docker compose ps --format '{{range .Publishers}}{{if .PublishedPort}}{{.TargetPort}} {{end}}{{end}}' switchboard)" "8080 "

say "confined"
pid=$(state '{{.State.Pid}}')
is "user" "$(awk '/^Uid:/ { print $2 }' /proc/"$pid"/status)" 65532
is "capabilities" "$(awk '/^Cap(Eff|Prm|Bnd):/ { print $2 }' /proc/"$pid"/status | sort -u)" 0000000000000000
is "no new privileges" "$(awk '/^NoNewPrivs:/ { print $2 }' /proc/"$pid"/status)" 1
is "root" "$(awk '$5 == "/" { split($6, options, ","); print options[1] }' /proc/"$pid"/mountinfo)" ro
is "open files" "$(awk '/^Max open files/ { print $5 }' /proc/"$pid"/limits)" 20000
is "memory" "$(state '{{.HostConfig.Memory}}')" $((768 << 20))
is "log" "$(state '{{.HostConfig.LogConfig.Type}} {{index .HostConfig.LogConfig.Config "max-size"}} {{index .HostConfig.LogConfig.Config "max-file"}}')" "json-file 10m 3"

say "talk"
python3 tests/compose_users.py talk "$relay" || fail "two users could not exchange messages"
answers 'up{job="switchboard"}' 1
answers switchboard_messages_received_total 3
answers switchboard_messages_delivered_total 2
answers 'switchboard_messages_dropped_total{reason="offline"}' 1
answers 'sum(switchboard_messages_dropped_total)' 1
answers switchboard_mailbox_messages 0
answers instance:switchboard_ledger:gap 0
answers 'sum(switchboard_connections_closed_total)' 2
answers "count(switchboard_build_info{revision=\"$REVISION\"})" 1

say "stop under load"
python3 tests/compose_users.py flow "$relay" "$work/flows" >"$work/flow" 2>&1 &
users=$!
for _ in $(seq 300); do
  [[ -e $work/flows ]] && break
  sleep 0.1
done
[[ -e $work/flows ]] || fail "the load did not start: $(cat "$work/flow")"
began=$SECONDS
docker compose stop switchboard
printf '  drained in %d s\n' $((SECONDS - began))
wait "$users" || fail "$(cat "$work/flow")"
printf '  %s\n' "$(cat "$work/flow")"
is "exit code" "$(state '{{.State.ExitCode}}')" 0
docker logs "$container" >"$work/log" 2>&1
# The relay flushes each delivered message before the close frame, so the users have heard all of them. Two
# more were delivered above.
heard=$(($(sed 's/.*heard \([0-9]*\).*/\1/' "$work/flow") + 2))
python3 - "$work/log" "$heard" <<'PYTHON' || fail "the totals in the last log line do not balance"
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
last = [line for line in lines if line["message"] == "drained"][-1]
ended = last["delivered"] + last["dropped"] + last["mailbox"] + last["cluster_sent"]
print(f"  drained: {last}")
assert last["received"] + last["cluster_received"] == ended and last["received"] > 1000, last
assert last["left"] == 0 and last["mailbox"] == 0, last
assert last["delivered"] == int(sys.argv[2]), f"delivered {last['delivered']}, heard {sys.argv[2]}"
PYTHON
say "load"
docker compose up --wait switchboard
docker compose run --rm load bench open-loop --url=ws://switchboard:8080/ --i-own-this-server \
  --metrics=http://switchboard:9090/metrics --pairs=10 --rate=500 --duration=2s || fail "the load generator found a fault"

say "the image by itself"
is "image" "$image" switchboard:0.1.0
port=$(free_port)
docker run --rm --read-only --cap-drop ALL --detach --name "$alone" -p 127.0.0.1:"$port":8080 "$image"
for _ in $(seq 100); do
  docker exec "$alone" /usr/local/bin/switchboard healthcheck >/dev/null 2>&1 && break
  sleep 0.1
done
python3 tests/compose_users.py talk "ws://127.0.0.1:$port/" || fail "two users could not exchange messages"
docker stop --signal INT "$alone" >/dev/null

say "containers: all checks passed"
