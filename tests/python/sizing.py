#!/usr/bin/env python3
"""Measures what a user costs in memory, and compares it with the figures that the Kubernetes manifests count with.

    tests/python/sizing.py BINARY NATS_SERVER

- At a relay: `CONNECTION_BYTES` in src/config/capacity.rs. As root the relay runs in a cgroup of its own, which
  also counts the kernel's memory for sockets, as a container's limit does. Otherwise its resident memory is
  compared with the first part of the figure.
- At NATS: the 1 KiB in k8s/components/nats/statefulset.yaml, by an entry in a key-value bucket for each user, the
  buffers of the server included."""

import contextlib
import json
import os
import pathlib
import re
import resource
import socket
import subprocess
import sys
import tempfile

from manifests import ROOT
from nats_client import Client, until
from relay import free_port

USERS, STEADY = 8000, 1000
NATS_USERS = 300_000
NATS_USER_BYTES = 1024
# An entry as a relay writes it: a compare-and-set of the node's number, a nonce and a resumption id.
ENTRY = "NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: 0\r\n\r\n", "x" * 17
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def figure():
    """Returns the bytes of a user in the process and in the kernel."""
    source = (ROOT / "src/config/capacity.rs").read_text()
    return tuple(map(int, re.search(r"CONNECTION_BYTES: u64 = (\d+) \+ (\d+);", source).groups()))


@contextlib.contextmanager
def cgroup():
    """A cgroup for the relay and the file with its memory, or None where this process may make none."""
    for root, usage in (("/sys/fs/cgroup/memory", "memory.usage_in_bytes"), ("/sys/fs/cgroup", "memory.current")):
        group = pathlib.Path(root, f"switchboard-sizing-{os.getpid()}")
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / usage).exists():
                yield group, usage
                return
        finally:
            group.rmdir()
    yield None, None


def resident(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


def settled(read):
    """Returns a figure once it no longer changes by more than 1% between two looks."""
    last = [read()]

    def look():
        now = read()
        steady = abs(now - last[0]) < now / 100
        last[0] = now
        return steady and now

    return until("the memory is steady", look, pause=1)


def relay(binary):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    port, admin = free_port(), free_port()
    process_bytes, kernel_bytes = figure()
    with cgroup() as (group, usage), contextlib.ExitStack() as users:
        def enter():
            if group:
                (group / "cgroup.procs").write_text(str(os.getpid()))

        # No ping during the measurement, and no port in common with the users.
        environment = {"PATH": os.environ["PATH"], "SWITCHBOARD__KEEPALIVE__PING_INTERVAL": "1h",
                       "SWITCHBOARD__ADMIN__LISTEN": f"127.0.0.1:{admin}", "SWITCHBOARD__LOG__FILTER": "warn"}
        process = subprocess.Popen([binary, "--listen", f"127.0.0.1:{port}"], env=environment, preexec_fn=enter)
        try:
            until("the relay listens", lambda: connects(port))
            memory = (lambda: int((group / usage).read_text())) if group else (lambda: resident(process.pid))

            def join(count):
                for _ in range(count):
                    user = users.enter_context(socket.create_connection(("127.0.0.1", port)))
                    user.sendall(HANDSHAKE)
                    assert b" 101 " in user.recv(1024)

            join(STEADY)
            before = settled(memory)
            join(USERS)
            cost = (settled(memory) - before) / USERS
        finally:
            process.kill()
            process.wait()
    stated = process_bytes + kernel_bytes if group else process_bytes
    print(f"  relay: an idle user takes {cost:.0f} B {'with' if group else 'without'} the kernel's; counted with {stated} B")
    assert stated / 4 < cost <= stated, f"CONNECTION_BYTES in src/config/capacity.rs is {stated}, measured {cost:.0f}"


def connects(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    except OSError:
        return False


def nats(program):
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        process = subprocess.Popen([program, "--addr", "127.0.0.1", "--port", str(port), "--jetstream", "--store_dir", folder],
                                   stderr=subprocess.DEVNULL)
        try:
            until("NATS listens", lambda: connects(port))
            client = Client(port)
            before = settled(lambda: resident(process.pid))
            put(client, NATS_USERS)
            cost = (settled(lambda: resident(process.pid)) - before) / NATS_USERS
        finally:
            process.kill()
            process.wait()
    print(f"  NATS: an entry for each user takes {cost:.0f} B; counted with {NATS_USER_BYTES} B")
    assert cost <= NATS_USER_BYTES, f"k8s/components/nats/statefulset.yaml counts with {NATS_USER_BYTES} B"


def put(client, count):
    bucket = "KV_switchboard_2_ids"
    config = {"name": bucket, "subjects": ["$KV.switchboard_2_ids.>"], "max_msgs_per_subject": 1, "allow_msg_ttl": True}
    client.request(f"$JS.API.STREAM.CREATE.{bucket}", json.dumps(config))
    head, value = ENTRY
    sizes = f"{len(head)} {len(head + value)}"
    for first in range(0, count, 1000):
        client.say(*(f"HPUB $KV.switchboard_2_ids.{number + 1} {sizes}\r\n{head}{value}" for number in range(first, first + 1000)))
        stored = lambda: client.request(f"$JS.API.STREAM.INFO.{bucket}", "")["state"]["messages"]
        until("all entries are stored", lambda: stored() == first + 1000)


BINARY, NATS = map(os.path.abspath, sys.argv[1:])
relay(BINARY)
nats(NATS)
