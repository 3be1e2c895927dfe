#!/usr/bin/env python3
"""Holds the frames of a real relay, and those that clients send it, against /asyncapi.yaml: every kind of
frame is provoked, and must be what the document says of it and nothing else.

    tests/python/wire.py BINARY ASYNCAPI-3.0-SCHEMA"""

import asyncio
import json
import sys
import urllib.request

import jsonschema
import websockets
import yaml

from relay import Relay

SETTINGS = {
    "MAILBOX__MESSAGES": "4",
    "LIMITS__MESSAGE_RATE": "50",
    "LIMITS__MESSAGE_BYTES": "1KiB",
    "KEEPALIVE__WRITE_TIMEOUT": "1m",
    # Nobody listens there, and nothing is sampled: a client's own trace goes with its message.
    "TRACING__OTLP_ENDPOINT": "http://127.0.0.1:9",
    "TRACING__TRUST_CLIENTS": "true",
}
V1 = ["switchboard.v1"]
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

# Outcomes that one node by itself, which is not cut short, never gives.
UNSEEN = {"status": {"disconnected", "draining", "unavailable", "unknown"}, "reason": {"ticket_expired", "id_in_use", "id_unavailable"}}


class Wire:
    """The document, and what was seen of it."""

    def __init__(self, text, own_schema):
        self.document = yaml.safe_load(text)
        # YAML's numbers as keys are JSON's strings.
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
        """The names of the messages of an operation that a frame is."""
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
            sys.exit(f"{protocol}: {text} is described as {found}")
        self.seen[(protocol + "Send", found[0])] += 1
        for field in ("status", "code", "reason"):
            if field in frame:
                self.seen[field].add(frame[field])
        return frame

    def says(self, protocol, text, good):
        """Whether the document takes a client's frame is whether the relay does."""
        try:
            found = self.find(protocol + "Receive", json.loads(text))
        except ValueError:
            found = []
        if bool(found) != good:
            sys.exit(f"{protocol}: {text} is described as {found}")
        if good:
            self.seen[(protocol + "Receive", "send")] += 1

    def closed(self, code):
        if code not in self.codes:
            sys.exit(f"close code {code} is not described")
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
        """Takes all that comes up to the close."""
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
    await v1.say({"recipient_id": 9007199254740991, "message": "Anybody?", "id": 1})
    await v1.hear("outcome")
    await v1.say({"recipient_id": v1.id, "message": "traced", "traceparent": TRACE})
    assert (await v1.hear())["traceparent"][3:35] == TRACE[3:35]
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
    # The last of limits.bad_messages.
    await v1.say("[]", good=False)
    assert await v1.end() == 1008
    v1 = await User.join(wire, relay, "v1")
    # JSON as a whole is in order, and a schema sees one of the two.
    await v1.client.send('{"recipient_id":1,"message":"x","message":"y"}')
    await v1.hear("error")
    # So is what is too large.
    await v1.client.send(json.dumps({"recipient_id": 1, "message": "x" * 1024}))
    await v1.hear("error")
    for _ in range(200):
        await v1.say({"recipient_id": 9007199254740991, "message": "x"})
    await v1.say({"recipient_id": 9007199254740991, "message": "x", "id": "late"})
    assert (await v1.hear("error"))["code"] == "rate_limited"
    assert (await v1.hear("outcome"))["status"] == "rate_limited"
    bare = await User.join(wire, relay, "bare")
    await bare.client.send("x" * 2000)
    assert await bare.end() == 1009
    bare = await User.join(wire, relay, "bare")
    bare.client.transport.write(b"\xff\xff\xff\xff")
    assert await bare.end() == 1002


async def overflow(wire, relay):
    """Who does not read is told what it has missed."""
    slow = await User.join(wire, relay, "v1", max_queue=1)
    slow.client.transport.pause_reading()
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


async def converse(wire, relay):
    stay = await talk(wire, relay)
    await err(wire, relay)
    await overflow(wire, relay)
    await tickets(wire, relay)
    assert relay.ask("POST", "/api/drain", {"spread": "0s"})[0] == 202
    for user in stay:
        assert await user.end() == 1012


def main():
    binary, own_schema = sys.argv[1:]
    with open(own_schema, encoding="utf-8") as file:
        own_schema = json.load(file)
    with Relay(binary, DRAIN__DELAY="0s", **SETTINGS) as relay:
        with urllib.request.urlopen(relay.http + "/asyncapi.yaml") as answer:
            wire = Wire(answer.read(), own_schema)
        asyncio.run(converse(wire, relay))
    for key, seen in wire.seen.items():
        print(f"{key}: {seen}" if isinstance(key, str) else f"{' '.join(key)}: {seen} frames")
    unseen = [key for key, seen in wire.seen.items() if not seen]
    schemas = wire.document["components"]["schemas"]
    for field, all_values in [
        ("status", {one["const"] for one in schemas["Outcome"]["properties"]["status"]["oneOf"]}),
        ("code", set(schemas["Error"]["properties"]["code"]["enum"])),
        ("reason", set(schemas["Welcome"]["properties"]["reason"]["enum"])),
    ]:
        unseen += all_values - wire.seen[field] - UNSEEN.get(field, set())
    if unseen:
        sys.exit(f"described and not seen: {unseen}")


main()
