"""Measures what a scrape costs with many idle users: `scrape_cost.py BINARY [USERS]` (15000)."""

import asyncio
import os
import resource
import subprocess
import sys
import time

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
PORT = 18091
SCRAPES = 200


async def connect():
    for _ in range(200):
        try:
            return await asyncio.open_connection("127.0.0.1", PORT)
        except ConnectionRefusedError:
            await asyncio.sleep(0.05)
    sys.exit(f"the relay does not accept connections on 127.0.0.1:{PORT}")


async def join(slots):
    async with slots:
        reader, writer = await connect()
        writer.write(HANDSHAKE)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        return writer


async def scrape():
    """Returns the duration of one scrape in seconds, and the answer."""
    reader, writer = await connect()
    begin = time.perf_counter()
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n")
    answer = await reader.read(-1)
    seconds = time.perf_counter() - begin
    writer.close()
    return seconds, answer


def cpu_seconds(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(pid, count):
    slots = asyncio.Semaphore(200)
    users = await asyncio.gather(*(join(slots) for _ in range(count)))
    begin = cpu_seconds(pid)
    scrapes = [await scrape() for _ in range(SCRAPES)]
    cpu = (cpu_seconds(pid) - begin) / SCRAPES
    _, answer = scrapes[-1]
    assert f"\nswitchboard_connections {count}\n".encode() in answer
    times = sorted(seconds for seconds, _ in scrapes)
    print(
        f"{count} users: {times[SCRAPES // 2] * 1000:.2f} ms (median), {times[-1] * 1000:.2f} ms (longest), "
        f"{cpu * 1000:.2f} ms of CPU, {len(answer)} bytes"
    )
    for user in users:
        user.transport.abort()


def main():
    _, binary, *count = sys.argv
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    environment = {**os.environ, "SWITCHBOARD__SERVER__LISTEN": f"127.0.0.1:{PORT}", "SWITCHBOARD__KEEPALIVE__PING_INTERVAL": "10m"}
    with subprocess.Popen([binary], env=environment, stderr=subprocess.DEVNULL) as relay:
        try:
            for users in [0, int(count[0]) if count else 15000]:
                asyncio.run(measure(relay.pid, users))
                time.sleep(1)
        finally:
            relay.kill()


main()
