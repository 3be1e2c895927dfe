#!/usr/bin/env python3
"""Compares the frames of a real relay and of its clients with /asyncapi.yaml.

Provokes every kind of frame, outcome, reason and close code. Each must match the document, and must match
only one description in it.

    tests/python/wire.py BINARY ASYNCAPI-3.0-SCHEMA NATS-SERVER"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request

import jsonschema
import websockets
import yaml

from relay import Nats, Relay

SETTINGS = {
    "MAILBOX__MESSAGES": "4",
    "LIMITS__MESSAGE_RATE": "50",
    "LIMITS__MESSAGE_BYTES": "1KiB",
    "KEEPALIVE__WRITE_TIMEOUT": "1m",
    # No receiver listens there and nothing is sampled: only the traces of clients pass through.
    "TRACING__OTLP_ENDPOINT": "http://127.0.0.1:9",
    "TRACING__TRUST_CLIENTS": "true",
}
# Drains at once.
BRIEF = {"DRAIN__DELAY": "0s", "DRAIN__SPREAD": "0s", "DRAIN__TIMEOUT": "1s"}
V1 = ["switchboard.v1"]
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

# Values that no client can provoke: 1011 reports an internal fault.
UNSEEN = {"close": {1011}}
# Bytes of a message, and messages that wait for a user who does not read: most of the mailbox, in messages
# that fill the socket soon.
LARGE, WAITING = 60_000, 12


class Wire:
    """The document, and the parts of it that were seen."""

    def __init__(self, text, own_schema):
        self.document = yaml.safe_load(text)
        # Keys that are numbers in YAML are strings in JSON.
        self.codes = set(self.document["x-close-codes"])
        plain = json.loads(json.dumps(self.document))
        jsonschema.Draft7Validator(own_schema).validate(plain)
        self.document = plain
        self.seen = {"close": set(), "status": set(), "code": set(), "reason": set()}
        for operation in plain["operations"]:
            for name in self.names(operation):
                self.seen[(operation, name)] = 0
        for message in plain["components"]["messages"].values():
            for example in message["examples"]:
                self.validator(message).validate(example["payload"])

    def names(self, operation):
        return [message["$ref"].rsplit("/", 1)[1] for message in self.document["operations"][operation]["messages"]]

    def validator(self, message):
        schema = {**message["payload"], "components": self.document["components"]}
        return jsonschema.Draft202012Validator(schema)

    def find(self, operation, frame):
        """Returns the names of an operation's messages that match the frame."""
        channel = self.document["operations"][operation]["channel"]["$ref"].rsplit("/", 1)[1]
        found = []
        for name in self.names(operation):
            reference = self.document["channels"][channel]["messages"][name]["$ref"].rsplit("/", 1)[1]
            if self.validator(self.document["components"]["messages"][reference]).is_valid(frame):
                found.append(name)
        return found

    def hears(self, protocol, text):
        frame = json.loads(text)
        found = self.find(protocol + "Send", frame)
        if len(found) != 1 or frame.get("type", "message") != found[0]:
            sys.exit(f"{protocol}: {text} matches the descriptions {found}")
        self.seen[(protocol + "Send", found[0])] += 1
        for field in ("status", "code", "reason"):
            if field in frame:
                self.seen[field].add(frame[field])
        return frame

    def says(self, protocol, text, good):
        """Checks that the document allows a client's frame if and only if the relay accepts it."""
        try:
            found = self.find(protocol + "Receive", json.loads(text))
        except ValueError:
            found = []
        if bool(found) != good:
            sys.exit(f"{protocol}: {text} matches the descriptions {found}")
        if good:
            self.seen[(protocol + "Receive", found[0])] += 1

    def closed(self, code):
        if code not in self.codes:
            sys.exit(f"the document does not describe close code {code}")
        self.seen["close"].add(code)


