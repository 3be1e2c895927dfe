"""Users who write to each other all the time and reconnect as src/ui/switchboard.js does, and what must be true of
their messages in the end."""

import asyncio
import collections
import contextlib
import json
import random
import socket
import statistics
import time

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from relay import PATIENCE

# As in src/ui/switchboard.js, in seconds.
BACKOFF_MIN, BACKOFF_MAX, STEADY, CONNECT, ANSWER, QUIET_HEARTBEATS = 0.5, 30, 5, 15, 5, 1.2
FINAL_CODES = (4409, 4410)
# The code of a connection that ended without a close frame.
ABNORMAL = 1006

# Messages a second of all users together, and the seconds between two bursts of them.
RATE, BURST = 500, 0.02
# Seconds for which a message is under way at most, on a busy machine, if nothing fails.
IN_FLIGHT = 2
# Outcomes of messages that have not arrived and will not arrive.
NOT_DELIVERED = {"offline", "unavailable", "queue_full", "expired", "too_large", "rate_limited", "invalid", "draining"}


class Connection:
    """A WebSocket connection. The `websockets` package does all but the reading and writing: its own connection
    discards what has arrived and was not read yet when a write fails."""

    def __init__(self):
        self.socket, self.unsent = socket.socket(), b""
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def open(self, port, entries):
        self.protocol = ClientProtocol(parse_uri(f"ws://127.0.0.1:{port}/"), subprotocols=entries)
        await asyncio.get_running_loop().sock_connect(self.socket, ("127.0.0.1", port))
        self.protocol.send_request(self.protocol.connect())
        self.flush()

    def send(self, frame):
        self.protocol.send_text(json.dumps(frame).encode())
        self.flush()

    def flush(self):
        self.unsent += b"".join(self.protocol.data_to_send())
        try:
            while self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent):]
        except BlockingIOError:
            pass  # the relay does not read; the next frame tries again
        except OSError:
            self.unsent = b""  # the relay is gone; `receive` says so after all that the relay has written

    async def receive(self):
        """Returns the next frames of the relay, or None after the last one. If the caller stops waiting, nothing is
        lost."""
        try:
            data = await self.read()
        except OSError:
            data = b""
        if data:
            self.protocol.receive_data(data)
        else:
            self.protocol.receive_eof()
        self.flush()
        frames = [json.loads(event.data) for event in self.protocol.events_received()
                  if isinstance(event, Frame) and event.opcode is Opcode.TEXT]
        if self.protocol.handshake_exc:
            raise self.protocol.handshake_exc
        return frames if data else None

    async def read(self):
        # This waits first and then reads, because a cancelled `sock_recv` may discard what it has read.
        loop = asyncio.get_running_loop()
        while True:
            try:
                return self.socket.recv(1 << 16)
            except BlockingIOError:
                ready = loop.create_future()
                loop.add_reader(self.socket, lambda: ready.done() or ready.set_result(None))
                try:
                    await ready
                finally:
                    loop.remove_reader(self.socket)

    def close_code(self):
        return int(self.protocol.close_code or ABNORMAL)

    def close(self):
        self.socket.close()


class Session:
    """A user at a relay, from the welcome to the end of the connection."""

    def __init__(self, relay):
        self.relay, self.begin, self.end, self.code = relay, time.monotonic(), None, None
        # The latest time at which the relay certainly had the user: it has read a message that was sent then.
        self.proven = self.begin


class Message:
    __slots__ = ("sender", "recipient", "session", "sent", "outcomes", "answered", "arrivals")

    def __init__(self, sender, recipient):
        self.sender, self.recipient = sender, recipient
        self.session, self.sent = sender.sessions[-1], time.monotonic()
        self.outcomes, self.answered, self.arrivals = [], None, 0

    def outcome(self):
        return self.outcomes[0] if self.outcomes else None


