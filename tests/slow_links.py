"""Soaks a relay with users on slow links: `slow_links.py BINARY [MINUTES] [USERS]` (30 200).

Each user has a network interface of its own, which `tc … tbf` limits in both directions: from 10 to 200 kB/s. Half of
the users are also behind a proxy that delays what passes, and stalls now and then for as long as TCP does when it
loses a packet twice. The settings are the defaults.

Others write 1.5 times as much to each user as its link carries, a minute long, then nothing for a minute. Each user
reads on, answers pings and sends long messages itself. All stay; no connection may close.

Prints a line a minute, and at the end what was closed and why; exits with 1 if anything was. A user or a proxy that
waits for a CPU does not read on: the lines say for how long one did, and where that was over 3 s, the test exits with
2, because what it saw says nothing about the relay. Needs root, for two network namespaces of its own, which end with
it.
"""

import asyncio
import json
import os
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import time
import urllib.request

PORT = 18094
SLOWEST, FASTEST = 10_000, 200_000
PROXY_PROCESSES = 4
STARVED = 3.0  # seconds
KEY = bytes(4)  # a masking key of zeros does not change the payload (RFC 6455, section 5.3)
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


def link(n):
    """The addresses of the relay and the user on link `n`."""
    net = f"10.{1 + n // 250}.{n % 250}"
    return f"{net}.1", f"{net}.2"


def rate(n, users):
    """Bytes a second of link `n`."""
    return round(SLOWEST * (FASTEST / SLOWEST) ** (n / max(users - 1, 1)))


def frame(opcode, payload=b""):
    length = len(payload)
    if length < 126:
        head = struct.pack(">BB", 0x80 | opcode, 0x80 | length)
    elif length < 65536:
        head = struct.pack(">BBH", 0x80 | opcode, 0x80 | 126, length)
    else:
        head = struct.pack(">BBQ", 0x80 | opcode, 0x80 | 127, length)
    return head + KEY + payload


def message(to, size):
    return frame(TEXT, json.dumps({"recipient_id": to, "message": "x" * size}).encode())


async def join(host, port):
    """Opens a connection and joins. Returns the user's id and the streams."""
    # Little is read ahead, so that the link alone decides how fast the user reads.
    reader, writer = await asyncio.open_connection(host, port, limit=16 * 1024)
    writer.write(
        f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    assert head.startswith("HTTP/1.1 101"), head
    return int(re.search(r"x-user-id: (\d+)", head)[1]), reader, writer


async def frames(reader):
    """Yields the frames that each read completes, as a list: most are small, and a step of asyncio for each costs too
    much."""
    data = b""
    while piece := await reader.read(16 * 1024):
        data += piece
        begin, whole = 0, []
        while len(data) >= begin + 2:
            length, head = data[begin + 1], 2
            if length >= 126:
                head = 4 if length == 126 else 10
                length = int.from_bytes(data[begin + 2 : begin + head], "big")
            end = begin + head + length
            if len(data) < end or len(data) < begin + head:
                break
            whole.append((data[begin] & 0x0F, data[begin + head : end]))
            begin = end
        data = data[begin:]
        yield whole
    raise EOFError("the end of the stream")


class Lag:
    """How long this process had to wait for a CPU, at most."""

    def __init__(self):
        self.most = 0.0

    async def watch(self):
        while True:
            begin = time.monotonic()
            await asyncio.sleep(0.1)
            self.most = max(self.most, time.monotonic() - begin - 0.1)


class User:
    """A user on link `n`: reads on, answers pings, and sends messages up to half of what its link carries."""

    def __init__(self, n, users, by_proxy):
        self.n, self.rate, self.by_proxy = n, rate(n, users), by_proxy
        self.id, self.ids, self.messages, self.pings, self.end = 0, [], 0, 0, None

    async def run(self, host, port, joined):
        self.id, reader, writer = await join(host, port)
        joined()
        sends = asyncio.create_task(self.send(writer))
        try:
            async for whole in frames(reader):
                for opcode, payload in whole:
                    self.messages += opcode == TEXT
                    if opcode == PING:
                        self.pings += 1
                        writer.write(frame(PONG, payload))
                    elif opcode == CLOSE:
                        self.end = f"close {struct.unpack('>H', payload[:2])[0]} {payload[2:].decode()}"
                        return
        except (OSError, EOFError) as error:
            self.end = self.end or repr(error)
        finally:
            sends.cancel()

    async def send(self, writer):
        while True:
            size = random.choice([100, 5_000, 40_000])
            await asyncio.sleep(size / self.rate * 2 + random.random() * 5)
            if self.ids:
                writer.write(message(random.choice(self.ids), size))
                await writer.drain()


async def proxy(host):
    """Starts a proxy to the relay. Returns its port."""

    async def carry(reader, writer):
        delay = random.uniform(0.02, 0.3)
        late = asyncio.Queue(8)  # so that a stall of one direction is soon felt at its other end

        async def pass_on():
            while (item := await late.get())[1]:
                await asyncio.sleep(item[0] - time.monotonic())
                writer.write(item[1])
                await writer.drain()
            writer.close()

        passes = asyncio.create_task(pass_on())
        while data := await reader.read(16 * 1024):
            # One packet in 200 is lost twice: 0.2 s and 0.4 s pass until it is there. Sometimes it is lost more often.
            lost = random.choice([0.6, 0.6, 1.4, 3]) if random.random() < 0.005 * len(data) / 4096 else 0
            await late.put((time.monotonic() + delay + lost, data))
        await late.put((0, b""))
        await passes

    async def accept(reader, writer):
        try:
            out_reader, out_writer = await asyncio.open_connection(host, PORT, limit=16 * 1024)
            await asyncio.gather(carry(reader, out_writer), carry(out_reader, writer), return_exceptions=True)
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=16 * 1024)
    return server.sockets[0].getsockname()[1]