class User:
    def __init__(self, wire, protocol, client):
        self.wire, self.protocol, self.client = wire, protocol, client
        self.id = int(client.response.headers["x-user-id"])

    @classmethod
    async def join(cls, wire, relay, protocol, protocols=(), **options):
        protocols = [*(V1 if protocol == "v1" else []), *protocols] or None
        client = await websockets.connect(relay.ws, subprotocols=protocols, **options)
        user = cls(wire, protocol, client)
        if protocol == "v1":
            user.welcome = await user.hear("welcome")
        return user

    @classmethod
    async def join_without_reading(cls, wire, relay, protocol):
        """Joins a user that reads almost nothing before `resume_reading`."""
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.connect(("127.0.0.1", int(relay.http.rsplit(":", 1)[1])))
        narrow.setblocking(False)
        # The user would not read the answers to its own pings, so it sends none.
        user = await cls.join(wire, relay, protocol, sock=narrow, ping_interval=None)
        user.client.transport.pause_reading()
        return user

    async def say(self, text, good=True):
        text = text if isinstance(text, str) else json.dumps(text)
        self.wire.says(self.protocol, text, good)
        await self.client.send(text)

    async def hear(self, kind="message"):
        while True:
            frame = self.wire.hears(self.protocol, await asyncio.wait_for(self.client.recv(), 30))
            if frame.get("type", "message") == kind:
                return frame

    async def end(self):
        """Reads all frames up to the close, and returns its code."""
        try:
            while True:
                self.wire.hears(self.protocol, await asyncio.wait_for(self.client.recv(), 30))
        except websockets.ConnectionClosed as closed:
            self.wire.closed(closed.rcvd.code)
            return closed.rcvd.code


BAD = ["[]", "{", '{"recipient_id":1}', '{"message":"x"}', '{"recipient_id":0,"message":"x"}']
BAD += ['{"recipient_id":"1","message":"x"}', '{"recipient_id":9007199254740992,"message":"x"}']
BAD += ['{"recipient_id":1,"message":7}', '{"recipient_id":1.5,"message":"x"}', "null", '"x"']
BAD_IDS = ['{"recipient_id":1,"message":"x","id":true}', '{"recipient_id":1,"message":"x","id":"%s"}' % ("x" * 65)]
BAD_IDS += ['{"recipient_id":1,"message":"x","id":9007199254740992}', '{"recipient_id":1,"message":"x","id":null}']


async def talk(wire, relay):
    bare, v1 = await User.join(wire, relay, "bare"), await User.join(wire, relay, "v1")
    for text in ("Go Braves!", "", "\u0000\U0001F98A\u202e"):
        await bare.say({"recipient_id": v1.id, "message": text, "unknown": 1})
        assert (await v1.hear())["message"] == text
        await v1.say({"recipient_id": bare.id, "message": text})
        assert (await bare.hear())["message"] == text
    for number, name in enumerate((7, -9007199254740991, 0, "seven", "", "\u00e9" * 32)):
        await v1.say({"recipient_id": bare.id, "message": str(number), "id": name})
        assert (await v1.hear("outcome"))["id"] == name
        await bare.hear()
    await v1.say({"recipient_id": 9007199254740991, "message": "Hello?", "id": 1})
    await v1.hear("outcome")
    await v1.say({"recipient_id": v1.id, "message": "traced", "traceparent": TRACE})
    assert (await v1.hear())["traceparent"][3:35] == TRACE[3:35]
    await v1.say({"recipient_id": v1.id, "message": "traced", "traceparent": TRACE, "tracestate": "a=b"})
    assert (await v1.hear())["tracestate"] == "a=b"
    assert relay.ask("POST", "/api/messages", {"recipient_id": v1.id, "message": "by the system"})[0] == 200
    assert (await v1.hear())["sender_id"] == 0
    await v1.say({"recipient_id": 1, "message": "x" * 1024, "id": 2})
    await v1.hear("outcome")
    return bare, v1


