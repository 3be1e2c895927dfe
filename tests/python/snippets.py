#!/usr/bin/env python3
"""Runs what the README shows, against a real relay, and compares what it prints with what the README says.

    tests/python/snippets.py BINARY NODE_MODULES

Addresses get free ports; `…` stands for anything. Run are the programs of "Write a client", the page's
program of "Use it from a program", and every console block of "Drive it", "Settings" and "Security" that
uses nothing but the relay, curl and coreutils."""

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

import websockets

from relay import PATIENCE, Relay, free_port

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
END = "-- that was all --"
USERS, ADMIN = "127.0.0.1:8080", "127.0.0.1:9090"


def section(title):
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        text = file.read()
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if not found:
        sys.exit(f"the README has no section {title!r}")
    return found[1]


def compare(what, expected, printed):
    pattern = ".*".join(re.escape(part) for part in expected.rstrip("\n").split("…"))
    if not re.fullmatch(pattern, printed.rstrip("\n")):
        sys.exit(f"{what}\n-- the README says\n{expected}\n-- and it printed\n{printed}")
    print(f"ok: {what}")


def run(command, folder, environment):
    done = subprocess.run(
        command, cwd=folder, env=environment, shell=True, executable="/bin/bash", text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300, check=False,
    )
    if done.returncode:
        sys.exit(f"{command} ends with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def programs(relay, folder, environment):
    """The conversation in each language; a program is named in its own first line, and how it is run in
    the text before it."""
    text = section("Write a client")
    expected = next(body for kind, body in FENCE.findall(text) if kind == "text")
    expected = re.sub(r'"(user_id|sender_id)":1\b', r'"\1":…', expected)
    count = 0
    for fence in FENCE.finditer(text):
        name = re.match(r"(?:#|//) (\S+)\n", fence[2])
        if not name:
            continue
        with open(os.path.join(folder, name[1]), "w", encoding="utf-8") as file:
            file.write(fence[2].replace(USERS, relay.http.removeprefix("http://")))
        commands = re.findall(r"`([^`]* " + re.escape(name[1]) + ")`", text[: fence.start()])
        if len(commands) != 1:
            sys.exit(f"{name[1]}: the README says {len(commands)} times how it is run")
        compare(commands[0], expected, run(commands[0], folder, environment))
        count += 1
    if count != 4:
        sys.exit(f"{count} programs, not four")


def page_program(relay, folder, environment):
    """The program of a page, in Node: with the relay's own client, from the relay."""
    (page,) = (body for kind, body in FENCE.findall(section("Use it from a program")) if kind == "html")
    script = re.search(r"<script type=\"module\">\n(.*?)</script>", page, re.DOTALL)[1]
    client = f"http://{USERS}/switchboard.js"
    if client not in script:
        sys.exit("the page's program imports no client of the relay's")
    address = relay.http.removeprefix("http://")
    get = f"curl --silent --fail --output switchboard.js {client.replace(USERS, address)}"
    run(get, folder, environment)
    script = script.replace(client, "./switchboard.js").replace(USERS, address)
    with open(os.path.join(folder, "page.mjs"), "w", encoding="utf-8") as file:
        # A page has a WebSocket, and ends when it is closed.
        file.write('import WebSocket from "ws";\nglobalThis.WebSocket ??= WebSocket;\n')
        file.write(script.replace("import {", "const {").replace("} from \"./switchboard.js\"", "} = await import(\"./switchboard.js\")"))
        file.write("\nme.close();\n")
    compare("the page's program", "I am …\noffline\n", run("node page.mjs", folder, environment))


class Shell:
    """One bash, to which commands are given one after the other."""

    def __init__(self, folder, environment):
        self.bash = subprocess.Popen(
            ["/bin/bash"], cwd=folder, env=environment, text=True, bufsize=1, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )

    def run(self, command):
        self.bash.stdin.write(f"{command}\necho; echo '{END}'\n")
        lines = []
        watch = threading.Timer(PATIENCE, self.bash.kill)
        watch.start()
        for line in self.bash.stdout:
            if line.rstrip("\n") == END:
                watch.cancel()
                return "".join(lines).rstrip("\n")
            lines.append(line)
        sys.exit(f"{command}: no end\n{''.join(lines)}")

    def end(self):
        self.bash.stdin.close()
        self.bash.wait(PATIENCE)


def answers(port):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    sys.exit(f"nothing listens on {port}")


async def stay(url):
    async with websockets.connect(url, subprotocols=["switchboard.v1"]) as client:
        async for _ in client:
            pass


def stay_until_removed(url):
    try:
        asyncio.run(stay(url))
    except websockets.ConnectionClosed:
        pass


def console(title, only, folder, environment):
    """The console blocks of a section that hold one of these words, in one shell; a user is there from the
    second block on where the first has started a relay."""
    users, admin = free_port(), free_port()
    ports = {USERS: f"127.0.0.1:{users}", ADMIN: f"127.0.0.1:{admin}"}
    environment = {**environment, "SWITCHBOARD__SERVER__LISTEN": ports[USERS]}
    shell, count, has_relay, has_user = Shell(folder, environment), 0, False, False
    for kind, body in FENCE.findall(section(title)):
        if kind != "console" or not any(word in body for word in only):
            continue
        if has_relay and not has_user:
            has_user = True
            threading.Thread(target=stay_until_removed, args=[f"ws://{ports[USERS]}/"], daemon=True).start()
            wait = f"api http://{ports[ADMIN]}/api/users/1"
            while '"online":true' not in shell.run(wait):
                time.sleep(0.05)
        for address, real in ports.items():
            body = body.replace(address, real)
        for step in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
            command, _, expected = step.partition("\n")
            if command.endswith("&"):
                shell.run(f"{command.removesuffix('&')} 2>relay.log &")
                answers(admin)
                has_relay = True
                continue
            compare(command, expected, shell.run(command))
            count += 1
            if "DELETE" in command:
                while '"online":false' not in shell.run(wait):
                    time.sleep(0.05)
    if has_relay:
        # The drain that it was asked for ends it.
        shell.run("wait")
    shell.end()
    if not count:
        sys.exit(f"{title}: nothing was run")


def main():
    binary, node_modules = map(os.path.abspath, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        tools = os.path.join(folder, "bin")
        os.mkdir(tools)
        for name, target in (("switchboard", binary), ("python3", sys.executable)):
            # A link would have Python forget its own packages.
            with open(os.path.join(tools, name), "w", encoding="utf-8") as file:
                file.write(f'#!/bin/sh\nexec "{target}" "$@"\n')
            os.chmod(os.path.join(tools, name), 0o755)
        os.symlink(node_modules, os.path.join(folder, "node_modules"))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SWITCHBOARD__")}
        cache = os.path.join(ROOT, "tests", ".cache")
        environment["PATH"] = os.pathsep.join([tools, os.path.join(cache, "websocat", "bin"), environment["PATH"]])
        # Debian's package of gorilla/websocket is a source tree.
        environment |= {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOCACHE": os.path.join(cache, "go"), "GOFLAGS": ""}
        for tool in ("node", "go", "curl", "websocat"):
            if not shutil.which(tool, path=environment["PATH"]):
                sys.exit(f"{tool} is missing: tests/run snippets installs it")
        with Relay(binary) as relay:
            programs(relay, folder, environment)
            page_program(relay, folder, environment)
        console("Drive it", ["api", "admin-token"], folder, environment)
        console("Settings", ["SWITCHBOARD__DRAIN__TIMEOUT"], folder, environment)
        console("Security", ["token issue"], folder, environment)


main()