class User:
    def __init__(self, users):
        self.users, self.id, self.ticket = users, None, None
        # None while no connection accepts messages, since the time `lost`.
        self.connection, self.lost, self.gaps = None, None, []
        self.sessions, self.failures, self.reconnect_after = [], 0, None
        # When the latest message was sent that was delivered, and those heard, by the session that sent them.
        self.delivered, self.heard = 0, {}

    async def run(self):
        while True:
            try:
                with contextlib.closing(Connection()) as connection:
                    await self.connect(connection)
            except (OSError, InvalidHandshake, TimeoutError) as refusal:
                self.users.refusals[str(refusal) or type(refusal).__name__] += 1
            await asyncio.sleep(self.backoff())

    def backoff(self):
        """Returns the wait before the next attempt."""
        after, self.reconnect_after = self.reconnect_after, None
        last = self.sessions[-1] if self.sessions else None
        if after is not None or (last and last.end - last.begin >= STEADY):
            self.failures = 0
        if after is not None:
            return after
        self.failures += 1
        return random.random() * min(BACKOFF_MAX, BACKOFF_MIN * 2 ** (self.failures - 1))

    async def connect(self, connection):
        """Connects to a relay, and remains there for as long as the connection lasts."""
        relay = self.users.service.choose()
        async with asyncio.timeout(CONNECT):
            await connection.open(relay.port, ["switchboard.v1", *([f"ticket.{self.ticket}"] if self.ticket else [])])
            frames = []
            while not frames:
                frames = await connection.receive()
                if frames is None:
                    raise ConnectionError("closed before the welcome")
        session = Session(relay)
        self.welcome(frames[0], session, connection)
        try:
            await self.listen(connection, session, frames[1:], frames[0]["heartbeat_ms"] / 1000 * QUIET_HEARTBEATS)
        finally:
            session.end, session.code = time.monotonic(), connection.close_code()
            self.send_no_more()
            if session.code in FINAL_CODES:
                self.users.fault(f"user {self.id} was closed with {session.code} at {relay.name}")

    def welcome(self, frame, session, connection):
        if self.id not in (None, frame["user_id"]):
            self.users.fault(f"user {self.id} came back as {frame['user_id']}: {frame.get('reason')}")
        self.id, self.ticket, self.connection = frame["user_id"], frame["ticket"], connection
        self.sessions.append(session)
        if self.lost:
            self.gaps.append(session.begin - self.lost)
        self.lost = None

    def send_no_more(self):
        self.connection = None
        self.lost = self.lost or time.monotonic()

    async def listen(self, connection, session, frames, quiet):
        """Hears all frames. After `quiet` seconds without one it asks whether the relay is there."""
        asked = False
        while frames is not None:
            for frame in frames:
                self.hear(frame, session)
            try:
                async with asyncio.timeout(ANSWER if asked else quiet):
                    frames = await connection.receive()
                    asked = False
            except TimeoutError:
                if asked:
                    self.users.gave_up += 1
                    return
                connection.send({"type": "ping"})
                asked, frames = True, []

    def hear(self, frame, session):
        if frame["type"] == "message":
            message = self.users.messages[int(frame["message"])]
            message.arrivals += 1
            if message.recipient is not self or message.sender.id != frame["sender_id"]:
                self.users.fault(f"a message of user {message.sender.id} to {message.recipient.id} arrived at {self.id}")
            # Not across sessions of the sender: its old relay may read what was sent before the sender gave it up.
            if message.sent < self.heard.get(message.session, 0):
                self.users.fault(f"a message of user {message.sender.id} overtook another to {self.id}")
            self.heard[message.session] = message.sent
        elif frame["type"] == "outcome":
            message = self.users.messages[frame["id"]]
            message.outcomes.append(frame["status"])
            message.answered = time.monotonic()
            session.proven = max(session.proven, message.sent)
            if frame["status"] == "delivered":
                self.delivered = message.sent
                self.users.paths[session.relay, message.recipient.sessions[-1].relay] = message.sent
        elif frame["type"] == "reconnect":
            # Outcomes may still come, and then the close.
            self.reconnect_after = frame["after_ms"] / 1000
            self.send_no_more()
        elif frame["type"] != "pong":
            self.users.fault(f"user {self.id} received {frame}")

    def send(self, recipient):
        if self.connection and recipient.id:
            number = len(self.users.messages)
            self.users.messages.append(Message(self, recipient))
            self.connection.send({"recipient_id": recipient.id, "message": str(number), "id": number})

    def is_at(self, relays):
        return self.connection is not None and self.sessions[-1].relay in relays

    def was_away(self, begin, end):
        """Returns whether no relay may have had this user at some time of the span."""
        gaps = [(before.proven, after.begin) for before, after in zip(self.sessions, self.sessions[1:])]
        if self.connection is None:
            gaps.append((self.sessions[-1].proven, end))
        return any(lost < end and begin < back for lost, back in gaps)


class Disturbance:
    """A time in which messages between relays, from or to `relays`, may have these outcomes wherever their recipients
    are."""

    def __init__(self, relays, outcomes):
        self.relays, self.outcomes, self.begin, self.end = set(relays), outcomes, time.monotonic(), None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end = time.monotonic()

    def explains(self, message):
        if message.outcome() not in self.outcomes or not self.begin - IN_FLIGHT < message.sent < self.end:
            return False
        # Where the sender's relay may have sent the message to: where the recipient was since just before.
        places = {session.relay for session in message.recipient.sessions
                  if session.begin < message.answered and (session.end is None or session.end > self.begin - IN_FLIGHT)}
        places.add(message.session.relay)
        return len(places) > 1 and bool(places & self.relays)