async def err(wire, relay):
    for bad in BAD:
        bare = await User.join(wire, relay, "bare")
        await bare.say(bad, good=False)
        assert await bare.end() == 1007
    v1 = await User.join(wire, relay, "v1")
    for bad in [*BAD, *BAD_IDS]:
        await v1.say(bad, good=False)
        await v1.hear("error")
    # This one reaches limits.bad_messages.
    await v1.say("[]", good=False)
    assert await v1.end() == 1008
    v1 = await User.join(wire, relay, "v1")
    # This is valid JSON, and a schema sees only one of the two fields.
    await v1.client.send('{"recipient_id":1,"message":"x","message":"y"}')
    await v1.hear("error")
    # The error repeats an id that can be read, and one outcome follows.
    await v1.say('{"recipient_id":0,"message":"x","id":"bad"}', good=False)
    assert (await v1.hear("error"))["id"] == "bad"
    assert (await v1.hear("outcome"))["status"] == "invalid"
    for ping in ({"type": "ping"}, {"type": "ping", "id": 8}):
        await v1.say(ping)
        assert (await v1.hear("pong")).get("id") == ping.get("id")
    # The schema does not limit the length either.
    await v1.client.send(json.dumps({"recipient_id": 1, "message": "x" * 1024}))
    await v1.hear("error")
    for _ in range(200):
        await v1.say({"recipient_id": 9007199254740991, "message": "x"})
    assert (await v1.hear("error"))["code"] == "rate_limited"
    # The rate allows one more every 20 ms, so some of these are refused, and not always the first.
    for number in range(20):
        await v1.say({"recipient_id": 9007199254740991, "message": "x", "id": number})
    assert "rate_limited" in [(await v1.hear("outcome"))["status"] for _ in range(20)]
    bare = await User.join(wire, relay, "bare")
    await bare.client.send("x" * 2000)
    assert await bare.end() == 1009
    bare = await User.join(wire, relay, "bare")
    bare.client.transport.write(b"\xff\xff\xff\xff")
    assert await bare.end() == 1002


async def overflow(wire, relay):
    """A user that does not read learns how many messages it has missed."""
    slow = await User.join_without_reading(wire, relay, "v1")
    status = None
    while status != "queue_full":
        sender = await User.join(wire, relay, "v1")
        for number in range(90):
            await sender.say({"recipient_id": slow.id, "message": "x" * 900})
        await sender.say({"recipient_id": slow.id, "message": "x" * 900, "id": number})
        try:
            frame = wire.hears("v1", await asyncio.wait_for(sender.client.recv(), 0.2))
            status = frame["status"]
        except TimeoutError:
            pass
        await sender.client.close()
        wire.closed(sender.client.close_code)
    slow.client.transport.resume_reading()
    await slow.hear("dropped")
    await slow.client.close()


async def tickets(wire, relay):
    first = await User.join(wire, relay, "v1")
    again = await User.join(wire, relay, "v1", ["ticket." + first.welcome["ticket"]])
    assert again.id == first.id and again.welcome["resumed"]
    assert await first.end() == 4409
    forged = await User.join(wire, relay, "v1", ["ticket.AAAA"])
    assert forged.welcome["reason"] == "ticket_invalid"
    assert relay.ask("DELETE", f"/api/users/{forged.id}")[1]["removed"]
    assert await forged.end() == 4410


async def expired_ticket(wire, relay):
    first = await User.join(wire, relay, "v1")
    while (again := await User.join(wire, relay, "v1", ["ticket." + first.welcome["ticket"]])).welcome["resumed"]:
        pass
    assert again.welcome["reason"] == "ticket_expired"


async def ticket_of(wire, relay):
    return (await User.join(wire, relay, "v1")).welcome["ticket"]


async def id_in_use(wire, relay, ticket):
    """After a restart, another user has the id."""
    assert (await User.join(wire, relay, "v1")).id == 1
    late = await User.join(wire, relay, "v1", ["ticket." + ticket])
    assert (late.id, late.welcome["reason"]) == (2, "id_in_use")


def bearer(token):
    return {"additional_headers": {"Authorization": f"Bearer {token}"}}


