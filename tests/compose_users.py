"""Users of a relay in a container, for tests/containers.sh: `talk URL` or `flow URL FILE`."""

import asyncio
import json
import sys
from pathlib import Path

import websockets


def user_id(user):
    return int(user.response.headers["x-user-id"])


async def talk(url):
    """Two users write to each other, and one of them also writes to an offline user."""
    async with (
        websockets.connect(url) as bare,
        websockets.connect(url, subprotocols=["switchboard.v1"]) as v1,
    ):
        assert json.loads(await v1.recv())["type"] == "welcome"
        for number, to in enumerate((user_id(bare), 1 << 40)):
            await v1.send(json.dumps({"recipient_id": to, "message": "Go Braves!", "id": number}))
        outcomes = [json.loads(await v1.recv()) for _ in range(2)]
        assert {(one["id"], one["status"]) for one in outcomes} == {(0, "delivered"), (1, "offline")}, outcomes
        heard = json.loads(await bare.recv())
        assert heard == {"sender_id": user_id(v1), "message": "Go Braves!"}, heard
        await bare.send(json.dumps({"recipient_id": user_id(v1), "message": "Go Braves!"}))
        heard = json.loads(await v1.recv())
        assert heard == {"type": "message", "sender_id": user_id(bare), "message": "Go Braves!"}, heard


async def pair(url, started):
    """Two users write to each other until the server closes both connections.

    Returns the number of messages written and heard, and both close codes."""
    subprotocols = ["switchboard.v1"]
    async with (
        websockets.connect(url, subprotocols=subprotocols) as one,
        websockets.connect(url, subprotocols=subprotocols) as other,
    ):
        counts = {"written": 0, "heard": 0, "told_to_reconnect": 0}

        async def write(user, to):
            try:
                while True:
                    counts["written"] += 1
                    await user.send(json.dumps({"recipient_id": to, "message": "x" * 100}))
                    await asyncio.sleep(0.005)
            except websockets.ConnectionClosed:
                pass

        async def read(user):
            try:
                while True:
                    kind = json.loads(await user.recv())["type"]
                    counts["heard"] += kind == "message"
                    counts["told_to_reconnect"] += kind == "reconnect"
                    if counts["heard"]:
                        started.set()
            except websockets.ConnectionClosed:
                return user.close_code

        _, _, *codes = await asyncio.gather(
            write(one, user_id(other)), write(other, user_id(one)), read(one), read(other)
        )
        return counts, codes


async def flow(url, ready):
    """50 pairs of users write to each other until the relay drains. Creates the file when all pairs have begun."""
    started = [asyncio.Event() for _ in range(50)]
    pairs = asyncio.gather(*(pair(url, event) for event in started))
    await asyncio.gather(*(event.wait() for event in started))
    Path(ready).touch()
    ended = await pairs
    for counts, codes in ended:
        assert codes == [1012, 1012], codes
        assert counts["told_to_reconnect"] == 2, counts
    written, heard = (sum(counts[name] for counts, _ in ended) for name in ("written", "heard"))
    print(f"100 users wrote {written} messages and heard {heard}; the relay closed all connections with 1012")


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    asyncio.run(asyncio.wait_for({"talk": talk, "flow": flow}[verb](*arguments), 120))
