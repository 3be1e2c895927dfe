"""Measures what each user costs a relay: `scale_cost.py BINARY [USERS...]` (1000 5000 15000).

Starts a relay for each number of users, on the first CPU; the users are on the second. Prints

- memory for each user: when all users are idle, after each has sent itself 60 KB, and after all have left;
- CPU of the relay for a new connection, for a keepalive (ping and pong), and for a message between random
  users;
- the straight line through the memory with idle users, and what it gives for a million users.

Relay and users need a file descriptor for each connection, so the limit of open files bounds the users.
"""

import os
import random
import resource
import selectors
import socket
import struct
import subprocess
import sys
import time

PORT = 18093
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
# A masking key of zeros does not change the payload (RFC 6455, section 5.3).
KEY = bytes(4)
PING_SECONDS = 10
ROUNDS = 10
LARGE = 60 * 1024
SETTLE = 1.0


def text_frame(payload):
    if len(payload) < 126:
        return struct.pack("!BB", 0x81, 0x80 | len(payload)) + KEY + payload
    return struct.pack("!BBH", 0x81, 0x80 | 126, len(payload)) + KEY + payload


def message(recipient, size):
    return text_frame(b'{"recipient_id":%d,"message":"%s"}' % (recipient, b"x" * size))


def pss_bytes(pid):
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        return next(int(line.split()[1]) for line in rollup if line.startswith("Pss:")) * 1024


def cpu_us(pid):
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat") as schedstat:
            total += int(schedstat.read().split()[0])
    return total / 1000


def connect():
    for _ in range(200):
        try:
            return socket.create_connection(("127.0.0.1", PORT))
        except ConnectionRefusedError:
            time.sleep(0.05)
    sys.exit(f"the relay does not accept connections on 127.0.0.1:{PORT}")


class User:
    def __init__(self):
        self.socket = connect()
        self.socket.sendall(HANDSHAKE)
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.socket.recv(4096)
        assert head.startswith(b"HTTP/1.1 101 "), head
        self.id = int(head.split(b"x-user-id: ")[1].split(b"\r\n")[0])
        self.unparsed = b""

    def frames(self, more):
        """Yields opcode and payload of each whole frame in the bytes that have arrived."""
        self.unparsed += more
        while len(self.unparsed) >= 2:
            length, start = self.unparsed[1], 2
            if length == 126:
                if len(self.unparsed) < 4:
                    return
                length, start = struct.unpack("!H", self.unparsed[2:4])[0], 4
            if len(self.unparsed) < start + length:
                return
            yield self.unparsed[0] & 15, self.unparsed[start : start + length]
            self.unparsed = self.unparsed[start + length :]


class Users:
    def __init__(self, count):
        self.selector = selectors.EpollSelector()
        self.all = [User() for _ in range(count)]
        self.messages = self.pings = 0
        for user in self.all:
            self.selector.register(user.socket, selectors.EVENT_READ, user)

    def read(self, timeout):
        """Reads what has arrived, and answers pings."""
        for key, _ in self.selector.select(timeout):
            more = key.fileobj.recv(1 << 17)
            assert more, "the relay has closed a connection"
            for opcode, payload in key.data.frames(more):
                if opcode == 9:
                    self.pings += 1
                    pong = struct.pack("!BB", 0x8A, 0x80 | len(payload))
                    key.fileobj.sendall(pong + KEY + payload)
                else:
                    assert opcode == 1, opcode
                    self.messages += 1

    def read_messages(self, count):
        until = self.messages + count
        deadline = time.monotonic() + 60
        while self.messages < until:
            assert time.monotonic() < deadline, f"{until - self.messages} messages did not arrive within 60 s"
            self.read(1)

    def read_for(self, seconds):
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.read(left)


def measure(pid, count):
    User().socket.close()
    time.sleep(SETTLE)
    base, begin = pss_bytes(pid), cpu_us(pid)
    users = Users(count)
    opened = (cpu_us(pid) - begin) / count
    users.read_for(SETTLE)
    idle = (pss_bytes(pid) - base) / count

    # The first ping of each user comes in the second half of the interval, so one interval passes first.
    users.read_for(PING_SECONDS)
    begin, pings = cpu_us(pid), users.pings
    users.read_for(PING_SECONDS)
    keepalive = (cpu_us(pid) - begin) / (users.pings - pings)

    choose = random.Random(7).choice
    begin = cpu_us(pid)
    for _ in range(ROUNDS):
        for user in users.all:
            user.socket.sendall(message(choose(users.all).id, 32))
        users.read_messages(count)
    a_message = (cpu_us(pid) - begin) / (ROUNDS * count)

    for first in range(0, count, 50):
        some = users.all[first : first + 50]
        for user in some:
            user.socket.sendall(message(user.id, LARGE))
        users.read_messages(len(some))
    users.read_for(SETTLE)
    quiet = (pss_bytes(pid) - base) / count

    for user in users.all:
        user.socket.close()
    time.sleep(SETTLE)
    left = (pss_bytes(pid) - base) / count
    print(
        f"| {count:,} | {idle:,.0f} | {quiet:,.0f} | {left:,.0f} | {opened:.1f} | {keepalive:.1f} | {a_message:.1f} |",
        flush=True,
    )
    return base, base + idle * count


def fit(points):
    """Returns the value at zero and the slope of the straight line through the points, by least squares."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    return mean_y - slope * mean_x, slope


def main():
    _, binary, *counts = sys.argv
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    settings = {
        "SERVER__LISTEN": f"127.0.0.1:{PORT}",
        "KEEPALIVE__PING_INTERVAL": f"{PING_SECONDS}s",
        "LOG__FILTER": "error",
    }
    environment = os.environ | {f"SWITCHBOARD__{key}": value for key, value in settings.items()}
    os.sched_setaffinity(0, {1})
    print("| users | idle, B each | after 60 KB, B each | gone, B each | opening, µs | keepalive, µs | message, µs |")
    print("| -: | -: | -: | -: | -: | -: | -: |")
    points = []
    for count in [int(count) for count in counts] or [1000, 5000, 15000]:
        command = ["taskset", "-c", "0", binary]
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as relay:
            try:
                base, with_users = measure(relay.pid, count)
            finally:
                relay.kill()
        points += [(0, base), (count, with_users)]
    at_zero, slope = fit(points)
    print(f"\nfit: {at_zero / 2**20:.1f} MiB + {slope:,.0f} B a user; a million users: {(at_zero + slope * 1e6) / 2**30:.2f} GiB")


main()
