"""What users cost a relay by their number: `scale_cost.py BINARY [USERS...]` (1000 5000 15000).

For each number a relay of its own on the first CPU, and the users on the second: its memory when all are
silent, when each has sent itself 60 KB and is silent again, and when all have gone; its CPU for a
connection that opens, for a keepalive (ping and pong) and for a message from anybody to anybody. Then the
straight line through the memory of the silent ones. Users and relay need a descriptor each: more users
than the limit of open files allows cannot be had.
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
# A masking key of zeros leaves the payload as it is (RFC 6455 section 5.3).
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
    sys.exit("the relay does not serve")


class User:
    def __init__(self):
        self.socket = connect()
        self.socket.sendall(HANDSHAKE)
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.socket.recv(4096)
        assert head.startswith(b"HTTP/1.1 101 "), head
        self.id = int(head.split(b"x-user-id: ")[1].split(b"\r\n")[0])
        self.rest = b""

    def frames(self, more):
        """The opcodes and payloads in what has come."""
        self.rest += more
        while len(self.rest) >= 2:
            length, start = self.rest[1], 2
            if length == 126:
                if len(self.rest) < 4:
                    return
                length, start = struct.unpack("!H", self.rest[2:4])[0], 4
            if len(self.rest) < start + length:
                return
            yield self.rest[0] & 15, self.rest[start : start + length]
            self.rest = self.rest[start + length :]


class Crowd:
    def __init__(self, count):
        self.selector = selectors.EpollSelector()
        self.users = [User() for _ in range(count)]
        self.messages = self.pings = 0
        for user in self.users:
            self.selector.register(user.socket, selectors.EVENT_READ, user)

    def read(self, timeout):
        """Takes what has come, and answers pings."""
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
            assert time.monotonic() < deadline, f"{until - self.messages} messages have not come"
            self.read(1)

    def rest_for(self, seconds):
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.read(left)


def measure(pid, count):
    User().socket.close()
    time.sleep(SETTLE)
    base, begin = pss_bytes(pid), cpu_us(pid)
    crowd = Crowd(count)
    opened = (cpu_us(pid) - begin) / count
    crowd.rest_for(SETTLE)
    idle = (pss_bytes(pid) - base) / count

    # Everybody's first ping falls into the second half of the interval.
    crowd.rest_for(PING_SECONDS)
    begin, pings = cpu_us(pid), crowd.pings
    crowd.rest_for(PING_SECONDS)
    keepalive = (cpu_us(pid) - begin) / (crowd.pings - pings)

    choose = random.Random(7).choice
    begin = cpu_us(pid)
    for _ in range(ROUNDS):
        for user in crowd.users:
            user.socket.sendall(message(choose(crowd.users).id, 32))
        crowd.read_messages(count)
    a_message = (cpu_us(pid) - begin) / (ROUNDS * count)

    for first in range(0, count, 50):
        some = crowd.users[first : first + 50]
        for user in some:
            user.socket.sendall(message(user.id, LARGE))
        crowd.read_messages(len(some))
    crowd.rest_for(SETTLE)
    quiet = (pss_bytes(pid) - base) / count

    for user in crowd.users:
        user.socket.close()
    time.sleep(SETTLE)
    left = (pss_bytes(pid) - base) / count
    print(
        f"| {count:,} | {idle:,.0f} | {quiet:,.0f} | {left:,.0f} | {opened:.1f} | {keepalive:.1f} | {a_message:.1f} |",
        flush=True,
    )
    return base, base + idle * count


def fit(points):
    """The straight line through them, by least squares: its height at zero, and its slope."""
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
