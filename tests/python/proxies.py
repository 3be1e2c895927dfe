#!/usr/bin/env python3
"""Users reach a relay through nginx and HAProxy with the files in config/.

    tests/python/proxies.py BINARY

Only addresses are changed, and where a test needs it the idle timeout, so that it does not take minutes. The test
shows what the table in k8s/README.md says: the upgrade and the client's address arrive, the ping of the relay keeps
a silent user connected, and the named timeout is the one that would end its connection."""

import asyncio
import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import websockets

from nats_client import until
from relay import PATIENCE, Relay, free_port

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
IDLE = 2


def nginx(folder, port, users, admin, is_short):
    text = (ROOT / "config/nginx/nginx.conf").read_text()
    text, servers = re.subn(r"relay(\d)\.example\.com:8080", lambda found: f"127.0.0.1:{users[int(found[1]) - 1]}", text)
    assert servers == len(users), text
    text = text.replace("listen 80;", f"listen 127.0.0.1:{port};")
    if is_short:
        text, timeouts = re.subn(r"(proxy_(?:read|send)_timeout) 2m;", rf"\1 {IDLE}s;", text)
        assert timeouts == 2, text
    text = f"daemon off;\npid {folder}/pid;\nerror_log stderr;\n" + text.replace(
        "http {", f"http {{\n  access_log off;\n" + "".join(
            f"  {kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")))
    path = pathlib.Path(folder, "nginx.conf")
    path.write_text(text)
    return ["nginx", "-c", str(path), "-e", "stderr"]


def haproxy(folder, port, users, admin, is_short):
    text = (ROOT / "config/haproxy/haproxy.cfg").read_text()
    # A resolver of Docker, and a third node.
    text = re.sub(r"^resolvers .*?\n\n", "", text, flags=re.MULTILINE | re.DOTALL)
    text = text.replace(" resolvers docker init-addr libc,none", "").replace("bind :8080", f"bind 127.0.0.1:{port}")
    text = re.sub(r"^  server node3 .*\n", "", text, flags=re.MULTILINE)
    text = text.replace("check port 9090", "check")
    for number, (user, admin) in enumerate(zip(users, admin)):
        text = text.replace(f"node{number + 1} node{number + 1}:8080", f"node{number + 1} 127.0.0.1:{user} port {admin}")
    if is_short:
        text, timeouts = re.subn(r"timeout tunnel 2m", f"timeout tunnel {IDLE}s", text)
        assert timeouts == 1, text
    path = pathlib.Path(folder, "haproxy.cfg")
    path.write_text(text)
    return ["haproxy", "-db", "-f", str(path)]


@contextlib.contextmanager
def through(configure, relays, is_short=False):
    """Starts a proxy in front of relays, and gives its address."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        users = [int(relay.ws.split(":")[2].rstrip("/")) for relay in relays] * (2 // len(relays))
        admin = [int(relay.api.split(":")[2]) for relay in relays] * (2 // len(relays))
        command = configure(folder, port, users, admin, is_short)
        environment = {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
        with open(f"{folder}/log", "w+") as log:
            process = subprocess.Popen(command, env=environment, stderr=log, stdout=log)
            try:
                yield f"ws://127.0.0.1:{port}/"
            finally:
                process.terminate()
                process.wait(PATIENCE)
                if sys.exc_info()[0]:
                    log.seek(0)
                    print(log.read())


async def join(url, **options):
    """Joins once the proxy answers and has seen that a relay is ready."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            client = await websockets.connect(url, subprotocols=["switchboard.v1"], **options)
            return client, json.loads(await client.recv())["user_id"]
        except (OSError, websockets.InvalidStatus) as refused:
            is_early = isinstance(refused, OSError) or refused.response.status_code in (502, 503)
            if not is_early or time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)


async def until_frame(client, kind):
    async with asyncio.timeout(PATIENCE):
        while (frame := json.loads(await client.recv()))["type"] != kind:
            pass
        return frame


