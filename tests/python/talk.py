#!/usr/bin/env python3
"""Two users exchange messages over both protocols, with Python's `websockets`.

    tests/python/talk.py [URL]             uses a running relay (default: ws://127.0.0.1:8080/)
    tests/python/talk.py --start BINARY    starts a relay on a free port and stops it afterwards

Exits with 1 if a user receives something unexpected."""

import asyncio
import json
import socket
import subprocess
import sys

import websockets


async def say(name, client, text):
    print(f"{name} > {text}")
    await client.send(text)


async def hear(name, client, expected):
    text = await asyncio.wait_for(client.recv(), 10)
    print(f"{name} < {text}")
    heard = json.loads(text)
    if {key: heard.get(key) for key in expected} != expected:
        sys.exit(f"expected {expected}")


async def talk(url):
    async with websockets.connect(url) as bare, websockets.connect(url, subprotocols=["switchboard.v1"]) as v1:
        one, two = (int(client.response.headers["x-user-id"]) for client in (bare, v1))
        print(f"bare is user {one}, v1 is user {two} and speaks {v1.subprotocol}")
        await hear("v1  ", v1, {"type": "welcome", "user_id": two})
        await say("bare", bare, json.dumps({"recipient_id": two, "message": "Go Braves!"}))
        await hear("v1  ", v1, {"type": "message", "sender_id": one, "message": "Go Braves!"})
        await say("v1  ", v1, json.dumps({"recipient_id": one, "message": "Go, indeed.", "id": 1}))
        await hear("bare", bare, {"sender_id": two, "message": "Go, indeed."})
        await hear("v1  ", v1, {"type": "outcome", "id": 1, "status": "delivered"})
        await say("v1  ", v1, json.dumps({"recipient_id": 999999, "message": "Hello?", "id": "q"}))
        await hear("v1  ", v1, {"type": "outcome", "id": "q", "status": "offline"})
        await say("v1  ", v1, json.dumps({"recipient_id": one}))
        await hear("v1  ", v1, {"type": "error", "code": "missing_field"})
        await say("bare", bare, json.dumps({"recipient_id": "two", "message": "?"}))
        try:
            await asyncio.wait_for(bare.recv(), 10)
        except websockets.ConnectionClosed as closed:
            print(f"bare < close {closed.rcvd.code} {closed.rcvd.reason}")
            if closed.rcvd.code != 1007:
                sys.exit("expected 1007")


def start(binary):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    relay = subprocess.Popen([binary, "--listen", f"127.0.0.1:{port}"], stderr=subprocess.PIPE, text=True)
    # The first line of the log says that the relay listens.
    if "listening" not in relay.stderr.readline():
        sys.exit("the relay did not start")
    return relay, f"ws://127.0.0.1:{port}/"


def main():
    if sys.argv[1:2] == ["--start"]:
        relay, url = start(sys.argv[2])
        try:
            asyncio.run(talk(url))
        finally:
            relay.send_signal(2)
            code = relay.wait(30)
        if code:
            sys.exit(f"the relay exited with {code}")
    else:
        asyncio.run(talk(sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8080/"))


main()