class Users:
    """All users. `service` chooses the relay of each new connection."""

    def __init__(self, service, count):
        self.service, self.members = service, [User(self) for _ in range(count)]
        self.messages, self.faults, self.disturbances = [], [], []
        # Names, each with the number of its first message.
        self.phases = []
        # When the latest message from one relay to another was sent that was delivered.
        self.paths = {}
        self.refusals, self.gave_up, self.stale = collections.Counter(), 0, 0

    async def __aenter__(self):
        self.sending = asyncio.create_task(self.keep_sending())
        self.tasks = [self.sending, *(asyncio.create_task(user.run()) for user in self.members)]
        return self

    async def __aexit__(self, *_):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def keep_sending(self):
        while True:
            for _ in range(int(RATE * BURST)):
                sender, recipient = random.sample(self.members, 2)
                sender.send(recipient)
            await asyncio.sleep(BURST)

    def phase(self, name):
        print(f"{name}:", flush=True)
        self.phases.append((name, len(self.messages)))

    def disturbance(self, relays, outcomes):
        self.disturbances.append(Disturbance(relays, outcomes))
        return self.disturbances[-1]

    def fault(self, text):
        print(f"  FAULT: {text}", flush=True)
        self.faults.append(text)

    async def until(self, what, look, patience=2 * PATIENCE):
        """Waits until `look` returns something true."""
        deadline = time.monotonic() + patience
        while not look():
            for task in self.tasks:
                if task.done() and not task.cancelled():
                    task.result()  # raises what ended it
            if time.monotonic() > deadline:
                raise SystemExit(f"not within {patience} s: {what}")
            await asyncio.sleep(0.05)

    async def until_at(self, relays):
        await self.until("all users are connected", lambda: all(user.is_at(relays) for user in self.members))

    async def until_delivered(self, relays):
        """Waits until, from now on, each user at these relays has had a message delivered, and so has each of the relays
        from each of them that has users."""
        since, users = time.monotonic(), [user for user in self.members if user.is_at(relays)]
        places = {user.sessions[-1].relay for user in users}
        await self.until("messages are delivered", lambda: all(user.delivered > since for user in users) and all(
            self.paths.get((one, other), 0) > since for one in places for other in places))

    async def finish(self):
        """Stops the messages, waits for all outcomes that are due, and judges and prints them."""
        self.sending.cancel()
        await self.until("every message of a connection that lives has its outcome", lambda: not any(
            message.session.end is None and not message.outcomes for message in self.messages))
        first_answers = self.first_answers()
        for number, message in enumerate(self.messages):
            if problem := self.problem(message, first_answers):
                self.fault(f"message {number} from {message.session.relay.name}, outcomes {message.outcomes}, "
                           f"arrived {message.arrivals} times: {problem}")
        self.report()

    def first_answers(self):
        """Returns when each relay had the first answer about each session of a recipient, since that began."""
        first = {}
        for message in self.messages:
            for session in message.recipient.sessions if message.outcomes else []:
                if message.sent >= session.begin:
                    key = message.session.relay, session
                    first[key] = min(message.answered, first.get(key, message.answered))
        return first

    def problem(self, message, first_answers):
        """Returns what is wrong with a message, or None."""
        outcome, recipient = message.outcome(), message.recipient
        if message.arrivals > 1:
            return "it arrived twice"
        if len(message.outcomes) > 1:
            return "it has two outcomes"
        if outcome == "delivered" and not message.arrivals:
            return "it was delivered, and has not arrived"
        if outcome in NOT_DELIVERED and message.arrivals:
            return "it was not delivered, and has arrived"
        if outcome in (None, "delivered") or any(disturbance.explains(message) for disturbance in self.disturbances):
            return None
        if outcome in ("offline", "disconnected") and recipient.was_away(message.sent, message.answered):
            return None
        # The sender's relay sends to the place at which the recipient was before, until it is told from there.
        before = [session for session in recipient.sessions if session.begin <= message.sent]
        if outcome == "offline" and len(before) > 1 and message.sent <= first_answers[message.session.relay, before[-1]]:
            self.stale += 1
            return None
        return "nothing explains that outcome"

    def report(self):
        """Prints the shares of the outcomes in each phase, and the times without a connection."""
        kinds = ["delivered", "offline", "unavailable", "unknown", "disconnected", None]
        print(f"\n{'outcomes':20} messages" + "".join(f"{kind or 'none':>13}" for kind in kinds))
        ends = [begin for _, begin in self.phases[1:]] + [len(self.messages)]
        for (name, begin), end in [*zip(self.phases, ends), (("all", 0), len(self.messages))]:
            counts = collections.Counter(message.outcome() for message in self.messages[begin:end])
            shares = [f"{100 * counts[kind] / max(end - begin, 1):.4f}%" for kind in kinds]
            print(f"{name:20} {end - begin:8}" + "".join(f"{share:>13}" for share in shares))
        print("none: the sender's connection ended before the outcome came")
        print(f"{self.stale} messages were offline because their recipients had moved, as their senders' relays then learned")
        if gaps := [gap for user in self.members for gap in user.gaps]:
            print(f"{len(gaps)} times a user was without a connection: median {statistics.median(gaps):.1f} s, longest {max(gaps):.1f} s")
        codes = collections.Counter(session.code for user in self.members for session in user.sessions if session.end)
        print(f"connections that ended, by close code: {dict(codes)}; given up by their users: {self.gave_up}; "
              f"attempts that failed: {dict(self.refusals)}", flush=True)
