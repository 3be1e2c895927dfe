#!/usr/bin/env python3
"""Runs the NATS servers and relays of the Kubernetes manifests as processes, and tries what they must refuse.

    tests/python/link.py BINARY NATS_SERVER [NAME...]

Each server has the arguments, files and variables that its pod would have; only addresses and paths are those of
this machine. With names, only those functions run."""

import asyncio
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import websockets
import yaml

from manifests import ROOT, Pod, RelayPod, adapted, one
from nats_client import Client, until
from relay import PATIENCE, free_port



def random():
    """Returns a secret, as k8s/README.md tells operators to make one."""
    line = re.search(r"^\$ (random\(\) \{.*\})$", (ROOT / "k8s/README.md").read_text(), re.MULTILINE)[1]
    return subprocess.run(["bash", "-c", f"{line}; random"], check=True, capture_output=True, text=True).stdout


SECRETS = {
    "switchboard": {"tickets": random()},
    # A password that NATS would read as a number if it were not in quotes.
    "switchboard-nats": {"password": "12e45", "routes-password": random()},
}


def status(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


class Process:
    """A process that a `with` statement starts and ends."""

    def __init__(self, command, environment):
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(command, env=environment, stderr=self.log)

    def text(self):
        self.log.seek(0)
        return self.log.read()

    def end(self, patience=PATIENCE):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Server:
    """A pod of the StatefulSet. `peers` are the ports of all servers for each other."""

    def __init__(self, documents, secrets, program, folder, number=0, peers=()):
        self.stateful = one(documents, "StatefulSet")
        self.pod = Pod(documents, self.stateful, secrets, f"{self.stateful['metadata']['name']}-{number}")
        self.program, self.root, self.peers = program, f"{folder}/nats-{number}", peers
        self.port, self.monitor, self.number = free_port(), free_port(), number
        self.process = None

    def start(self):
        self.pod.write_files(self.root)
        for path in pathlib.Path(self.root).rglob("*.conf"):
            path.write_text(self.here(path.read_text()))
        variables = {name: self.here(text) for name, text in self.pod.variables().items()}
        command = [self.program, *map(self.here, self.pod.arguments())]
        self.process = Process(command, {"PATH": os.environ["PATH"], **variables})

    def here(self, text):
        """Puts addresses and paths of this machine in the place of those in the pod."""
        text = text.replace("0.0.0.0:4222", f"127.0.0.1:{self.port}").replace("0.0.0.0:8222", f"127.0.0.1:{self.monitor}")
        if self.peers:
            text = text.replace("0.0.0.0:6222", f"127.0.0.1:{self.peers[self.number]}")
            service = self.stateful["spec"]["serviceName"]
            text = re.sub(rf"{service}-(\d)\.{service}:6222", lambda found: f"127.0.0.1:{self.peers[int(found[1])]}", text)
        return re.sub(r"(?<![\w.:/$])/(etc|data|run)\b", rf"{self.root}/\1", text)

    def probe(self, name):
        return status(f"http://127.0.0.1:{self.monitor}{self.pod.container[name]['httpGet']['path']}") == 200

    def until_ready(self):
        probes = ("startupProbe", "readinessProbe", "livenessProbe")
        until(f"{self.pod.name} is ready", lambda: all(map(self.probe, probes)))

    def ask(self, page):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.monitor}/{page}", timeout=5) as answer:
            return json.load(answer)

    def pre_stop(self):
        """Runs the command of the preStop hook, with the id that the server has here."""
        command = self.pod.container["lifecycle"]["preStop"]["exec"]["command"]
        command = [part.replace("ldm=1 ", f"ldm={self.process.process.pid} ") for part in command]
        path = f"{os.path.dirname(self.program)}:{os.environ['PATH']}"
        subprocess.run(command, env={"PATH": path}, check=True)

    def wait(self):
        self.process.process.wait(self.stateful["spec"]["template"]["spec"]["terminationGracePeriodSeconds"])


class Relay:
    """A pod of the Deployment."""

    def __init__(self, documents, secrets, binary, folder, servers, name, url=None):
        pod = RelayPod(documents, secrets, f"{folder}/{name}")
        self.port, self.admin = free_port(), free_port()
        environment = pod.environment()
        scheme = environment["SWITCHBOARD__CLUSTER__NATS_URL"].partition(":")[0]
        urls = [f"{scheme}://localhost:{one.port}" for one in servers]
        environment["SWITCHBOARD__CLUSTER__NATS_URL"] = url or ",".join(urls)
        environment["SWITCHBOARD__SERVER__LISTEN"] = f"127.0.0.1:{self.port}"
        environment["SWITCHBOARD__ADMIN__LISTEN"] = f"127.0.0.1:{self.admin}"
        environment["SWITCHBOARD__DRAIN__DELAY"] = environment["SWITCHBOARD__DRAIN__SPREAD"] = "0s"
        self.process = Process(pod.command(binary, "serve"), environment)

    def ready(self):
        return status(f"http://127.0.0.1:{self.admin}/readyz") == 200

    def up(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=5) as answer:
            return "\nswitchboard_cluster_up 1\n" in answer.read().decode()

    def until_ready(self):
        until(f"the relay is ready: {self.process.text()}", self.ready)

    async def user(self):
        client = await websockets.connect(f"ws://127.0.0.1:{self.port}/", subprotocols=["switchboard.v1"])
        return client, json.loads(await client.recv())["user_id"]


