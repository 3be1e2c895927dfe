#!/usr/bin/env python3
"""Sends messages with the API of one node to users of two other nodes, one for each routing strategy.

The answer `delivered` comes after the message has arrived, and the ledgers balance.

    tests/python/api_cluster.py BINARY NATS-SERVER"""

import asyncio
import json
import sys

import websockets

from relay import PATIENCE, Nats, Relay


async def user(relay):
    client = await websockets.connect(relay.ws, subprotocols=["switchboard.v1"])
    return client, json.loads(await client.recv())["user_id"]


async def post(relay, recipient, text):
    body = {"recipient_id": recipient, "message": text}
    status, outcome = await asyncio.to_thread(relay.ask, "POST", "/api/messages", body)
    if status != 200:
        sys.exit(f"{status}: {outcome}")
    return outcome["status"]


def expect(what, found, expected):
    print(f"{what}: {found}")
    if found != expected:
        sys.exit(f"expected {expected}")


async def converse(node, others):
    for other in others:
        client, number = await user(other)
        expect(f"to user {number} of another node", await post(node, number, "hello"), "delivered")
        frame = json.loads(await asyncio.wait_for(client.recv(), PATIENCE))
        expect("the user receives", frame, {"type": "message", "sender_id": 0, "message": "hello"})
        seen = await asyncio.to_thread(node.ask, "GET", f"/api/users/{number}")
        expect("the user is on this node", seen[1]["online"], False)
        await client.close()
        other.eventually("the user has left", lambda: other.ask("GET", "/api/status")[1]["users"] == 0)
        expect("after the user has left", await post(node, number, "hello?"), "offline")
    expect("to an unused id", await post(node, 9007199254740991, "hello?"), "offline")
    for relay in (node, *others):
        await asyncio.to_thread(relay.eventually, "a ledger that balances", lambda relay=relay: relay.gap() == 0)
    messages = node.ask("GET", "/api/status")[1]["messages"]
    expect("received", messages["received"], 5)
    # Two were delivered. A message to a user that has left goes out only if its place is still remembered.
    sent = messages["cluster_sent"]
    expect(f"two to four were sent to other nodes, {sent}", 2 <= sent <= 4, True)


def main():
    binary, nats = sys.argv[1:]
    with Nats(nats) as server:
        settings = {"CLUSTER__NATS_URL": server.url, "DRAIN__DELAY": "0s", "DRAIN__SPREAD": "0s"}
        with (
            Relay(binary, **settings) as node,
            Relay(binary, **settings) as other,
            Relay(binary, ROUTING__STRATEGY="router", **settings) as routed,
        ):
            for relay in (node, other, routed):
                relay.eventually("a node that is ready", lambda relay=relay: relay.ask("GET", "/api/status")[1]["ready"])
            asyncio.run(converse(node, (other, routed)))
            asyncio.run(converse_from(routed, other))


async def converse_from(routed, other):
    client, number = await user(other)
    expect("from a node with the other strategy", await post(routed, number, "hello"), "delivered")
    await client.close()


main()
