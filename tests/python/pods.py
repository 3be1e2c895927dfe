"""Runs the NATS servers and relays of the Kubernetes manifests as processes.

Each has the arguments, files and variables that its pod would have; only addresses and paths are those of this
machine."""

import collections
import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request

from manifests import ROOT, Pod, RelayPod, adapted, one
from nats_client import until
from relay import PATIENCE, free_port


def secret():
    """Returns a secret, as k8s/README.md tells operators to make one."""
    line = re.search(r"^\$ (random\(\) \{.*\})$", (ROOT / "k8s/README.md").read_text(), re.MULTILINE)[1]
    return subprocess.run(["bash", "-c", f"{line}; random"], check=True, capture_output=True, text=True).stdout


SECRETS = {
    "switchboard": {"tickets": secret()},
    # A password that NATS would read as a number if it were not in quotes.
    "switchboard-nats": {"password": "12e45", "routes-password": secret()},
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
    """A running process and its log."""

    def __init__(self, command, environment):
        self.log = tempfile.TemporaryFile("a+")
        self.process = subprocess.Popen(command, env=environment, stderr=self.log)

    def text(self):
        self.log.seek(0)
        return self.log.read()

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def end(self, patience=PATIENCE):
        # A process that is stopped does not act on SIGTERM.
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()


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

    def stop(self):
        """Stops the server as the kubelet does: the hook, SIGTERM, and the wait for its end."""
        self.pre_stop()
        self.process.signal(signal.SIGTERM)
        self.process.process.wait(self.stateful["spec"]["template"]["spec"]["terminationGracePeriodSeconds"])
        assert self.process.process.returncode == 0, self.process.text()


class Relay:
    """A pod of the Deployment. `url` is that of NATS, if it is not one of `servers`.

    `settings` are variables without their prefix. By default the drain waits for nothing."""

    def __init__(self, documents, secrets, binary, folder, servers, name, url=None, settings=None):
        self.pod, self.name, self.binary = RelayPod(documents, secrets, f"{folder}/{name}"), name, binary
        self.port, self.admin = free_port(), free_port()
        environment = self.pod.environment()
        scheme = environment["SWITCHBOARD__CLUSTER__NATS_URL"].partition(":")[0]
        urls = [f"{scheme}://localhost:{one.port}" for one in servers]
        environment["SWITCHBOARD__CLUSTER__NATS_URL"] = url or ",".join(urls)
        environment["SWITCHBOARD__SERVER__LISTEN"] = f"127.0.0.1:{self.port}"
        environment["SWITCHBOARD__ADMIN__LISTEN"] = f"127.0.0.1:{self.admin}"
        settings = settings or {"DRAIN__DELAY": "0s", "DRAIN__SPREAD": "0s"}
        self.environment = environment | {f"SWITCHBOARD__{key}": value for key, value in settings.items()}
        self.start()

    def start(self):
        self.process = Process(self.pod.command(self.binary, "serve"), self.environment)

    def ready(self):
        return status(f"http://127.0.0.1:{self.admin}/readyz") == 200

    def metrics(self):
        """Returns the value of each metric, summed over its series."""
        values = collections.Counter()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=5) as answer:
            for line in answer.read().decode().splitlines():
                if not line.startswith("#"):
                    series, value = line.rsplit(" ", 1)
                    values[series.partition("{")[0]] += float(value)
        return values

    def up(self):
        """Returns whether the relay is linked to NATS."""
        return self.metrics()["switchboard_cluster_up"] == 1

    def until_ready(self):
        until(f"the relay is ready: {self.process.text()}", self.ready)


class Case:
    """Servers and relays of one rendering, which a `with` statement stops."""

    def __init__(self, binary, nats, overlay, components=(), secrets=SECRETS, servers=1, relays=2):
        self.binary, self.nats = binary, nats
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
            self.servers.append(Server(self.documents, self.secrets, self.nats, self.folder.name, number, peers))
            self.servers[-1].start()
        for server in self.servers:
            server.until_ready()
        for number in range(self.relay_count):
            self.relays.append(self.relay(f"relay-{number}", self.binary))
        for relay in self.relays:
            relay.until_ready()

    def relay(self, name, binary, **options):
        """Starts a relay, which the caller adds to `relays`, or ends."""
        return Relay(self.documents, self.secrets, binary, self.folder.name, self.servers, name, **options)

    def __exit__(self, *_):
        for running in [*self.relays, *self.servers]:
            if running.process:
                running.process.end(5)
        self.folder.cleanup()