async def talk(url):
    """A message of the largest size arrives, and its outcome returns."""
    (one, _), (two, two_id) = await join(url), await join(url)
    await one.send(json.dumps({"recipient_id": two_id, "message": "x" * 60_000, "id": 1}))
    assert len((await until_frame(two, "message"))["message"]) == 60_000
    assert (await until_frame(one, "outcome"))["status"] == "delivered"
    await one.close()
    await two.close()


def users_talk_and_count_by_their_own_address(configure):
    with Relay(BINARY, SERVER__TRUSTED_PROXIES="127.0.0.1/32", LIMITS__ADDRESS_CONNECTIONS="2") as relay:
        with through(configure, [relay]) as url:
            asyncio.run(talk(url))
            asyncio.run(count(url))


async def count(url):
    from_address = lambda address: join(url, local_addr=(address, 0))
    clients = [await from_address(address) for address in ("127.0.0.2", "127.0.0.2", "127.0.0.3", "127.0.0.3")]
    for address in ("127.0.0.2", "127.0.0.3"):
        try:
            await from_address(address)
            sys.exit(f"a third user from {address}")
        except websockets.InvalidStatus as refused:
            assert refused.response.status_code == 429, refused
    # An address that the client writes itself does not count: the proxy adds the true one behind it.
    try:
        await join(url, local_addr=("127.0.0.2", 0), additional_headers={"X-Forwarded-For": "192.0.2.1"})
        sys.exit("a client chose its address")
    except websockets.InvalidStatus as refused:
        assert refused.response.status_code == 429, refused
    for client, _ in clients:
        await client.close()


def pings_keep_a_silent_user_and_without_them_the_timeout_ends_it(configure):
    async def stays(url):
        client, _ = await join(url)
        closed = asyncio.ensure_future(client.wait_closed())
        done, _ = await asyncio.wait([closed], timeout=2.5 * IDLE)
        await client.close()
        return not done

    for interval, expected in (("1s", True), ("10m", False)):
        with Relay(BINARY, KEEPALIVE__PING_INTERVAL=interval) as relay, through(configure, [relay], is_short=True) as url:
            # The client of this test pings by itself every 20 s only.
            assert asyncio.run(stays(url)) is expected, f"with a ping every {interval}"


def a_new_user_gets_another_relay_than_a_full_one(configure):
    with contextlib.ExitStack() as stack:
        full = {"LIMITS__CONNECTIONS": "1", "ADMIN__READY_WHEN_FULL": "false"}
        relays = [stack.enter_context(Relay(BINARY, **full)) for _ in range(2)]
        url = stack.enter_context(through(configure, relays))
        asyncio.run(fill(url, relays))


async def fill(url, relays):
    clients = [await join(url), await join(url)]
    users = [relay.ask("GET", "/api/status")[1]["users"] for relay in relays]
    assert users == [1, 1], users
    for client, _ in clients:
        await client.close()


def a_drain_is_told_through_the_proxy(configure):
    async def drained(url, relay):
        client, _ = await join(url)
        relay.process.terminate()
        await until_frame(client, "reconnect")
        await client.wait_closed()
        assert client.close_code == 1012, client.close_code

    with Relay(BINARY, DRAIN__DELAY="0s", DRAIN__SPREAD="0s") as relay, through(configure, [relay]) as url:
        asyncio.run(drained(url, relay))


CASES = [
    users_talk_and_count_by_their_own_address,
    pings_keep_a_silent_user_and_without_them_the_timeout_ends_it,
    a_new_user_gets_another_relay_than_a_full_one,
    a_drain_is_told_through_the_proxy,
]

BINARY = os.path.abspath(sys.argv[1])
for configure in (nginx, haproxy):
    for case in CASES:
        begin = time.monotonic()
        case(configure)
        print(f"ok {configure.__name__}: {case.__name__} ({time.monotonic() - begin:.1f} s)", flush=True)
