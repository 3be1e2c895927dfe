#!/usr/bin/env python3
"""Two users on different nodes of a cluster exchange messages, before and after one of the nodes stops.

    tests/python/cluster_talk.py URL COMPOSE...    `COMPOSE... stop NODE` stops a node"""

import asyncio
import json
import subprocess
import sys

import websockets

# Ids in a block (cluster.block_size). Users with ids of different blocks are on different nodes.
BLOCK = 1024
# Seconds, more than drain.timeout.
DRAIN = 60


async def join(url):
    client = await websockets.connect(url, subprotocols=["switchboard.v1"])
    welcome = json.loads(await client.recv())
    return client, welcome["user_id"]


async def until(client, kind, seconds=30):
    async with asyncio.timeout(seconds):
        while True:
            frame = json.loads(await client.recv())
            if frame["type"] == kind:
                return frame


async def exchange(one, two):
    """Both users write to each other and receive the outcome `delivered`."""
    for (sender, sender_id), (recipient, recipient_id) in ((one, two), (two, one)):
        text = f"{sender_id} to {recipient_id}"
        await sender.send(json.dumps({"recipient_id": recipient_id, "message": text, "id": text}))
        heard = await until(recipient, "message")
        assert (heard["sender_id"], heard["message"]) == (sender_id, text), heard
        outcome = await until(sender, "outcome")
        assert outcome == {"type": "outcome", "id": text, "status": "delivered"}, outcome
        print(text, "delivered")


async def main(url, compose):
    one = await join(url)
    two = await join(url)
    while (two[1] - 1) // BLOCK == (one[1] - 1) // BLOCK:
        two = await join(url)
    print(f"users {one[1]} and {two[1]} are on different nodes")
    await exchange(one, two)

    # The users cannot tell which nodes they are on. The node that drains one of them is the right one.
    for node in ("node1", "node2", "node3"):
        stopping = await asyncio.create_subprocess_exec(*compose, "stop", node)
        stopped = asyncio.create_task(stopping.wait())
        told = [asyncio.create_task(until(client, "reconnect", DRAIN)) for client, _ in (one, two)]
        await asyncio.wait([stopped, *told], return_when=asyncio.FIRST_COMPLETED)
        moved = [number for number, task in enumerate(told) if task.done() and task.result()]
        for task in told:
            task.cancel()
        await asyncio.gather(*told, return_exceptions=True)
        if moved:
            users = [one, two]
            print(f"{node} asks user {users[moved[0]][1]} to reconnect")
            users[moved[0]] = await join(url)
            print(f"the user reconnects as user {users[moved[0]][1]}")
            await exchange(*users)
            assert await stopped == 0
            await exchange(*users)
            return
        assert await stopped == 0
        print(f"{node} has neither user")
        subprocess.run([*compose, "start", node], check=True)
    sys.exit("no node asked a user to reconnect")


asyncio.run(main(sys.argv[1], sys.argv[2:]))
