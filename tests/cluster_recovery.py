#!/usr/bin/env python3
"""Measures how long users of a cluster cannot reach each other after a fault.

    python3 tests/cluster_recovery.py NATS_SERVER PROGRAM...

Three relays of each PROGRAM run, and 60 users who write to each other and come back as src/ui/switchboard.js does. A
relay is killed, NATS is killed and started again, and NATS is started again without its store. The time ends when every
user is connected, and has had a message delivered that was sent after that, and every relay has had one from each
other relay. It begins with the kill of the relay, or when NATS listens again.

Needs Python with `websockets` (tests/run talk installs it in tests/.cache/venv)."""

import asyncio
import collections
import contextlib
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "python"))
from relay import Nats, Relay  # noqa: E402
from users import Users  # noqa: E402

USERS, RELAYS, ROUNDS = 60, 3, 3


class Node(Relay):
    def __enter__(self):
        super().__enter__()
        self.name, self.port = self.ws, int(self.ws.strip("/").rpartition(":")[2])
        return self


class Service:
    """Gives each new connection a relay."""

    def __init__(self):
        self.ready = []

    def choose(self):
        return random.choice(self.ready)


async def listens(port):
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        return True


async def restarted(nats, forgets):
    """Starts NATS again, and returns when it listens."""
    nats.kill()
    if forgets:
        shutil.rmtree(nats.folder.name)
    # The relays have waited for longer after each failed attempt.
    await asyncio.sleep(random.uniform(1, 2))
    nats.run()
    while not await listens(nats.port):
        await asyncio.sleep(0.01)
    return time.monotonic()


async def measure(nats_program, program):
    """Returns the times of each fault, in seconds."""
    times = collections.defaultdict(list)
    with contextlib.ExitStack() as stack:
        secret = Path(stack.enter_context(tempfile.TemporaryDirectory()), "secret")
        secret.write_text("a secret of a measurement " * 3)
        nats = stack.enter_context(Nats(nats_program))
        start = lambda: stack.enter_context(Node(program, CLUSTER__NATS_URL=nats.url, TICKETS__SECRET_FILE=str(secret)))
        service = Service()
        service.ready = [start() for _ in range(RELAYS)]
        async with Users(service, USERS) as users:
            async def settled(fault=None, begin=0):
                await users.until_at(service.ready)
                await users.until_delivered(service.ready)
                if fault:
                    times[fault].append(time.monotonic() - begin)

            await settled()
            for _ in range(ROUNDS):
                begin = time.monotonic()
                service.ready.pop(0).process.kill()
                await settled("a relay is killed", begin)
                service.ready.append(start())
                await settled()
                await settled("NATS is started again", await restarted(nats, forgets=False))
                await settled("NATS is started again without its store", await restarted(nats, forgets=True))
    return times


def main():
    nats_program, *programs = sys.argv[1:]
    for program in programs:
        for fault, times in asyncio.run(measure(nats_program, program)).items():
            print(f"{program}: {fault}: {', '.join(f'{seconds:.1f} s' for seconds in times)}", flush=True)


if __name__ == "__main__":
    main()
