#!/usr/bin/env python3
"""Runs what the documents show, and compares what it prints with what they say.

    tests/python/snippets.py BINARY NODE_MODULES [NAME...]

Each fenced block of each document, and of a console block each command, is run here, or is named below
with the test that runs it, or with the reason why none does: a block that is neither fails. Addresses get
free ports, `…` stands for anything, and `switchboard` is BINARY. With names, only those
functions of RUNS run, and nothing is said of the blocks that are left."""

import asyncio
import atexit
import http.server
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import websockets

from relay import PATIENCE, Relay, free_port

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
END = "-- that was all --"
USERS, ADMIN = "127.0.0.1:8080", "127.0.0.1:9090"
BENCH, NODES, NATS, OTLP = "127.0.0.1:18080", ("127.0.0.1:8081", "127.0.0.1:8082"), "127.0.0.1:4222", "127.0.0.1:4318"
# A load of half a minute, on a machine that may be busy.
BENCH_PATIENCE = 300
# Of the load's silent users, on either side.
FILES = 10_500

# What another test runs: the file, and what has to stand in it.
ELSEWHERE = {
    "tests/run": (".ci/run", ["step tests/run\n"]),
    "cargo test --workspace": ("tests/run", ["\n  cargo test --locked --workspace\n"]),
    "tests/run model": ("tests/run", ["parts=(rust model ", "part_model() {"]),
    "SWITCHBOARD_OLD_BIN=target/old/target/debug/switchboard tests/run rolling": (
        "tests/run", [" rolling ", "local old=${SWITCHBOARD_OLD_BIN-}"],
    ),
    "tests/instructions": ("tests/run", [" instructions talk ", "\n  tests/instructions\n"]),
    "promtool test rules tests/prometheus/*.yml": ("tests/run", ["\n  promtool test rules tests/prometheus/*.yml\n"]),
    "cargo build && tests/panels": ("tests/run", [" panels ", '"$venv/bin/python" tests/panels "$SWITCHBOARD_BIN"\n']),
    "docker compose up --wait switchboard prometheus": (
        "tests/containers.sh", ["\ndocker compose up --wait switchboard prometheus\n"],
    ),
    r"docker compose ps --format 'table {{.Service}}\t{{.Status}}\t{{.Ports}}'": (
        "tests/containers.sh", [r"docker compose ps --format 'table {{.Service}}\t{{.Status}}\t{{.Ports}}'"],
    ),
    "docker compose --profile cluster up --wait nats node1 node2 node3 haproxy": (
        "tests/containers_cluster.sh", ["\ndocker compose --profile cluster up --wait nats node1 node2 node3 haproxy\n"],
    ),
    "apiVersion: kustomize.config.k8s.io/v1beta1": ("tests/k8s", ["def check_documented():", "\n    check_documented()\n"]),
    "docker run --rm --read-only --cap-drop ALL -p 127.0.0.1:8080:8080 switchboard:0.1.0": (
        "tests/containers.sh", ["docker run --rm --read-only --cap-drop ALL ", " -p 127.0.0.1:"],
    ),
    # With fewer rounds and shorter ones.
    "switchboard bench --compare-strategies --rounds 3 --svg .assets --report target/strategies.html": (
        "benches/load/tests/load.rs", ['"--compare-strategies", "--rounds=1"', '"--svg"', '"--report"'],
    ),
    # Without cargo-fuzz, by the same targets and corpora.
    "target/x86_64-unknown-linux-gnu/release/decode -runs=10000000 -max_len=512 corpus/decode": (
        "tests/it/fuzz.rs", ["use targets::TARGETS;", '"tests/fuzz/corpus"'],
    ),
}