async def tokens(wire, relay, issue):
    """Only the subject of a ticket can use it, and a connection ends when its token expires."""
    alice = await User.join(wire, relay, "v1", **bearer(issue("alice", "1m")))
    shown = ["ticket." + alice.welcome["ticket"]]
    bob = await User.join(wire, relay, "v1", shown, **bearer(issue("bob", "1m")))
    assert bob.id != alice.id and bob.welcome["reason"] == "ticket_invalid"
    again = await User.join(wire, relay, "v1", shown, **bearer(issue("alice", "2s")))
    assert again.id == alice.id and again.welcome["resumed"]
    assert await alice.end() == 4409
    assert await again.end() == 4401


async def fill_mailbox(wire, relay):
    """Returns a user that does not read, the sender of the messages that wait for it, and their number."""
    silent, sender = await User.join_without_reading(wire, relay, "bare"), await User.join(wire, relay, "v1")
    sent = 0
    while relay.ask("GET", f"/api/users/{silent.id}")[1]["queue"]["messages"] < WAITING:
        await sender.say({"recipient_id": silent.id, "message": "x" * LARGE, "id": sent})
        sent += 1
    return silent, sender, sent


async def outcomes(sender, sent):
    """Returns the number of outcomes by status, of all messages sent."""
    found = [(await sender.hear("outcome"))["status"] for _ in range(sent)]
    return {status: found.count(status) for status in found}


async def gone(wire, relay):
    silent, sender, sent = await fill_mailbox(wire, relay)
    silent.client.transport.abort()
    assert (await outcomes(sender, sent))["disconnected"] >= WAITING


async def drained(wire, relay):
    """The drain ends before all messages are delivered. The sender gets their outcomes, then the close."""
    _silent, sender, sent = await fill_mailbox(wire, relay)
    relay.process.send_signal(signal.SIGTERM)
    assert (await outcomes(sender, sent))["draining"] >= WAITING
    assert await sender.end() == 1012


async def too_old(wire, relay):
    """Messages wait longer than mailbox.max_age."""
    _silent, sender, _sent = await fill_mailbox(wire, relay)
    while (await sender.hear("outcome"))["status"] != "expired":
        pass


async def too_slow(wire, relay):
    """With mailbox.overflow = "disconnect", a full mailbox closes the user's connection."""
    silent, sender = await User.join_without_reading(wire, relay, "bare"), await User.join(wire, relay, "v1")
    # More than the mailbox and the sockets can hold.
    for number in range(3 * WAITING):
        await sender.say({"recipient_id": silent.id, "message": "x" * LARGE, "id": number})
    while (await sender.hear("outcome"))["status"] == "delivered":
        pass
    silent.client.transport.resume_reading()
    assert await silent.end() == 1013


async def cluster(wire, nats, node, other):
    """The node of the recipient does not answer; then NATS stops."""
    here, there = await User.join(wire, node, "v1"), await User.join(wire, other, "v1")
    ask = {"recipient_id": there.id, "message": "Are you there?", "id": 1}
    await here.say(ask)
    assert (await here.hear("outcome"))["status"] == "delivered"
    other.freeze()
    await here.say(ask)
    assert (await here.hear("outcome"))["status"] == "unknown"
    other.thaw()
    nats.kill()
    # The node notices after a while that NATS is gone.
    status = "unknown"
    while status == "unknown":
        await here.say(ask)
        status = (await here.hear("outcome"))["status"]
    assert status == "unavailable"
    try:
        await User.join(wire, node, "v1", ["ticket." + there.welcome["ticket"]])
        raise AssertionError("a user joined without the table of ids")
    except websockets.InvalidStatus as refused:
        assert refused.response.status_code == 503 and refused.response.headers["Retry-After"]


async def converse(wire, relay):
    connected = await talk(wire, relay)
    await err(wire, relay)
    await overflow(wire, relay)
    await tickets(wire, relay)
    assert relay.ask("POST", "/api/drain", {"spread": "0s"})[0] == 202
    for user in connected:
        assert await user.end() == 1012


