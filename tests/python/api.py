#!/usr/bin/env python3
"""Runs schemathesis against the operators' API of a relay that has users: every operation, with input that
the OpenAPI description allows and with input that it does not allow.

    tests/python/api.py BINARY [SCHEMATHESIS-OPTION...]"""

import asyncio
import os
import subprocess
import sys
import threading

import websockets

from relay import TOKEN, Relay

# A drain begins when a request asks for it, and lasts longer than the test. The timeout allows the longest
# spread that the description allows.
SETTINGS = {
    "DRAIN__DELAY": "30m",
    "DRAIN__TIMEOUT": "3h",
    "ADMIN__OUTCOME_TIMEOUT": "500ms",
    # schemathesis is slow on a busy machine, and the relay closes a connection that sends no request.
    "LIMITS__HEADER_TIMEOUT": "30s",
}
USERS = 8
CONFIG = os.path.join(os.path.dirname(os.path.abspath(__file__)), "schemathesis.toml")


async def user(url, protocols):
    """Reads messages, and connects again when the user is removed."""
    while True:
        try:
            async with websockets.connect(url, subprotocols=protocols) as client:
                async for _ in client:
                    pass
        except (OSError, websockets.WebSocketException):
            await asyncio.sleep(0.1)


async def users(url):
    both = [None, ["switchboard.v1"]]
    await asyncio.gather(*(user(url, both[n % 2]) for n in range(USERS)))


def main():
    binary, *options = sys.argv[1:]
    schemathesis = os.path.join(os.path.dirname(sys.executable), "schemathesis")
    with Relay(binary, **SETTINGS) as relay:
        threading.Thread(target=lambda: asyncio.run(users(relay.ws)), daemon=True).start()
        relay.eventually("users", lambda: relay.ask("GET", "/api/status")[1]["users"] == USERS)
        command = [schemathesis, "--config-file", CONFIG, "run", relay.api + "/api/openapi.yaml", "--url", relay.api]
        command += ["--header", f"Authorization: Bearer {TOKEN}"]
        command += ["--request-timeout", "30", "--max-examples", "50", "--continue-on-failure", *options]
        code = subprocess.run(command, cwd=relay.folder.name, check=False).returncode
        if code:
            sys.exit(code)
        relay.eventually("a ledger that balances", lambda: relay.gap() == 0)
        status = relay.ask("GET", "/api/status")[1]
        print("afterwards:", {key: status[key] for key in ("users", "messages", "drain")})
        if status["messages"]["received"] == 0 or status["drain"]["stage"] != "delay":
            sys.exit(f"the requests sent no message or started no drain: {status}")


main()
