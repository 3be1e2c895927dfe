"""Loses probes of idle users: `lost_probes.py BINARY [USERS] [SECONDS]` (9000 300).

With `keepalive.ping_interval = 24h`, the kernel alone looks whether an idle user is there. It probes all of them
within a minute or two, and here one packet in 20 is lost, beside those that a burst loses by itself. All users are
there and answer, so none may be closed. Needs root and iptables, for a network namespace of its own.
"""

import os
import re
import resource
import socket
import subprocess
import sys
import time
import urllib.request

PORT = 18095
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def metric(name):
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=60) as answer:
        found = re.findall(rf"^{name}(?:{{.*}})? (\d+)$", answer.read().decode(), re.M)
    return sum(map(int, found))


def join():
    user = socket.create_connection(("127.0.0.1", PORT), 60)
    user.sendall(HANDSHAKE)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += user.recv(4096) or sys.exit("a handshake was cut")
    assert answer.startswith(b"HTTP/1.1 101"), answer
    return user


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    count, seconds = (int(value) for value in [*sys.argv[2:], *["9000", "300"][len(sys.argv) - 2 :]])
    if os.environ.get("OWN_NETWORK") is None:
        os.execvpe("unshare", ["unshare", "--net", sys.executable, *sys.argv], os.environ | {"OWN_NETWORK": "1"})
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    environment = os.environ | {"SWITCHBOARD__KEEPALIVE__PING_INTERVAL": "24h"}
    relay = subprocess.Popen([sys.argv[1], "--listen", f"127.0.0.1:{PORT}"], env=environment, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                users = [join()]
                break
            except ConnectionRefusedError:
                time.sleep(0.1)
        begin = time.monotonic()
        users += [join() for _ in range(count - 1)]
        print(f"{metric('switchboard_connections')} users within {time.monotonic() - begin:.1f} s", flush=True)
        loss = "INPUT -p tcp -m statistic --mode random --probability 0.05 -j DROP".split()
        subprocess.run(["iptables", "-A", *loss], check=True)
        while (passed := time.monotonic() - begin) < seconds:
            time.sleep(min(30, seconds - passed))
            print(f"{metric('switchboard_connections')} users after {time.monotonic() - begin:.0f} s", flush=True)
        sys.exit(0 if metric("switchboard_connections") == count else 1)
    finally:
        relay.kill()


if __name__ == "__main__":
    main()