class Case:
    """Servers and relays of one rendering, which a `with` statement stops."""

    def __init__(self, overlay, components=(), secrets=SECRETS, servers=1, relays=2):
        self.documents, self.secrets = adapted(overlay, components), secrets
        self.count, self.relay_count = servers, relays

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.servers, self.relays = [], []
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self):
        assert one(self.documents, "StatefulSet")["spec"]["replicas"] == self.count
        peers = [free_port() for _ in range(self.count)]
        for number in range(self.count):
            self.servers.append(Server(self.documents, self.secrets, NATS, self.folder.name, number, peers))
            self.servers[-1].start()
        for server in self.servers:
            server.until_ready()
        for number in range(self.relay_count):
            self.relays.append(Relay(self.documents, self.secrets, BINARY, self.folder.name, self.servers, f"relay-{number}"))
        for relay in self.relays:
            relay.until_ready()

    def __exit__(self, *_):
        for running in [*self.relays, *self.servers]:
            if running.process:
                running.process.end(5)
        self.folder.cleanup()


async def talk(relays):
    """A user of each relay writes to the other."""
    one, two = [await relay.user() for relay in relays]
    await exchange(one, two)
    await one[0].close()
    await two[0].close()


async def exchange(one, two):
    for (sender, _), (_, recipient) in ((one, two), (two, one)):
        assert await send(sender, recipient) == "delivered"


async def send(sender, recipient):
    await sender.send(json.dumps({"recipient_id": recipient, "message": "Go Braves!", "id": 1}))
    async with asyncio.timeout(PATIENCE):
        while True:
            frame = json.loads(await sender.recv())
            if frame["type"] == "outcome":
                return frame["status"]


def a_stranger_is_refused_and_a_password_opens_no_more_than_a_relay_needs():
    with Case("cluster") as case:
        asyncio.run(talk(case.relays))
        port = case.servers[0].port
        for options in ({}, {"user": "switchboard", "pass": "guess"}, {"user": "routes", "pass": SECRETS["switchboard-nats"]["routes-password"]}):
            refused = Client(port, **options).hear()
            assert "Authorization Violation" in refused, (options, refused)

        thief = Client(port, user="switchboard", **{"pass": SECRETS["switchboard-nats"]["password"]})
        thief.say("SUB switchboard.2.n.1.thief 1")
        assert thief.hear() == ""
        for subject in (">", "*", "switchboard.>", "other.>", "$SYS.>", "$JS.>", "_INBOX.>"):
            thief.say(f"SUB {subject} 2")
            assert "Permissions Violation for Subscription" in thief.hear(), subject
        stream = next(name for name in re.findall(r"STREAM\.INFO\.(\w+)", permissions()))
        for subject in ("other", f"$JS.API.STREAM.DELETE.{stream}", f"$JS.API.STREAM.PURGE.{stream}",
                        f"$JS.API.STREAM.UPDATE.{stream}", f"$JS.API.STREAM.MSG.DELETE.{stream}", "$JS.API.STREAM.NAMES",
                        "$JS.API.STREAM.CREATE.mine", "$SYS.REQ.SERVER.PING"):
            thief.say(f"PUB {subject} switchboard.2.n.1.thief 2", "{}")
            assert "Permissions Violation for Publish" in thief.hear(), subject
        asyncio.run(talk(case.relays))


def permissions():
    return (ROOT / "config/nats/permissions.conf").read_text()


def tls_is_spoken_where_its_component_is_added():
    secrets = {**SECRETS, "switchboard-nats-tls": certificates()}
    with Case("cluster", ["nats-tls"], secrets) as case:
        stranger = Client(case.servers[0].port, user="switchboard", **{"pass": SECRETS["switchboard-nats"]["password"]})
        assert stranger.info["tls_required"], stranger.info
        assert stranger.hear().endswith("closed"), "the server answers a client without TLS"
        asyncio.run(talk(case.relays))
        # Another authority did not sign the server's certificate.
        others = {**secrets, "switchboard-nats-tls": certificates()}
        other = Relay(case.documents, others, BINARY, case.folder.name, case.servers, "other")
        until("the relay has tried", lambda: "nats is away" in other.process.text())
        assert not other.ready()
        other.process.end()