MEASURES = "measures for minutes, on a machine with nothing else to do; "
BUILDS = "builds what a command below it runs; "
# What no test runs.
LEFT_OUT = {
    "fix(config): refuse an origin pattern below all names": "an example of a commit message",
    "You are user 1. /to 7 chooses user 7 as the recipient, /help lists the commands, Ctrl-D leaves.": (
        "on a terminal; cli_talk.rs makes the same conversation"
    ),
    "sequenceDiagram": "a picture; tests/cluster/messages.rs sends such a message",
    "join absent, or this user's all told, or dead": "a picture; the part `simulate` goes through these states",
    "cargo install --locked --path .": BUILDS + "tests/run has built it for this test, and cli_first.rs looks at the package",
    "cargo install --locked --path benches/load": BUILDS + "tests/run has built it for this test, and cli_first.rs looks at the package",
    "cargo build --release --bins --example cluster_figures": BUILDS + "cargo lint compiles it in .ci/run",
    "target/release/examples/cluster_figures $(command -v switchboard)": MEASURES + "cargo lint compiles it in .ci/run",
    "cargo build --release --bins --example attack_figures": BUILDS + "cargo lint compiles it in .ci/run",
    "target/release/examples/attack_figures $(command -v switchboard)": MEASURES + "cargo lint compiles it in .ci/run",
    "git worktree add target/old COMMIT": BUILDS + "and no commit is old enough in a shallow clone",
    "SWITCHBOARD_REVISION=COMMIT cargo build --manifest-path target/old/Cargo.toml --bin switchboard": BUILDS.removesuffix("; "),
    "python3 tests/tracing_cost.py $(command -v switchboard)": MEASURES.removesuffix("; "),
    "cargo bench --bench time": MEASURES + "cargo lint compiles it in .ci/run, and `instructions` counts the same steps",
    "cargo bench --bench directory": MEASURES + "cargo lint compiles it in .ci/run",
    "python3 tests/scale_cost.py $(command -v switchboard)": MEASURES.removesuffix("; "),
    "python3 tests/scrape_cost.py $(command -v switchboard)": MEASURES.removesuffix("; "),
    "tests/instructions --remake": "writes the file that the part `instructions` compares with",
    "cargo install cargo-fuzz": "takes longer than all of this; the next but one says what runs its targets",
    "cd tests/fuzz && cargo +nightly fuzz build --fuzz-dir . -s none": "needs a nightly compiler; tests/it/fuzz.rs compiles the same targets",
}


class Step:
    """A command of a console block with what the document says that it prints, or a block of another kind."""

    def __init__(self, section, kind, key, text):
        self.section, self.kind, self.key, self.text, self.ran = section, kind, key, text, False

    def __str__(self):
        return f"{self.section}: {self.key}"


class Documents:
    """All that they show. A section is named as in a link: `README.md#install`."""

    def __init__(self):
        self.steps, self.texts = [], {}
        for path in sorted(self.paths()):
            with open(os.path.join(ROOT, path), encoding="utf-8") as file:
                self.read(path, file.read())

    @staticmethod
    def paths():
        for folder, folders, files in os.walk(ROOT):
            # Built and installed files hold documents of other projects.
            folders[:] = set(folders) - {"target", "node_modules", ".cache", ".git"}
            yield from (os.path.relpath(os.path.join(folder, name), ROOT) for name in files if name.endswith(".md"))

    def read(self, path, text):
        fences = list(FENCE.finditer(text))
        if len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE)) != 2 * len(fences):
            sys.exit(f"{path} has a fence that is not understood here")
        for fence in fences:
            headings = re.findall(r"^## (.*)$", FENCE.sub("", text[: fence.start()]), re.MULTILINE)
            anchor = re.sub(r"[^\w -]", "", headings[-1]).lower().replace(" ", "-") if headings else ""
            section, kind, body = f"{path}#{anchor}", fence[1], fence[2]
            self.texts[section] = text
            commands = re.split(r"^\$ ", body, flags=re.MULTILINE)[1:] if kind == "console" else []
            for command, _, printed in (one.partition("\n") for one in commands):
                self.steps.append(Step(section, kind, re.sub(r"\s+# .*", "", command), printed))
            if not commands:
                self.steps.append(Step(section, kind, " ".join(body.partition("\n")[0].split()), body))

    def take(self, section, kind="console"):
        """The next one of a section that is to be run here, each once."""
        for step in self.steps:
            if (step.section, step.kind) == (section, kind) and not step.ran and step.key not in (*ELSEWHERE, *LEFT_OUT):
                step.ran = True
                yield step

    def take_one(self, section, kind="console"):
        found = next(self.take(section, kind), None)
        return found or sys.exit(f"{section} shows no more {kind}")

    def check_lists(self):
        """What is named above is there, and the tests have what is said of them."""
        keys = {step.key for step in self.steps}
        if stale := [key for key in (*ELSEWHERE, *LEFT_OUT) if key not in keys]:
            sys.exit(f"named in this test and in no document: {stale}")
        for key, (path, words) in ELSEWHERE.items():
            with open(os.path.join(ROOT, path), encoding="utf-8") as file:
                text = file.read()
            if missing := [word for word in words if word not in text]:
                sys.exit(f"{key} should be run by {path}, which has no {missing}")

    def check_all_ran(self):
        """Each was run here, or is named above."""
        # A command that two documents show runs once.
        ran = {step.key for step in self.steps if step.ran}
        left = [str(step) for step in self.steps if step.key not in (*ran, *ELSEWHERE, *LEFT_OUT)]
        if left:
            sys.exit("\n  ".join(["a document shows what no test runs; run it here, or name it with the reason:", *left]))
        print(f"run: {sum(step.ran for step in self.steps)}; by other tests: {len(ELSEWHERE)}; by none: {len(LEFT_OUT)}")