def single_node(wire, binary, secret_file):
    """Provokes what needs other settings: frames about tickets and tokens, and outcomes of messages to a user
    that does not read."""
    with Relay(binary, TICKETS__TTL="1s", **BRIEF) as relay:
        asyncio.run(expired_ticket(wire, relay))
    with Relay(binary, TICKETS__SECRET_FILE=secret_file, **BRIEF) as relay:
        ticket = asyncio.run(ticket_of(wire, relay))
    # Without this file, a new user gets the id of the ticket.
    os.remove(secret_file + ".ids")
    with Relay(binary, TICKETS__SECRET_FILE=secret_file, **BRIEF) as relay:
        asyncio.run(id_in_use(wire, relay, ticket))

    def issue(subject, time):
        command = [binary, "token", "issue", "--subject", subject, "--expires-in", time, "--key-file", secret_file]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    with Relay(binary, AUTH__MODE="jwt", AUTH__SECRET_FILE=secret_file, AUTH__LEEWAY="1ms", **BRIEF) as relay:
        asyncio.run(tokens(wire, relay, issue))
    patient = {"KEEPALIVE__WRITE_TIMEOUT": "1m", "KEEPALIVE__CLOSE_TIMEOUT": "1m", **BRIEF}
    with Relay(binary, **patient) as relay:
        asyncio.run(gone(wire, relay))
    with Relay(binary, **patient) as relay:
        asyncio.run(drained(wire, relay))
    with Relay(binary, MAILBOX__MAX_AGE="500ms", **patient) as relay:
        asyncio.run(too_old(wire, relay))
    with Relay(binary, MAILBOX__OVERFLOW="disconnect", **patient) as relay:
        asyncio.run(too_slow(wire, relay))


def in_a_cluster(wire, binary, secret_file, nats_server):
    with Nats(nats_server) as nats:
        settings = {"CLUSTER__NATS_URL": nats.url, "CLUSTER__OUTCOME_TIMEOUT": "1s", "TICKETS__SECRET_FILE": secret_file, **BRIEF}
        with Relay(binary, **settings) as node, Relay(binary, **settings) as other:
            for relay in (node, other):
                relay.eventually("a node that is ready", lambda relay=relay: relay.ask("GET", "/api/status")[1]["ready"])
            asyncio.run(cluster(wire, nats, node, other))


def main():
    binary, own_schema, nats_server = sys.argv[1:]
    with open(own_schema, encoding="utf-8") as file:
        own_schema = json.load(file)
    with Relay(binary, DRAIN__DELAY="0s", **SETTINGS) as relay:
        with urllib.request.urlopen(relay.http + "/asyncapi.yaml") as answer:
            wire = Wire(answer.read(), own_schema)
        asyncio.run(converse(wire, relay))
    with tempfile.TemporaryDirectory() as folder:
        secret_file = os.path.join(folder, "secret")
        with open(secret_file, "w", encoding="utf-8") as file:
            file.write("a secret of at least 32 bytes, yes\n")
        single_node(wire, binary, secret_file)
        in_a_cluster(wire, binary, secret_file, nats_server)
    for key, seen in wire.seen.items():
        print(f"{key}: {seen}" if isinstance(key, str) else f"{' '.join(key)}: {seen} frames")
    unseen = [key for key, seen in wire.seen.items() if not seen]
    schemas = wire.document["components"]["schemas"]
    for field, all_values in [
        ("status", {one["const"] for one in schemas["Outcome"]["properties"]["status"]["oneOf"]}),
        ("code", set(schemas["Error"]["properties"]["code"]["enum"])),
        ("reason", set(schemas["Welcome"]["properties"]["reason"]["enum"])),
        ("close", wire.codes),
    ]:
        if surprise := UNSEEN.get(field, set()) & wire.seen[field]:
            sys.exit(f"seen, although UNSEEN lists it: {surprise}")
        unseen += all_values - wire.seen[field] - UNSEEN.get(field, set())
    if unseen:
        sys.exit(f"in the document and not seen: {unseen}")


main()