async def answer_lines(answer):
    """Prints an answer whenever a line comes from the process that has started this one."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while await lines.readline():
        print(json.dumps(answer()), flush=True)


async def run_proxies(links):
    """A process of proxies. Prints their ports, and then its lag whenever it reads a line."""
    print(json.dumps({n: await proxy(link(n)[0]) for n in links}), flush=True)
    lag = Lag()
    _watches = asyncio.create_task(lag.watch())
    await answer_lines(lambda: lag.most)
    # At once: connections are under way, and nobody waits for them any more.
    os._exit(0)


class Process:
    """A process of this program in the same namespace or, if it is wrapped, in another one."""

    def __init__(self, soak, *wrapped, **environment):
        self.process = subprocess.Popen(
            [*wrapped, sys.executable, *sys.argv],
            env=os.environ | {"SOAK": soak} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def read(self):
        return json.loads(self.process.stdout.readline())

    def ask(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read()


async def run_users(count):
    """The users' process. Prints their ids, and then their state whenever it reads a line."""
    users = [User(n, count, by_proxy=n % 2 == 1) for n in range(count)]
    by_proxy = [user.n for user in users if user.by_proxy]
    shares = [by_proxy[part::PROXY_PROCESSES] for part in range(PROXY_PROCESSES)]
    proxies = [Process("proxies", LINKS=json.dumps(share)) for share in shares]
    ports = {int(n): port for process in proxies for n, port in process.read().items()}
    tasks = []
    for user in users:
        host, port = link(user.n)[0], PORT
        if user.by_proxy:
            host, port = "127.0.0.1", ports[user.n]
        joined = asyncio.Event()
        tasks.append(asyncio.create_task(user.run(host, port, joined.set)))
        await asyncio.wait_for(joined.wait(), 30)
    ids = [user.id for user in users]
    for user in users:
        user.ids = ids
    print(json.dumps(ids), flush=True)
    lag = Lag()
    tasks.append(asyncio.create_task(lag.watch()))

    def state():
        lags = [process.ask() for process in proxies]
        return {"users": [vars(user) | {"ids": None} for user in users], "lag": max(lag.most, *lags)}

    # The proxies end when the pipes to them do.
    await answer_lines(state)


