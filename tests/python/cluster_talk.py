#!/usr/bin/env python3
"""Two people on different nodes of a cluster talk; the node of one is stopped; they talk again.

    tests/python/cluster_talk.py URL STOP...    STOP... with a node's name stops that node"""

import asyncio
import json
import subprocess
import sys

import websockets

# Ids that a node leases at once (cluster.block_size): the id tells the lease, and so the node.
BLOCK = 1024


async def join(url):
    client = await websockets.connect(url, subprotocols=["switchboard.v1"])
    welcome = json.loads(await client.recv())
    return client, welcome["user_id"]


async def until(client, kind):
    while True:
        frame = json.loads(await asyncio.wait_for(client.recv(), 30))
        if frame["type"] == kind:
            return frame


async def exchange(one, two):
    """Each writes to the other, and is told that it was delivered."""
    for (sender, sender_id), (recipient, recipient_id) in ((one, two), (two, one)):
        text = f"{sender_id} to {recipient_id}"
        await sender.send(json.dumps({"recipient_id": recipient_id, "message": text, "id": text}))
        heard = await until(recipient, "message")
        assert (heard["sender_id"], heard["message"]) == (sender_id, text), heard
        outcome = await until(sender, "outcome")
        assert outcome == {"type": "outcome", "id": text, "status": "delivered"}, outcome
        print(text, "delivered")


async def main(url, stop):
    one = await join(url)
    two = await join(url)
    while (two[1] - 1) // BLOCK == (one[1] - 1) // BLOCK:
        two = await join(url)
    print(f"users {one[1]} and {two[1]} are on different nodes")
    await exchange(one, two)

    # Which node is it? The one whose users are sent away.
    for node in ("node1", "node2", "node3"):
        stopping = await asyncio.create_subprocess_exec(*stop, node)
        waits = {asyncio.create_task(until(client, "reconnect")): who for who, (client, _) in (("one", one), ("two", two))}
        stopped = asyncio.create_task(stopping.wait())
        done, _ = await asyncio.wait([stopped, *waits], return_when=asyncio.FIRST_COMPLETED, timeout=90)
        moved = [waits[task] for task in done if task in waits]
        for task in waits:
            task.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        if moved:
            print(f"{node} sends user {moved[0]} away")
            back = await join(url)
            one, two = (back, two) if moved[0] == "one" else (one, back)
            await exchange(one, two)
            assert await stopped == 0
            return
        print(f"{node} had neither")
        subprocess.run([*stop[:-1], "start", node], check=True)
    sys.exit("no node sent anybody away")


asyncio.run(main(sys.argv[1], sys.argv[2:]))