def matches(expected):
    return ".*".join(re.escape(part) for part in expected.rstrip("\n").split("…"))


def compare(what, expected, printed):
    if not re.fullmatch(matches(expected), printed.rstrip("\n"), re.DOTALL):
        sys.exit(f"{what}\n-- the document says\n{expected}\n-- and it printed\n{printed}")
    print(f"ok: {what}", flush=True)


def eventually(what, look):
    deadline = time.monotonic() + PATIENCE
    while not (seen := look()):
        if time.monotonic() > deadline:
            sys.exit(f"not within {PATIENCE} s: {what}")
        time.sleep(0.05)
    return seen


def run(command, folder, environment):
    done = subprocess.run(
        command, cwd=folder, env=environment, shell=True, executable="/bin/bash", text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300, check=False,
    )
    if done.returncode:
        sys.exit(f"{command} ends with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


class Shell:
    """One bash, to which commands are given one after the other, with addresses of this test's own."""

    def __init__(self, folder, environment, *addresses):
        self.folder, self.logs = folder, []
        self.places = {address: f"127.0.0.1:{free_port()}" for address in (USERS, *addresses)}
        environment = {**environment, "SWITCHBOARD__SERVER__LISTEN": self.places[USERS]}
        self.bash = subprocess.Popen(
            ["/bin/bash"], cwd=folder, env=environment, text=True, bufsize=1, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        atexit.register(self.kill)

    def here(self, text):
        for address, real in self.places.items():
            text = text.replace(address, real)
        return text

    def run(self, command, patience=PATIENCE):
        self.bash.stdin.write(f"{self.here(command)}\necho; echo '{END}'\n")
        lines = []
        watch = threading.Timer(patience, self.kill)
        watch.start()
        for line in self.bash.stdout:
            if line.rstrip("\n") == END:
                watch.cancel()
                return "".join(lines).rstrip("\n")
            lines.append(line)
        sys.exit(f"{command}: no end\n{''.join(lines)}")

    def start(self, command, address):
        """Runs a server in the background until it listens."""
        self.logs.append(os.path.join(self.folder, f"server-{len(self.logs)}.log"))
        self.run(f"{command.removesuffix('&')} >{self.logs[-1]} 2>&1 &")
        eventually(f"{command} listens", lambda: listens(self.places[address]) or self.has_ended(command))

    def has_ended(self, command):
        if not self.run("jobs -pr"):
            sys.exit(f"{command} has ended:\n{self.log()}")

    def log(self):
        with open(self.logs[-1], encoding="utf-8") as file:
            return file.read()

    def show(self, step):
        """Runs a step and compares."""
        compare(step.key, self.here(step.text), self.run(step.key))

    def kill(self):
        """Leaves nothing behind where a test fails."""
        try:
            os.killpg(self.bash.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def end(self):
        """Ends with all that it has started; a second signal ends a relay at once."""
        self.run("for job in $(jobs -pr); do kill -INT $job; kill -INT $job; done; wait")
        self.bash.stdin.close()
        self.bash.wait(PATIENCE)


def listens(address):
    host, port = address.rsplit(":", 1)
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def is_ready(address):
    try:
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=PATIENCE) as answer:
            return answer.status == 200
    except OSError:
        return False


async def v1(address):
    client = await websockets.connect(f"ws://{address}/", subprotocols=["switchboard.v1"])
    return client, json.loads(await client.recv())["user_id"]


async def exchange(sender_at, recipient_at):
    """One writes to another and is told that it arrived."""
    sender, _ = await v1(sender_at)
    recipient, number = await v1(recipient_at)
    await sender.send(json.dumps({"recipient_id": number, "message": "Go Braves!", "id": 1}))
    assert json.loads(await asyncio.wait_for(recipient.recv(), PATIENCE))["message"] == "Go Braves!"
    assert json.loads(await asyncio.wait_for(sender.recv(), PATIENCE)) == {"type": "outcome", "id": 1, "status": "delivered"}
    await sender.close()
    await recipient.close()


def contribute(documents, _binary, folder, environment):
    """`cargo run --release`, where the project is."""
    shell = Shell(folder, environment)
    step = documents.take_one(".github/CONTRIBUTING.md#build-and-run")
    shell.run(f"cd {ROOT}")
    # It may compile.
    shell.run("cargo build --quiet --release --locked", 1200)
    shell.start(step.key, USERS)
    asyncio.run(exchange(*[shell.places[USERS]] * 2))
    print(f"ok: {step.key}", flush=True)
    shell.end()


def start(documents, _binary, folder, environment):
    """The relay of the README, and the loads of its figures, shortened."""
    shell = Shell(folder, environment)
    shell.start(documents.take_one("README.md#install-and-run").key, USERS)
    asyncio.run(exchange(*[shell.places[USERS]] * 2))
    for step in documents.take("README.md#five-figures"):
        load = f"{step.key} --duration 200ms --url ws://{shell.places[USERS]}/"
        if "ended with" in (printed := shell.run(f"{load} || echo ended with $?", BENCH_PATIENCE)):
            sys.exit(f"{load}\n{printed}")
        print(f"ok: {step.key}", flush=True)
    shell.end()


def talk(documents, binary, _folder, _environment):
    """The conversation of the README: `1 > …` is sent by user 1, `1 < …` is what it hears."""

    async def follow(url, lines):
        lines = [line.split(" ", 2) for line in lines]
        clients = {}
        for user in sorted({user for user, _, _ in lines}):
            clients[user] = await websockets.connect(url, subprotocols=["switchboard.v1"])
        await clients["2"].recv()  # its welcome, which is not shown
        for user, arrow, frame in lines:
            if arrow == ">":
                await clients[user].send(frame)
            else:
                compare(frame, frame, await asyncio.wait_for(clients[user].recv(), PATIENCE))
        for client in clients.values():
            await client.close()

    with Relay(binary) as relay:
        asyncio.run(follow(relay.ws, documents.take_one("README.md#talk", "text").text.splitlines()))


def wire(documents, binary, folder, environment):
    """The two frames of the bare contract, and two clients by both."""
    section = "src/protocol/README.md#the-bare-protocol"
    sent, heard = documents.take_one(section, "json"), documents.take_one(section, "json")

    async def talk(url):
        async with websockets.connect(url) as one, websockets.connect(url) as two:
            await one.send(sent.text.strip())
            return await asyncio.wait_for(two.recv(), PATIENCE)

    with Relay(binary) as relay:
        compare(sent.key, heard.text, asyncio.run(talk(relay.ws)))
    step = documents.take_one("src/protocol/README.md#a-conversation")
    with Relay(binary) as relay:
        compare(step.key, step.text, run(f"{step.key} {relay.ws}", folder, environment))


def page_program(documents, binary, folder, environment):
    """The client from the relay: the program of a page, in Node, and the setting that lets the page in.
    tests/browser/test_client.py has both in Chromium, as they are."""
    title = "src/ui/README.md#the-client"
    config = os.path.join(folder, "origins.toml")
    with open(config, "w", encoding="utf-8") as file:
        file.write(documents.take_one(title, "toml").text)
    run(f"switchboard --config {config} check", folder, environment)
    page = documents.take_one(title, "html").text
    script = re.search(r"<script type=\"module\">\n(.*?)</script>", page, re.DOTALL)[1]
    client = f"http://{USERS}/switchboard.js"
    if client not in script:
        sys.exit("the page's program imports no client of the relay's")
    with Relay(binary) as relay:
        address = relay.http.removeprefix("http://")
        for step in documents.take(title):
            run(step.key.replace(USERS, address), folder, environment)
        script = script.replace(client, "./switchboard.mjs").replace(USERS, address)
        with open(os.path.join(folder, "page.mjs"), "w", encoding="utf-8") as file:
            # A page has a WebSocket, and ends when it is closed.
            file.write('import WebSocket from "ws";\nglobalThis.WebSocket ??= WebSocket;\n')
            file.write(script.replace("import {", "const {").replace("} from \"./switchboard.mjs\"", "} = await import(\"./switchboard.mjs\")"))
            file.write("\nme.close();\n")
        compare("the page's program", "I am …\noffline\n", run("node page.mjs", folder, environment))


def programs(documents, binary, folder, environment):
    """The conversation in each language; a program is named in its own first line, and how it is run in
    the text before it."""
    title = "src/protocol/README.md#write-a-client"
    expected = re.sub(r'"(user_id|sender_id)":1\b', r'"\1":…', documents.take_one(title, "text").text)
    with Relay(binary) as relay:
        for kind in ("python", "js", "bash", "go"):
            program = documents.take_one(title, kind)
            name = re.fullmatch(r"(?:#|//) (\S+)", program.key)[1]
            with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                file.write(program.text.replace(USERS, relay.http.removeprefix("http://")))
            before = documents.texts[title].partition(program.text)[0]
            commands = re.findall(r"`([^`]* " + re.escape(name) + ")`", before)
            if len(commands) != 1:
                sys.exit(f"{name}: the document says {len(commands)} times how it is run")
            compare(commands[0], expected, run(commands[0], folder, environment))


async def stay(url):
    async with websockets.connect(url, subprotocols=["switchboard.v1"]) as client:
        async for _ in client:
            pass


def stay_until_removed(url):
    try:
        asyncio.run(stay(url))
    except websockets.ConnectionClosed:
        pass


def drive(documents, _binary, folder, environment):
    """The API, with user 1 there from the second block on."""
    shell, has_user = Shell(folder, environment, ADMIN), False
    look = f"api http://{ADMIN}/api/users/1"
    for step in documents.take("src/api/README.md#try-it"):
        if step.key.endswith("&"):
            shell.start(step.key, ADMIN)
            continue
        if not has_user and step.text:
            has_user = True
            url = f"ws://{shell.places[USERS]}/"
            threading.Thread(target=stay_until_removed, args=[url], daemon=True).start()
            eventually("user 1", lambda: '"online":true' in shell.run(look))
        shell.show(step)
        if "DELETE" in step.key:
            eventually("user 1 is gone", lambda: '"online":false' in shell.run(look))
    # The drain that it was asked for ends it.
    shell.run("wait")
    shell.end()


def labels(table):
    """What a table of figures has beside the figures, but for what is of the moment."""
    found = (re.split(r"\s{2,}", line.strip())[0] for line in table.splitlines())
    found = [re.sub(r"^(ok:) .*", r"\1", label) for label in found]
    of_the_moment = ("note:", "withheld messages", "ws://")
    return [label for label in found if label and not label.startswith(of_the_moment)]


def measure(documents, _binary, folder, environment):
    """The load with all its scenarios: clean, and of some the form that the document shows."""
    shell = Shell(folder, environment, BENCH)
    server, load = documents.take("benches/README.md#load-a-relay")
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < FILES:
        sys.exit(f"{load.key} has 10000 users: raise the hard limit of open files to {FILES}")
    shell.start(server.key, BENCH)
    printed = shell.run(f"{load.key} || echo ended with $?", BENCH_PATIENCE)
    lines = labels(printed)
    for shown in documents.take_one("benches/README.md#load-a-relay", "text").text.split("\n\n"):
        wanted = labels(shown)
        if not any(lines[place : place + len(wanted)] == wanted for place in range(len(lines))):
            sys.exit(f"{printed}\n{load.key} prints no longer\n{shown}")
    print(f"ok: {load.key}", flush=True)
    shell.end()


def plain(title):
    """Commands that end, and what they print."""

    def show(documents, _binary, folder, environment):
        shell = Shell(folder, environment)
        for step in documents.take(title):
            shell.show(step)
        shell.end()

    show.__name__ = title
    return show


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes spans, and keeps where they were sent."""

    taken = []

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()
        self.taken.append((self.path, self.headers["content-type"]))

    def log_message(self, *_):
        pass


def traces(documents, _binary, folder, environment):
    """Spans of a message reach a receiver."""
    title = "config/prometheus/README.md#traces"
    traced = {**environment, "OTEL_TRACES_SAMPLER": "always_on", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    shell, step = Shell(folder, traced, OTLP), documents.take_one(title)
    port = int(shell.places[OTLP].rsplit(":", 1)[1])
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Receiver) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        shell.start(step.key, USERS)
        asyncio.run(exchange(*[shell.places[USERS]] * 2))
        eventually("spans", lambda: Receiver.taken)
        shell.end()
        receiver.shutdown()
    if set(Receiver.taken) != {("/v1/traces", "application/x-protobuf")}:
        sys.exit(f"{step.key}: {Receiver.taken}")
    print(f"ok: {step.key}", flush=True)


def settings(documents, _binary, folder, environment):
    """Settings of three layers, read again, and refused."""
    shell = Shell(folder, environment)
    for step in documents.take("config/README.md#"):
        if step.key.endswith("&"):
            shell.start(step.key, USERS)
        elif "kill -HUP" in step.key:
            # What is shown is the relay's.
            before, lines = len(shell.log()), re.compile("^" + matches(step.text) + "$", re.MULTILINE)
            shell.run(step.key)
            eventually(step.text, lambda: lines.search(shell.log()[before:]))
            print(f"ok: {step.key}", flush=True)
        else:
            shell.show(step)
    shell.end()


def converse(documents, _binary, folder, environment):
    """`connect` in a pipe, and the commands of operators, each with a relay."""
    for section, address in (("src/cli/README.md#talk", USERS), ("src/cli/README.md#operators", ADMIN)):
        # The settings of `init` name the address of operators.
        admin = f"127.0.0.1:{free_port()}" if address == ADMIN else ""
        shell = Shell(folder, {**environment, "SWITCHBOARD__ADMIN__LISTEN": admin})
        shell.places[ADMIN] = admin
        for step in documents.take(section):
            if step.key.endswith("&"):
                shell.start(step.key, address)
            else:
                shell.show(step)
        shell.end()


def cluster(documents, _binary, folder, environment):
    """Two nodes and NATS, and a message from one to the other."""
    shell, section, nodes = Shell(folder, environment, NATS, *NODES), "src/cluster/README.md#", iter(NODES)
    port = shell.places[NATS].rsplit(":", 1)[1]
    for step in documents.take(section):
        if step.key.startswith("nats-server "):
            command = step.key.replace("nats-server", f"nats-server --addr 127.0.0.1 --port {port}")
            shell.start(command.replace("/tmp/nats", os.path.join(folder, "nats")), NATS)
        elif step.key.endswith("&"):
            shell.start(step.key, next(nodes))
        else:
            shell.show(step)
    addresses = [shell.places[node] for node in NODES]
    for address in addresses:
        eventually(f"{address} is ready", lambda address=address: is_ready(address))
    asyncio.run(exchange(*addresses))
    print(f"ok: {section}: a message from one node to the other", flush=True)
    shell.end()


def prepare(binary, node_modules, folder):
    """What the commands find where they are run; the environment that they have."""
    tools = os.path.join(folder, "bin")
    wrappers = {"bin/switchboard": binary, "bin/python3": sys.executable}
    for name, target in wrappers.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # A link would have Python forget its own packages.
        with open(path, "w", encoding="utf-8") as file:
            file.write(f'#!/bin/sh\nexec "{target}" "$@"\n')
        os.chmod(path, 0o755)
    os.symlink(node_modules, os.path.join(folder, "node_modules"))
    for name in ("k8s", "tests"):
        os.symlink(os.path.join(ROOT, name), os.path.join(folder, name))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SWITCHBOARD__", "OTEL_"))}
    # Commands write into the home folder, and the tools keep their own.
    for variable, name in (("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")):
        environment.setdefault(variable, os.path.join(os.path.expanduser("~"), name))
    environment["HOME"] = folder
    cache = os.path.join(ROOT, "tests", ".cache")
    paths = [tools, os.path.join(cache, "websocat", "bin"), environment["PATH"], "/usr/sbin"]
    environment["PATH"] = os.pathsep.join(paths)
    # Debian's package of gorilla/websocket is a source tree.
    environment |= {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOCACHE": os.path.join(cache, "go"), "GOFLAGS": ""}
    for tool in ("cargo", "node", "go", "curl", "websocat", "nats-server", "kubectl", "taskset"):
        if not shutil.which(tool, path=environment["PATH"]):
            sys.exit(f"{tool} is missing: tests/run snippets installs it")
    return environment


RUNS = [
    start, talk, contribute, wire, page_program, programs, drive, measure, settings, traces, converse, cluster,
    plain("src/cli/README.md#"), plain("src/cli/README.md#completions-and-the-manual"),
    plain("k8s/README.md#kubernetes"), plain("tests/attacks/README.md#check-your-settings"),
]


def main():
    binary, node_modules = map(os.path.abspath, sys.argv[1:3])
    names = sys.argv[3:]
    documents = Documents()
    documents.check_lists()
    with tempfile.TemporaryDirectory() as folder:
        environment = prepare(binary, node_modules, folder)
        for show in RUNS:
            if names and show.__name__ not in names:
                continue
            began = time.monotonic()
            show(documents, binary, folder, environment)
            print(f"   {time.monotonic() - began:.1f} s", flush=True)
    if not names:
        documents.check_all_ran()


main()