async def write_to(ids, count, until):
    """Writes to each user 1.5 times what its link carries, every other minute."""

    async def answer(reader, writer):
        async for whole in frames(reader):
            for opcode, payload in whole:
                if opcode == PING:
                    writer.write(frame(PONG, payload))

    joined = [await join("127.0.0.1", PORT) for _ in range(4)]
    writers = [writer for _, _, writer in joined]
    answers = [asyncio.create_task(answer(reader, writer)) for _, reader, writer in joined]

    async def write(n, to):
        writer, begin = writers[n % len(writers)], random.random() * 120
        size = random.choice([200, 2_000, 20_000, 60_000])
        at_once = max(1, rate(n, count) // 10 // size)
        data = message(to, size) * at_once
        while time.monotonic() < until:
            if (time.monotonic() + begin) % 120 < 60:
                writer.write(data)
                await writer.drain()
            await asyncio.sleep(at_once * size / rate(n, count) / 1.5)

    await asyncio.gather(*(write(n, to) for n, to in enumerate(ids)))
    for task in answers:
        task.cancel()


def scrape():
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


def lay_links(count, pid):
    """Makes the links between this namespace and that of process `pid`."""
    inside = ["nsenter", "-t", str(pid), "-n"]
    ours, theirs = [], []
    for n in range(count):
        relay, user = link(n)
        ours.append(f"link add r{n} type veth peer name u{n} netns {pid}")
        ours.append(f"addr add {relay}/30 dev r{n}")
        ours.append(f"link set r{n} up")
        theirs.append(f"addr add {user}/30 dev u{n}")
        theirs.append(f"link set u{n} up")
    subprocess.run(["ip", "-batch", "-"], input="\n".join(ours), text=True, check=True)
    subprocess.run([*inside, "ip", "-batch", "-"], input="\n".join(["link set lo up", *theirs]), text=True, check=True)
    for side, prefix in (("r", []), ("u", inside)):
        slow = [
            f"qdisc add dev {side}{n} root tbf rate {rate(n, count) * 8}bit burst 4000 latency 500ms"
            for n in range(count)
        ]
        subprocess.run([*prefix, "tc", "-batch", "-"], input="\n".join(slow), text=True, check=True)


async def soak(users, minutes, ids):
    begin = time.monotonic()
    until = begin + minutes * 60
    writes = asyncio.create_task(write_to(ids, len(ids), until))
    told = set()

    while (left := until - time.monotonic()) > 0:
        await asyncio.sleep(min(60, left))
        state, metrics = await asyncio.to_thread(users.ask), await asyncio.to_thread(scrape)
        here, lag = state["users"], state["lag"]
        ended = [user for user in here if user["end"]]
        for user in ended:
            if user["n"] not in told:
                print(f"closed: {user['rate']} B/s, by a proxy: {user['by_proxy']}, {user['end']}")
                told.add(user["n"])
        print(
            f"{(time.monotonic() - begin) / 60:5.1f} min: {len(here) - len(ended)} of {len(here)} users are there; "
            f"they got {sum(user['messages'] for user in here):,} messages and "
            f"{metrics['switchboard_socket_written_bytes_total'] / 1e6:,.0f} MB, "
            f"and {sum(user['pings'] for user in here):,} pings; one waited for a CPU for {lag:.1f} s",
            flush=True,
        )
    await writes
    for name, value in metrics.items():
        if value and re.match(r"switchboard_(connections|messages_\w+|mailbox_messages)\b", name):
            print(f"{name} {value:,.0f}")
    settled = sum(
        value
        for name, value in metrics.items()
        if re.match(r"switchboard_(messages_(delivered|dropped)_total|mailbox_messages)\b", name)
    )
    gap = metrics["switchboard_messages_received_total"] - settled
    print(f"gap in the ledger: {gap:.0f}")
    closed = sum(value for name, value in metrics.items() if name.startswith("switchboard_connections_closed_total"))
    if lag > STARVED:
        return 2
    return 0 if not ended and closed == 0 and gap == 0 else 1


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    binary, given = sys.argv[1], sys.argv[2:]
    minutes, count = (int(value) for value in [*given, *["30", "200"][len(given) :]])
    if os.environ.get("SOAK") is None:
        os.execvpe("unshare", ["unshare", "--net", sys.executable, *sys.argv], os.environ | {"SOAK": "relay"})
    if os.environ["SOAK"] == "proxies":
        asyncio.run(run_proxies(json.loads(os.environ["LINKS"])))
        return
    if os.environ["SOAK"] == "users":
        sys.stdin.readline()  # the links are there
        asyncio.run(run_users(count))
        return
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # A user that waits for a CPU does not read on, so all that follows goes before other programs.
    os.nice(-15)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended early"))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    relay = subprocess.Popen([binary, "--listen", f"0.0.0.0:{PORT}"], stderr=subprocess.DEVNULL)
    users = Process("users", "unshare", "--net")
    try:
        time.sleep(1)  # until `unshare` has its namespace
        lay_links(count, users.process.pid)
        ids = users.ask()
        sys.exit(asyncio.run(soak(users, minutes, ids)))
    finally:
        users.process.kill()
        relay.kill()


if __name__ == "__main__":
    main()
