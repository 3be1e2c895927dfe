// Tests of the JavaScript client in Node, with a relay that drains, is killed, stops answering and restarts.

import assert from "node:assert/strict";
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join as joinPath } from "node:path";
import { after, afterEach, before, test } from "node:test";

import WebSocket from "ws";

import { Relay, until } from "./relay.mjs";

/** @type {Relay} */
let relay;
/** @type {typeof import("../../src/ui/switchboard.js").connect} */
let connect;
/** @type {import("../../src/ui/switchboard.js").Switchboard[]} */
const clients = [];

const secretFile = joinPath(mkdtempSync(joinPath(tmpdir(), "switchboard-")), "secret");
writeFileSync(secretFile, "a secret of at least 32 bytes, yes\n");

const SETTINGS = {
  TICKETS__SECRET_FILE: secretFile,
  DRAIN__DELAY: "0s",
  DRAIN__SPREAD: "300ms",
  DRAIN__TIMEOUT: "3s",
  LIMITS__MESSAGE_BYTES: "4KiB",
  // The client asks for a sign of life when it has heard nothing for 1.2 of these.
  KEEPALIVE__PING_INTERVAL: "2s",
};

before(async () => {
  relay = await Relay.start(SETTINGS);
  ({ connect } = await relay.client());
});

afterEach(() => {
  for (const client of clients.splice(0)) client.close();
});

after(() => relay.stop());

/** @param {import("../../src/ui/switchboard.js").Options} options */
function join(options = {}) {
  const states = [];
  const received = [];
  const client = connect(relay.url, {
    WebSocket,
    onMessage: (message) => received.push(message),
    ...options,
    onState: (state) => {
      states.push(state);
      options.onState?.(state);
    },
  });
  clients.push(client);
  return { client, states, received };
}

test("a message arrives and its promise resolves to delivered", async () => {
  const a = join();
  const b = join();
  const [aId, bId] = await Promise.all([a.client.opened(), b.client.opened()]);
  assert.notEqual(aId, bId);
  for (const message of ["Go Braves!", "", "\0\n\"\\", "😀 \u202egnp.exe", "é".repeat(1000)]) {
    assert.equal(await a.client.send(bId, message), "delivered");
    await until(() => b.received.length > 0, "the message");
    assert.deepEqual(b.received.shift(), { senderId: aId, message });
  }
  assert.equal(await a.client.send(aId, "to myself"), "delivered");
  assert.equal(await a.client.send(9_007_199_254_740_991, "hello?"), "offline");
});

test("each promise gets the outcome of its own message", async () => {
  const a = join();
  const b = join();
  await a.client.opened();
  const bId = await b.client.opened();
  const sent = Array.from({ length: 200 }, (_, n) =>
    a.client.send(n % 3 === 0 ? 9_007_199_254_740_991 : bId, String(n)),
  );
  const outcomes = await Promise.all(sent);
  for (const [n, outcome] of outcomes.entries()) {
    assert.equal(outcome, n % 3 === 0 ? "offline" : "delivered", `message ${n}`);
  }
  await until(() => b.received.length >= 133, "the delivered messages");
  const expected = outcomes.flatMap((outcome, n) => (outcome === "delivered" ? [String(n)] : []));
  assert.deepEqual(b.received.map(({ message }) => message), expected);
});

test("invalid messages are refused by the client, and the connection stays open", async () => {
  const { client, states } = join();
  const id = await client.opened();
  for (const bad of [0, -1, 1.5, 2 ** 53, NaN, "2", undefined]) {
    await assert.rejects(client.send(/** @type {any} */ (bad), "x"), RangeError);
  }
  for (const bad of ["\ud800", "a\udc00b", 7, null]) {
    await assert.rejects(client.send(id, /** @type {any} */ (bad)), TypeError);
  }
  assert.equal(await client.send(id, "x".repeat(5000)), "too_large");
  // Above limits.frame_bytes, so the relay would not read it.
  assert.equal(await client.send(id, "x".repeat(500_000)), "too_large");
  assert.equal(await client.send(id, "x".repeat(4000)), "delivered");
  assert.equal(states.filter(({ phase }) => phase === "open").length, 1);
  assert.equal(await relay.metric("switchboard_bad_messages_total"), 0);
});

test("closing settles the promises of messages in flight, and is final", async () => {
  const { client, states } = join();
  const id = await client.opened();
  const sent = client.send(id, "x");
  client.close();
  client.close();
  assert.equal(await sent, "unknown");
  assert.equal(await client.send(id, "x"), "not_sent");
  await assert.rejects(client.opened(), /closed here/);
  assert.equal(states.at(-1)?.phase, "closed");
  const early = join().client;
  const waiting = early.opened();
  early.close();
  await assert.rejects(waiting, /closed here/);
});

test("the client reconnects after exactly the time that a draining relay gives", async (t) => {
  const frames = [];
  const { client, states } = join({ onFrame: ({ text }) => frames.push(JSON.parse(text)) });
  const id = await client.opened();
  const clock = t.mock.method(Date, "now", () => 1_000_000);
  const drained = relay.stop("SIGTERM");
  await until(() => frames.some(({ type }) => type === "reconnect"), "reconnect");
  // The client sends nothing more, because a draining relay does not read it.
  assert.equal(await client.send(id, "too late"), "not_sent");
  await until(() => client.state.phase === "waiting", "the close");
  clock.mock.restore();
  const { after_ms: afterMs } = frames.find(({ type }) => type === "reconnect");
  assert.deepEqual([client.state.code, client.state.retryAt], [1012, 1_000_000 + afterMs]);
  assert.equal(await client.send(id, "x"), "not_sent");
  await drained;
  await relay.restart();
  await client.opened();
  const phases = states.map(({ phase }) => phase);
  assert.deepEqual(phases.slice(0, 3), ["open", "waiting", "connecting"]);
});

