#!/usr/bin/env python3
"""Updates a cluster from one build to another and back, as k8s/README.md says, while users write to each other.

    tests/python/rolling_update.py OLD NEW NATS_SERVER [OPTION...]

The relays and the NATS servers are processes with the settings of the overlay cluster-three. With --chaos they are
those of the overlay cluster, a relay of OLD between two of NEW, and are killed, stopped and cut off instead.

In the end every user has the id with which it began. Each message that was delivered has arrived once, and no message
twice. Each message of a connection that lives has one outcome, and what has happened explains that outcome. The ledger
of each relay adds up."""

import argparse
import asyncio
import collections
import contextlib
import filecmp
import json
import os
import random
import re
import signal
import socket
import sys
import threading
import time
import tomllib
import urllib.request

from manifests import K8S, one
from pods import Case
from relay import TOKEN, Relay
from users import Users

# Outcomes of messages to another relay that cannot be reached, as src/cluster/README.md promises them.
MISSED = {"offline", "unavailable", "unknown"}


def build(binary):
    """Returns the version and the revision of a build, as its metrics show them."""
    with Relay(binary) as relay:
        request = urllib.request.Request(f"{relay.api}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request) as answer:
            return re.search(r"switchboard_build_info(\{.*\})", answer.read().decode())[1]


class Service:
    """Gives each new connection a relay that is ready, as the Service of Kubernetes does."""

    def __init__(self, period):
        self.period, self.ready, self.probes = period, [], {}

    def watch(self, relay):
        self.probes[relay] = asyncio.create_task(self.probe(relay))

    async def probe(self, relay):
        while True:
            if await asyncio.to_thread(relay.ready):
                if relay not in self.ready:
                    self.ready.append(relay)
            elif relay in self.ready:
                self.ready.remove(relay)
            await asyncio.sleep(self.period)

    def forget(self, relay):
        self.probes.pop(relay).cancel()
        if relay in self.ready:
            self.ready.remove(relay)

    def choose(self):
        if not self.ready:
            raise ConnectionError("no relay is ready")
        return random.choice(self.ready)


class Deployment:
    """The relays of a case, with their Service and users. The waits of the manifests are divided by `divisor`."""

    def __init__(self, case, users, divisor, settings=None):
        self.case, self.started, self.totals, self.killed = case, 0, collections.Counter(), 0
        spec = one(case.documents, "Deployment")["spec"]
        self.min_ready, self.grace = spec["minReadySeconds"] / divisor, spec["template"]["spec"]["terminationGracePeriodSeconds"]
        self.service = Service(spec["template"]["spec"]["containers"][0]["readinessProbe"]["periodSeconds"] / divisor)
        self.users = Users(self.service, users)
        drain = tomllib.loads((K8S / "base/switchboard.toml").read_text())["drain"]
        self.settings = {f"DRAIN__{key.upper()}": f"{1000 * int(drain[key].removesuffix('s')) // divisor}ms"
                         for key in ("delay", "spread")} | (settings or {})

    async def add(self, binary, **options):
        """Starts a relay, and waits until it is ready."""
        self.started += 1
        relay = self.case.relay(f"relay-{self.started}", binary, settings=self.settings, **options)
        self.case.relays.append(relay)
        self.service.watch(relay)
        await self.until_ready(relay)
        return relay

    async def until_ready(self, relay):
        await asyncio.to_thread(relay.until_ready)
        while relay not in self.service.ready:
            await asyncio.sleep(self.service.period)

    async def roll_out(self, binary):
        """Replaces each relay by one of another build, as the Deployment does: one relay more starts, and when it has
        been ready for a while, an old one drains while the next one starts."""
        drains, begin = [], time.monotonic()
        for old in list(self.case.relays):
            new = await self.add(binary)
            await asyncio.sleep(self.min_ready)
            drains.append(asyncio.create_task(self.drain(old)))
            print(f"  {time.monotonic() - begin:5.1f} s: {new.name} is ready, {old.name} drains", flush=True)
        await asyncio.gather(*drains)
        print(f"  {time.monotonic() - begin:5.1f} s: the last relay has drained", flush=True)
        await self.users.until_at(self.case.relays)
        await self.users.until_delivered(self.case.relays)

    async def drain(self, relay):
        """Ends a relay as the kubelet does, and checks its last log line."""
        # What reaches the relay after it has left NATS is lost.
        with self.users.disturbance([relay], {"unknown"}):
            relay.process.signal(signal.SIGTERM)
            await asyncio.to_thread(relay.process.process.wait, self.grace)
        self.case.relays.remove(relay)
        self.service.forget(relay)
        log = relay.process.text()
        assert relay.process.process.returncode == 0 and "panicked" not in log, log
        last = json.loads(log.splitlines()[-1])
        assert last["message"] == "drained" and last["left"] == 0, last
        self.totals.update(cluster_sent=last["cluster_sent"], cluster_received=last["cluster_received"])
        settled = sum(last[key] for key in ("delivered", "dropped", "mailbox", "cluster_sent"))
        if gap := last["received"] + last["cluster_received"] - settled:
            self.users.fault(f"the ledger of {relay.name} lacks {gap} messages: {last}")

    async def replace_nats(self):
        """Replaces each NATS server, as the StatefulSet does."""
        for server in self.case.servers:
            begin = time.monotonic()
            with self.users.disturbance(self.case.relays, MISSED):
                # In order to move its relays, the server leaves slowly.
                stopped, connections = asyncio.create_task(asyncio.to_thread(server.stop)), server.ask("connz")["num_connections"]
                while not stopped.done():
                    if len(self.service.ready) < len(self.case.relays):
                        self.users.fault("a relay was not ready while one of three NATS servers was replaced")
                    await asyncio.sleep(self.service.period)
                await stopped
                left = time.monotonic() - begin
                assert left > 4 or not connections, server.process.text()
                server.start()
                await asyncio.to_thread(server.until_ready)
                await self.until_up()
            print(f"  {server.pod.name} left within {left:.1f} s and is back", flush=True)

    async def until_up(self):
        """Waits until all relays are linked, and reach each other."""
        for relay in self.case.relays:
            await self.users.until(f"{relay.name} is linked", relay.up)
        await self.users.until_delivered(self.case.relays)

    async def kill(self, relay):
        """Kills a relay, and starts it again when its users are elsewhere."""
        with self.users.disturbance([relay], MISSED):
            relay.process.kill()
            self.killed += 1
            await self.until_elsewhere(relay)
        relay.start()
        await self.until_ready(relay)

    async def stop(self, relay):
        """Stops a relay, and lets it go on when its users are elsewhere."""
        with self.users.disturbance([relay], MISSED):
            relay.process.signal(signal.SIGSTOP)
            await self.until_elsewhere(relay)
            relay.process.signal(signal.SIGCONT)
            await self.until_ready(relay)

    async def until_elsewhere(self, relay):
        begin, others = time.monotonic(), [other for other in self.case.relays if other is not relay]
        await self.users.until_at(others)
        await self.users.until_delivered(others)
        print(f"  all users reach each other again after {time.monotonic() - begin:.1f} s", flush=True)

    async def cut_off(self, relay, proxy):
        """Lets nothing pass between a relay and NATS, until the others take the relay for dead."""
        with self.users.disturbance([relay], MISSED):
            first, users = len(self.users.messages), [user for user in self.users.members if user.is_at([relay])]
            sessions = [user.sessions[-1] for user in users]
            proxy.passes.clear()
            await self.users.until("the relay notices", lambda: not relay.up())
            await self.users.until("the others notice", lambda: any(
                message.outcome() == "offline" and message.recipient in users for message in self.users.messages[first:]))
            others = [other for other in self.case.relays if other is not relay]
            await self.users.until_delivered([relay])
            await self.users.until_delivered(others)
            proxy.passes.set()
            await self.until_up()
        if [user.sessions[-1] for user in users] != sessions:
            self.users.fault("a user of the relay that was cut off has lost its connection")

    async def kill_nats(self):
        """Kills the only NATS server, and starts it again when all relays have noticed."""
        [server] = self.case.servers
        with self.users.disturbance(self.case.relays, MISSED):
            server.process.kill()
            await self.users.until("all relays notice", lambda: not any(relay.up() for relay in self.case.relays))
            server.start()
            await asyncio.to_thread(server.until_ready)
            await self.until_up()

    async def end(self):
        """Ends all relays, after the users."""
        for relay in list(self.case.relays):
            await self.drain(relay)
        if not self.killed:
            print(f"messages lost between relays: {self.totals['cluster_sent'] - self.totals['cluster_received']}")
        if self.users.faults:
            sys.exit(f"{len(self.users.faults)} faults")


class Proxy:
    """Stands between a relay and NATS. While `passes` is not set, it keeps what it has read. It runs in threads of its
    own, so that hundreds of users do not delay the link."""

    def __init__(self, target):
        self.target, self.passes, self.listener = target, threading.Event(), socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.passes.set()
        self.start(self.accept)

    def start(self, function, *arguments):
        threading.Thread(target=function, args=arguments, daemon=True).start()

    def accept(self):
        while True:
            near, _ = self.listener.accept()
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                near.close()
                continue
            self.start(self.pump, near, far)
            self.start(self.pump, far, near)

    def pump(self, one, other):
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                self.passes.wait()
                other.sendall(data)
        for end in (one, other):
            # The other pump reads the end of its stream, too.
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


async def update(case, options):
    deployment = Deployment(case, options.users, 1 if options.deployed_times else 10)
    for _ in range(3):
        await deployment.add(options.old)
    async with deployment.users as users:
        await users.until_at(case.relays)
        await users.until_delivered(case.relays)
        users.phase("update")
        await deployment.roll_out(options.new)
        users.phase("update of NATS")
        await deployment.replace_nats()
        users.phase("roll back")
        await deployment.roll_out(options.old)
        await users.finish()
    await deployment.end()


async def chaos(case, options):
    # A user asks after 1.2 of these intervals whether its relay is there, and waits for 5 s.
    deployment = Deployment(case, options.users, 10, {"KEEPALIVE__PING_INTERVAL": "1s"})
    [server] = case.servers
    proxy = Proxy(server.port)
    killed, stopped = [await deployment.add(binary) for binary in (options.new, options.old)]
    cut_off = await deployment.add(options.new, url=f"nats://127.0.0.1:{proxy.port}")
    async with deployment.users as users:
        await users.until_at(case.relays)
        await users.until_delivered(case.relays)
        users.phase("a relay is killed")
        await deployment.kill(killed)
        users.phase("a relay is stopped")
        await deployment.stop(stopped)
        users.phase("a relay is cut off")
        await deployment.cut_off(cut_off, proxy)
        users.phase("NATS is killed")
        await deployment.kill_nats()
        await users.finish()
    await deployment.end()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for binary in ("old", "new", "nats_server"):
        parser.add_argument(binary, type=os.path.abspath)
    parser.add_argument("--same-revision", action="store_true",
                        help="the builds need not differ in their revision, which is SWITCHBOARD_REVISION when they were built")
    parser.add_argument("--deployed-times", action="store_true", help="wait as long as the manifests say, and not a tenth of it")
    parser.add_argument("--chaos", action="store_true", help="kill, stop and cut off relays, and kill NATS")
    parser.add_argument("--users", type=int, default=300)
    options = parser.parse_args()
    old, new = build(options.old), build(options.new)
    print(f"old: {old}\nnew: {new}")
    if filecmp.cmp(options.old, options.new, shallow=False) or (old == new and not options.same_revision):
        sys.exit("both are the same build; set SWITCHBOARD_REVISION when you build them, or see --same-revision")
    overlay, servers, run = ("cluster", 1, chaos) if options.chaos else ("cluster-three", 3, update)
    with Case(options.old, options.nats_server, overlay, servers=servers, relays=0) as case:
        asyncio.run(run(case, options))
    print("ok")


main()
