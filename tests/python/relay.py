"""Starts relays and NATS servers on free ports, for the tests in Python."""

import json
import os
import random
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request

TOKEN = "let-me-in"
PATIENCE = 30


def free_port():
    """Returns a port that is free now."""
    while True:
        # Below the ports that the kernel gives to connections and to listeners on port 0: one of these could take the
        # port before its owner listens, or while its owner is restarted.
        port = random.randrange(10_000, 32_768)
        with socket.socket() as free:
            # As servers do. Otherwise old connections to the port would count.
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                free.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Nats:
    """A NATS server with JetStream on a free port, which a `with` statement starts and stops."""

    def __init__(self, binary):
        self.binary = binary

    def __enter__(self):
        self.port = free_port()
        self.url, self.folder = f"nats://127.0.0.1:{self.port}", tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.run()
        return self

    def run(self):
        command = [self.binary, "--addr", "127.0.0.1", "--port", str(self.port), "--jetstream", "--store_dir", self.folder.name]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def __exit__(self, *_):
        self.kill()
        self.folder.cleanup()


class Relay:
    """A relay with the operators' API, which a `with` statement starts and stops.

    `settings` are variables without their prefix, such as DRAIN__DELAY."""

    def __init__(self, binary, **settings):
        self.binary, self.settings, self.log = binary, settings, []

    def __enter__(self):
        port, admin = free_port(), free_port()
        self.folder = tempfile.TemporaryDirectory()
        self.token_file = os.path.join(self.folder.name, "admin-token")
        with open(self.token_file, "w") as file:
            file.write(TOKEN)
        self.ws, self.http, self.api = f"ws://127.0.0.1:{port}/", f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}"
        settings = {"ADMIN__LISTEN": f"127.0.0.1:{admin}", "ADMIN__TOKEN_FILE": self.token_file, **self.settings}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SWITCHBOARD__")}
        environment |= {f"SWITCHBOARD__{key}": value for key, value in settings.items()}
        command = [self.binary, "--listen", f"127.0.0.1:{port}"]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        # The first line of the log says that the relay listens.
        first = self.process.stderr.readline()
        if "listening" not in first:
            raise SystemExit(f"the relay did not start: {first}")
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line)

    def ask(self, method, path, body=None, token=TOKEN):
        """Sends a request to the API, and returns status and body of the answer."""
        headers = {"Authorization": f"Bearer {token}"}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(self.api + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def gap(self):
        """Returns the messages that the ledger does not account for: 0 when no message is in flight."""
        messages = self.ask("GET", "/api/status")[1]["messages"]
        settled = messages["delivered"] + sum(messages["dropped"].values()) + messages["mailbox"] + messages["cluster_sent"]
        return messages["received"] + messages["cluster_received"] - settled

    def freeze(self):
        """Stops all threads of the relay until `thaw`."""
        self.process.send_signal(signal.SIGSTOP)
        tasks = f"/proc/{self.process.pid}/task"

        def is_still(task):
            with open(f"{tasks}/{task}/stat", encoding="utf-8") as file:
                # The state follows the name of the thread, which is in parentheses (proc(5)).
                return ") T " in file.read()

        self.eventually("all threads stopped", lambda: all(map(is_still, os.listdir(tasks))))

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def eventually(self, what, look):
        deadline = time.monotonic() + PATIENCE
        while not (seen := look()):
            if time.monotonic() > deadline:
                raise SystemExit(f"not within {PATIENCE} s: {what}")
            time.sleep(0.05)
        return seen

    def __exit__(self, *_):
        self.thaw()
        for _ in range(2):
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGINT)
                try:
                    self.process.wait(10)
                except subprocess.TimeoutExpired:
                    pass
        if self.process.poll() is None:
            self.process.kill()
        self.folder.cleanup()
