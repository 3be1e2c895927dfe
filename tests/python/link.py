#!/usr/bin/env python3
"""Runs the NATS servers and relays of the Kubernetes manifests as processes, and tries what they must refuse.

    tests/python/link.py BINARY NATS_SERVER [NAME...]

With names, only those functions run."""

import asyncio
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import websockets

import pods
from manifests import ROOT, adapted
from nats_client import Client, until
from pods import SECRETS, Process, Relay, Server, secret
from relay import PATIENCE, free_port

BINARY, NATS, *names = sys.argv[1:]
BINARY, NATS = os.path.abspath(BINARY), os.path.abspath(NATS)
Case = functools.partial(pods.Case, BINARY, NATS)


async def join(relay):
    client = await websockets.connect(f"ws://127.0.0.1:{relay.port}/", subprotocols=["switchboard.v1"])
    return client, json.loads(await client.recv())["user_id"]


async def talk(relays):
    """A user of each relay writes to the other."""
    one, two = [await join(relay) for relay in relays]
    await exchange(one, two)
    await one[0].close()
    await two[0].close()


async def exchange(one, two):
    for (sender, _), (_, recipient) in ((one, two), (two, one)):
        assert await send(sender, recipient) == "delivered"


async def send(sender, recipient):
    await sender.send(json.dumps({"recipient_id": recipient, "message": "Go Braves!", "id": 1}))
    async with asyncio.timeout(PATIENCE):
        while True:
            frame = json.loads(await sender.recv())
            if frame["type"] == "outcome":
                return frame["status"]


def a_stranger_is_refused_and_a_password_opens_no_more_than_a_relay_needs():
    with Case("cluster") as case:
        asyncio.run(talk(case.relays))
        port = case.servers[0].port
        for options in ({}, {"user": "switchboard", "pass": "guess"}, {"user": "routes", "pass": SECRETS["switchboard-nats"]["routes-password"]}):
            refused = Client(port, **options).hear()
            assert "Authorization Violation" in refused, (options, refused)

        thief = Client(port, user="switchboard", **{"pass": SECRETS["switchboard-nats"]["password"]})
        thief.say("SUB switchboard.2.n.1.thief 1")
        assert thief.hear() == ""
        for subject in (">", "*", "switchboard.>", "other.>", "$SYS.>", "$JS.>", "_INBOX.>"):
            thief.say(f"SUB {subject} 2")
            assert "Permissions Violation for Subscription" in thief.hear(), subject
        stream = next(name for name in re.findall(r"STREAM\.INFO\.(\w+)", permissions()))
        for subject in ("other", f"$JS.API.STREAM.DELETE.{stream}", f"$JS.API.STREAM.PURGE.{stream}",
                        f"$JS.API.STREAM.UPDATE.{stream}", f"$JS.API.STREAM.MSG.DELETE.{stream}", "$JS.API.STREAM.NAMES",
                        "$JS.API.STREAM.CREATE.mine", "$SYS.REQ.SERVER.PING"):
            thief.say(f"PUB {subject} switchboard.2.n.1.thief 2", "{}")
            assert "Permissions Violation for Publish" in thief.hear(), subject
        asyncio.run(talk(case.relays))


def permissions():
    return (ROOT / "config/nats/permissions.conf").read_text()


def tls_is_spoken_where_its_component_is_added():
    secrets = {**SECRETS, "switchboard-nats-tls": certificates()}
    with Case("cluster", ["nats-tls"], secrets) as case:
        stranger = Client(case.servers[0].port, user="switchboard", **{"pass": SECRETS["switchboard-nats"]["password"]})
        assert stranger.info["tls_required"], stranger.info
        assert stranger.hear().endswith("closed"), "the server answers a client without TLS"
        asyncio.run(talk(case.relays))
        # Another authority did not sign the server's certificate.
        others = {**secrets, "switchboard-nats-tls": certificates()}
        other = Relay(case.documents, others, BINARY, case.folder.name, case.servers, "other")
        until("the relay has tried", lambda: "nats is away" in other.process.text())
        assert not other.ready()
        other.process.end()


def certificates():
    """Returns an authority, and a certificate of it for localhost: what the Secret has, as cert-manager writes it."""
    with tempfile.TemporaryDirectory() as folder:
        def openssl(*arguments):
            subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

        new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        openssl(*new, "-x509", "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=authority", "-days", "1")
        openssl(*new, "-keyout", "tls.key", "-out", "tls.csr", "-subj", "/CN=switchboard-nats")
        pathlib.Path(folder, "names").write_text("subjectAltName=DNS:localhost,DNS:switchboard-nats")
        openssl("x509", "-req", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1",
                "-extfile", "names", "-out", "tls.crt")
        return {name: pathlib.Path(folder, name).read_text() for name in ("ca.crt", "tls.crt", "tls.key")}


def an_existing_nats_is_used_with_the_shipped_permissions():
    """The overlay for it, with a server that has nothing else of the manifests."""
    documents = adapted("cluster-existing-nats")
    secrets = {"switchboard": {"tickets": secret(), "nats-password": secret()}}
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        config = pathlib.Path(folder, "nats.conf")
        config.write_text(f"""port: {port}\njetstream {{ store_dir: {folder}/store }}\n"""
                          f"""authorization {{ users: [ {{\nuser: switchboard\npassword: "{secrets['switchboard']['nats-password']}"\n"""
                          f"""{permissions()}\n}} ] }}\n""")
        nats = Process([NATS, "--config", str(config)], {"PATH": os.environ["PATH"]})
        relays = []
        try:
            for name in ("one", "two"):
                relay = Relay(documents, secrets, BINARY, folder, [], name, f"nats://127.0.0.1:{port}")
                relays.append(relay)
                relay.until_ready()
            asyncio.run(talk(relays))
        finally:
            for running in [*(relay.process for relay in relays), nats]:
                running.end(5)


def a_server_without_the_password_of_the_routes_stays_alone():
    with Case("cluster-three", servers=3, relays=0) as case:
        peers = [*case.servers[0].peers]
        peers[0] = free_port()
        secrets = {**SECRETS, "switchboard-nats": {**SECRETS["switchboard-nats"], "routes-password": SECRETS["switchboard-nats"]["password"]}}
        stranger = Server(case.documents, secrets, NATS, f"{case.folder.name}/stranger", 0, peers)
        stranger.start()
        try:
            until("it was refused", lambda: "Authorization" in stranger.process.text() or "authentication error" in case.servers[1].process.text())
            for server in case.servers[1:]:
                servers = {route["remote_id"] for route in server.ask("routez")["routes"]}
                assert stranger.ask("varz")["server_id"] not in servers
        finally:
            stranger.process.end(5)


CASES = [
    a_stranger_is_refused_and_a_password_opens_no_more_than_a_relay_needs,
    tls_is_spoken_where_its_component_is_added,
    an_existing_nats_is_used_with_the_shipped_permissions,
    a_server_without_the_password_of_the_routes_stays_alone,
]

for case in CASES:
    if not names or case.__name__ in names:
        begin = time.monotonic()
        case()
        print(f"ok {case.__name__} ({time.monotonic() - begin:.1f} s)", flush=True)
