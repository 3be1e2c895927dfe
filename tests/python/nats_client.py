"""A NATS client that says what it is told to, and hears what the server answers."""

import json
import socket
import sys
import time

from relay import PATIENCE


def until(what, look, pause=0.05):
    """Waits until `look` returns something true, and returns that."""
    deadline = time.monotonic() + PATIENCE
    while not (seen := look()):
        if time.monotonic() > deadline:
            sys.exit(f"not within {PATIENCE} s: {what}")
        time.sleep(pause)
    return seen


class Client:
    def __init__(self, port, **options):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.file = self.socket.makefile("rb")
        self.info = json.loads(self.file.readline().removeprefix(b"INFO "))
        self.say(f"CONNECT {json.dumps({'verbose': False, 'pedantic': False, 'headers': True, 'no_responders': True, **options})}")

    def say(self, *lines):
        try:
            self.socket.sendall("".join(f"{line}\r\n" for line in lines).encode())
        except OSError:
            pass  # the server has closed the connection, and `hear` says so

    def hear(self):
        """Returns what the server has said until its pong, or until it closed the connection."""
        self.say("PING")
        heard = []
        try:
            for line in self.file:
                if line.startswith(b"PONG"):
                    return "\n".join(heard)
                if line.startswith(b"PING"):
                    self.say("PONG")
                    continue
                heard.append(line.decode(errors="replace").strip())
        except OSError as error:
            heard.append(str(error))
        return "\n".join([*heard, "closed"])

    def request(self, subject, body):
        """Returns the answer to a request with a JSON body."""
        self.say("SUB answer 1", "UNSUB 1 1", f"PUB {subject} answer {len(body)}", body)
        while not self.file.readline().startswith(b"MSG answer "):
            pass
        return json.loads(self.file.readline())