def certificates():
    """Returns an authority, and a certificate of it for localhost: what the Secret has, as cert-manager writes it."""
    with tempfile.TemporaryDirectory() as folder:
        def openssl(*arguments):
            subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

        new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        openssl(*new, "-x509", "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=authority", "-days", "1")
        openssl(*new, "-keyout", "tls.key", "-out", "tls.csr", "-subj", "/CN=switchboard-nats")
        pathlib.Path(folder, "names").write_text("subjectAltName=DNS:localhost,DNS:switchboard-nats")
        openssl("x509", "-req", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1",
                "-extfile", "names", "-out", "tls.crt")
        return {name: pathlib.Path(folder, name).read_text() for name in ("ca.crt", "tls.crt", "tls.key")}


def an_existing_nats_is_used_with_the_shipped_permissions():
    """The overlay for it, with a server that has nothing else of the manifests."""
    documents = adapted("cluster-existing-nats")
    secrets = {"switchboard": {"tickets": random(), "nats-password": random()}}
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        config = pathlib.Path(folder, "nats.conf")
        config.write_text(f"""port: {port}\njetstream {{ store_dir: {folder}/store }}\n"""
                          f"""authorization {{ users: [ {{\nuser: switchboard\npassword: "{secrets['switchboard']['nats-password']}"\n"""
                          f"""{permissions()}\n}} ] }}\n""")
        nats = Process([NATS, "--config", str(config)], {"PATH": os.environ["PATH"]})
        relays = []
        try:
            for name in ("one", "two"):
                relay = Relay(documents, secrets, BINARY, folder, [], name, f"nats://127.0.0.1:{port}")
                relays.append(relay)
                relay.until_ready()
            asyncio.run(talk(relays))
        finally:
            for running in [*(relay.process for relay in relays), nats]:
                running.end(5)


def three_servers_are_replaced_one_by_one_while_users_are_connected():
    with Case("cluster-three", servers=3) as case:
        asyncio.run(replace_all(case))


async def replace_all(case):
    one, two = [await relay.user() for relay in case.relays]
    await exchange(one, two)
    asked, unready = 0, 0
    outcomes = {}
    for server in case.servers:
        # As the kubelet does: the hook, then SIGTERM. The server leaves when its connections have moved.
        begin, connections = time.monotonic(), server.ask("connz")["num_connections"]
        await asyncio.to_thread(server.pre_stop)
        server.process.process.send_signal(signal.SIGTERM)
        gone = asyncio.create_task(asyncio.to_thread(server.wait))
        while not gone.done():
            outcome = await send(one[0], two[1])
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            asked += 1
            unready += not all([await asyncio.to_thread(relay.ready) for relay in case.relays])
            await asyncio.sleep(0.05)
        await gone
        took = time.monotonic() - begin
        assert server.process.process.returncode == 0, server.process.text()
        # The grace period of the lame duck: SIGTERM has not ended it.
        assert took > 4 or connections == 0, server.process.text()
        server.start()
        await asyncio.to_thread(server.until_ready)
        for relay in case.relays:
            await asyncio.to_thread(until, "the relay is linked", relay.up)
        await exchange(one, two)
        print(f"  {server.pod.name} left within {took:.1f} s and is back")
    print(f"  {asked} messages between the relays meanwhile: {outcomes}; relays found unready {unready} times")
    assert unready == 0, "a relay was not ready while one of three NATS servers was replaced"
    # What src/cluster/README.md promises while a node is without its link.
    assert set(outcomes) <= {"delivered", "unavailable", "unknown", "offline"}, outcomes
    assert outcomes["delivered"] > 0.5 * asked, outcomes
    newcomer = await case.relays[0].user()
    await exchange(newcomer, two)


def a_server_without_the_password_of_the_routes_stays_alone():
    with Case("cluster-three", servers=3, relays=0) as case:
        peers = [*case.servers[0].peers]
        peers[0] = free_port()
        secrets = {**SECRETS, "switchboard-nats": {**SECRETS["switchboard-nats"], "routes-password": SECRETS["switchboard-nats"]["password"]}}
        stranger = Server(case.documents, secrets, NATS, f"{case.folder.name}/stranger", 0, peers)
        stranger.start()
        try:
            until("it was refused", lambda: "Authorization" in stranger.process.text() or "authentication error" in case.servers[1].process.text())
            for server in case.servers[1:]:
                servers = {route["remote_id"] for route in server.ask("routez")["routes"]}
                assert stranger.ask("varz")["server_id"] not in servers
        finally:
            stranger.process.end(5)


CASES = [
    a_stranger_is_refused_and_a_password_opens_no_more_than_a_relay_needs,
    tls_is_spoken_where_its_component_is_added,
    an_existing_nats_is_used_with_the_shipped_permissions,
    three_servers_are_replaced_one_by_one_while_users_are_connected,
    a_server_without_the_password_of_the_routes_stays_alone,
]

BINARY, NATS, *names = sys.argv[1:]
BINARY, NATS = os.path.abspath(BINARY), os.path.abspath(NATS)
for case in CASES:
    if not names or case.__name__ in names:
        begin = time.monotonic()
        case()
        print(f"ok {case.__name__} ({time.monotonic() - begin:.1f} s)", flush=True)