test("the limit of the random wait grows from 0.5 s to 30 s", async (t) => {
  await relay.stop();
  const waits = [];
  const clock = t.mock.method(Date, "now", () => 1_000_000);
  const share = 1 / 1024;
  const { client } = join({
    random: () => share,
    onState: ({ phase, retryAt }) => {
      if (phase === "waiting") waits.push(((retryAt ?? 0) - 1_000_000) / share);
    },
  });
  await until(() => waits.length >= 9, "nine attempts");
  clock.mock.restore();
  const bounds = [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000];
  assert.deepEqual(waits.slice(0, 9).map(Math.round), bounds);
  await relay.restart();
  await client.opened();
});

test("a stored ticket restores its id, and the earlier connection closes for good", async () => {
  const tickets = [];
  const first = join({ onTicket: (ticket) => tickets.push(ticket) });
  const id = await first.client.opened();
  const second = join({ ticket: tickets[0] });
  assert.equal(await second.client.opened(), id);
  assert.ok(second.client.state.resumed);
  await until(() => first.client.state.phase === "closed", "the earlier connection to close");
  assert.deepEqual([first.client.state.code, first.client.state.reason], [4409, "taken over"]);
  await assert.rejects(first.client.opened(), /taken over/);
  const third = join({ ticket: "x" });
  assert.notEqual(await third.client.opened(), id);
  assert.deepEqual([third.client.state.resumed, third.client.state.reason], [false, "ticket_invalid"]);
});

test("the client reconnects when the relay stops answering", async () => {
  const { client } = join({ answerMs: 300, connectMs: 300, random: () => 0.1 });
  const id = await client.opened();
  assert.equal(await client.send(id, "x"), "delivered");
  await relay.freeze();
  const settled = client.send(id, "into the void");
  assert.equal(await settled, "unknown");
  assert.equal(client.state.phase, "waiting");
  assert.equal(client.state.reason, "no answer");
  // The kernel still accepts connections, but the relay does not answer them.
  await until(() => client.state.phase === "connecting", "an attempt");
  await until(() => client.state.phase === "waiting", "the end of the attempt");
  relay.thaw();
  assert.equal(await client.send(await client.opened(), "x"), "delivered");
});

test("while the relay is drained, killed and restarted, every promise settles with the truth", async () => {
  const rounds = Number(process.env.SWITCHBOARD_CLIENT_ROUNDS ?? 6);
  const received = new Map();
  const people = Array.from({ length: 8 }, () =>
    join({
      random: () => Math.random() * 0.2,
      onMessage: ({ message }) => received.set(message, (received.get(message) ?? 0) + 1),
    }),
  );
  const ids = await Promise.all(people.map(({ client }) => client.opened()));
  // The second half only listens. After a relay is killed, Node discards unread bytes of a socket whose write
  // has failed. So a delivered message to a user who also writes can be lost in Node, and the relay cannot
  // know. Before a kill, messages therefore go only to listeners.
  const talkers = people.slice(0, people.length / 2);
  const listeners = people.slice(people.length / 2);
  let audience = listeners;
  let talking = true;
  let sent = 0;
  let inFlightToTalkers = 0;
  const outcomes = new Map();
  const sendOne = async (client) => {
    const recipient = audience[Math.floor(Math.random() * audience.length)];
    const toTalker = talkers.includes(recipient) ? 1 : 0;
    const message = `message ${sent++}`;
    inFlightToTalkers += toTalker;
    outcomes.set(message, await client.send(recipient.client.state.userId, message));
    inFlightToTalkers -= toTalker;
  };
  const talk = async ({ client }) => {
    while (talking) {
      await Promise.all(Array.from({ length: 10 }, () => sendOne(client)));
      await client.opened();
    }
  };
  const talks = talkers.map(talk);
  for (let round = 0; round < rounds; round += 1) {
    const signal = round % 2 === 0 ? "SIGKILL" : "SIGTERM";
    audience = signal === "SIGKILL" ? listeners : people;
    const before = sent;
    await until(() => sent > before + 500, "500 messages");
    if (signal === "SIGKILL") await until(() => inFlightToTalkers === 0, "the outcomes of the last round");
    await relay.stop(signal);
    await relay.restart();
    // All users are back with their ids.
    assert.deepEqual(await Promise.all(people.map(({ client }) => client.opened())), ids);
    assert.ok(people.every(({ client }) => client.state.resumed));
  }
  talking = false;
  await Promise.all(talks);
  assert.equal(outcomes.size, sent);
  const delivered = [...outcomes].filter(([, outcome]) => outcome === "delivered");
  await until(() => delivered.every(([message]) => received.has(message)), "the delivered messages");
  for (const [message, times] of received) assert.equal(times, 1, message);
  // Both cases have occurred: messages that were delivered, and messages whose outcome is unknown.
  assert.ok(delivered.length > 500);
  assert.ok([...outcomes.values()].includes("unknown"));
  for (const [message, outcome] of outcomes) {
    if (outcome === "not_sent") assert.ok(!received.has(message), message);
  }
});
