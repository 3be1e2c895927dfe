"""Starts the relay that cargo built on a free port, and waits for conditions."""

import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]


def binary() -> str:
    """Returns the binary that SWITCHBOARD_BIN names, or the newest one in the target folder."""
    if "SWITCHBOARD_BIN" in os.environ:
        return os.environ["SWITCHBOARD_BIN"]
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    built = [target / profile / "switchboard" for profile in ("debug", "release")]
    built = [path for path in built if path.exists()]
    assert built, f"no binary in {target}; build one with `cargo build`"
    return str(max(built, key=lambda path: path.stat().st_mtime))


def until(condition, what: str, timeout: float = 20.0):
    """Waits until `condition` returns a true value, and returns this value."""
    end = time.monotonic() + timeout
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, f"not within {timeout} s: {what}"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Relay:
    def __init__(self, *options: str, **settings: str):
        self.port = free_port()
        self.settings = settings
        self.origin = f"http://127.0.0.1:{self.port}"
        self.options = options
        self.restart()

    def restart(self):
        """Starts the relay on the same port, and waits until it is ready."""
        env = dict(os.environ)
        env["SWITCHBOARD__SERVER__LISTEN"] = f"127.0.0.1:{self.port}"
        env["SWITCHBOARD__LOG__FILTER"] = "warn"
        for key, value in self.settings.items():
            env[f"SWITCHBOARD__{key}"] = value
        # pytest shows what a failed test prints, so the log is printed when the relay stops.
        self.log_file = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([binary(), *self.options], env=env, stderr=self.log_file)
        until(self._serves, "the relay is ready")

    def log(self) -> str:
        """Returns the log so far."""
        self.log_file.seek(0)
        return self.log_file.read()

    def _serves(self) -> bool:
        assert self.process.poll() is None, f"the relay exited with {self.process.returncode}"
        try:
            return self.get("/readyz")[0] == 200
        except OSError:
            return False

    def get(self, path: str, **headers: str):
        """Sends a GET request, and returns status, headers and body."""
        request = urllib.request.Request(self.origin + path, headers=headers)
        try:
            answer = urllib.request.urlopen(request, timeout=5)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            return answer.status, answer.headers, answer.read().decode()

    def issue_token(self, expires_in: str = "1h") -> str:
        """Returns a token for this relay."""
        env = {**os.environ, **{f"SWITCHBOARD__{key}": value for key, value in self.settings.items()}}
        done = subprocess.run([binary(), "token", "issue", "--subject", "alice", "--expires-in", expires_in], env=env, capture_output=True, check=True)
        return done.stdout.decode().strip()

    def freeze(self):
        """Stops all threads of the relay until `thaw`."""
        self.process.send_signal(signal.SIGSTOP)
        tasks = pathlib.Path(f"/proc/{self.process.pid}/task")
        # The state follows the name of the thread, which is in parentheses (proc(5)).
        stopped = lambda task: ") T " in (task / "stat").read_text()
        until(lambda: all(stopped(task) for task in tasks.iterdir()), "all threads stopped")

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def stop(self, number: int = signal.SIGKILL):
        self.process.send_signal(number)
        self.process.wait(timeout=20)
        print(self.log())
