// The client in Node, against a real relay that is drained, killed, frozen and started again.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join as joinPath } from "node:path";
import { after, afterEach, before, test } from "node:test";
import { fileURLToPath } from "node:url";

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

test("a message arrives and its promise says so", async () => {
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
  assert.equal(await a.client.send(9_007_199_254_740_991, "anybody?"), "offline");
});

test("outcomes find their messages among many", async () => {
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
  await until(() => b.received.length >= 133, "what was delivered");
  const expected = outcomes.flatMap((outcome, n) => (outcome === "delivered" ? [String(n)] : []));
  assert.deepEqual(b.received.map(({ message }) => message), expected);
});

test("what no relay could take is refused here, and the connection lives", async () => {
  const { client, states } = join();
  const id = await client.opened();
  for (const bad of [0, -1, 1.5, 2 ** 53, NaN, "2", undefined]) {
    await assert.rejects(client.send(/** @type {any} */ (bad), "x"), RangeError);
  }
  for (const bad of ["\ud800", "a\udc00b", 7, null]) {
    await assert.rejects(client.send(id, /** @type {any} */ (bad)), TypeError);
  }
  assert.equal(await client.send(id, "x".repeat(5000)), "too_large");
  // Far beyond what the relay reads at all.
  assert.equal(await client.send(id, "x".repeat(500_000)), "too_large");
  assert.equal(await client.send(id, "x".repeat(4000)), "delivered");
  assert.equal(states.filter(({ phase }) => phase === "open").length, 1);
  assert.equal(await relay.metric("switchboard_bad_messages_total"), 0);
});

test("closing settles what is under way, and is the end", async () => {
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

test("a drain is obeyed to the millisecond", async (t) => {
  const frames = [];
  const { client, states } = join({ onFrame: ({ text }) => frames.push(JSON.parse(text)) });
  const id = await client.opened();
  const clock = t.mock.method(Date, "now", () => 1_000_000);
  const drained = relay.stop("SIGTERM");
  await until(() => frames.some(({ type }) => type === "reconnect"), "reconnect");
  // The relay reads nothing more, and the client knows.
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

test("waits grow from half a second to half a minute, at random", async (t) => {
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
  await until(() => waits.length >= 9, "tries");
  clock.mock.restore();
  const bounds = [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000];
  assert.deepEqual(waits.slice(0, 9).map(Math.round), bounds);
  await relay.restart();
  await client.opened();
});

test("a ticket that was kept brings its id back, and its first bearer does not fight for it", async () => {
  const tickets = [];
  const first = join({ onTicket: (ticket) => tickets.push(ticket) });
  const id = await first.client.opened();
  const second = join({ ticket: tickets[0] });
  assert.equal(await second.client.opened(), id);
  assert.ok(second.client.state.resumed);
  await until(() => first.client.state.phase === "closed", "the earlier one is closed for good");
  assert.deepEqual([first.client.state.code, first.client.state.reason], [4409, "taken over"]);
  await assert.rejects(first.client.opened(), /taken over/);
  const third = join({ ticket: "x" });
  assert.notEqual(await third.client.opened(), id);
  assert.deepEqual([third.client.state.resumed, third.client.state.reason], [false, "ticket_invalid"]);
});

test("a relay that has gone silent is given up", async () => {
  const { client } = join({ silenceMs: 300, connectMs: 300, random: () => 0.1 });
  const id = await client.opened();
  assert.equal(await client.send(id, "x"), "delivered");
  await relay.freeze();
  const settled = client.send(id, "into the void");
  assert.equal(await settled, "unknown");
  assert.equal(client.state.phase, "waiting");
  assert.equal(client.state.reason, "no answer");
  // Its kernel still accepts connections; nobody answers them.
  await until(() => client.state.phase === "connecting", "a try");
  await until(() => client.state.phase === "waiting", "the try's end");
  relay.thaw();
  assert.equal(await client.send(await client.opened(), "x"), "delivered");
});

test("drained, killed and restarted in a loop: every promise settles, and truly", async () => {
  const rounds = Number(process.env.SWITCHBOARD_CLIENT_ROUNDS ?? 6);
  const received = new Map();
  const people = Array.from({ length: 8 }, () =>
    join({
      random: () => Math.random() * 0.2,
      onMessage: ({ message }) => received.set(message, (received.get(message) ?? 0) + 1),
    }),
  );
  const ids = await Promise.all(people.map(({ client }) => client.opened()));
  // The latter half only listens. Behind a relay that was killed, a runtime whose own write has failed
  // throws away what its socket had received and it had not yet read (Node does), and no relay can tell:
  // so while the next end is a kill, nobody writes to somebody who writes.
  const talkers = people.slice(0, people.length / 2);
  const listeners = people.slice(people.length / 2);
  let audience = listeners;
  let talking = true;
  let sent = 0;
  let underWayToTalkers = 0;
  const outcomes = new Map();
  const sendOne = async (client) => {
    const recipient = audience[Math.floor(Math.random() * audience.length)];
    const toTalker = talkers.includes(recipient) ? 1 : 0;
    const message = `message ${sent++}`;
    underWayToTalkers += toTalker;
    outcomes.set(message, await client.send(recipient.client.state.userId, message));
    underWayToTalkers -= toTalker;
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
    await until(() => sent > before + 500, "some talk");
    if (signal === "SIGKILL") await until(() => underWayToTalkers === 0, "outcomes of the round before");
    await relay.stop(signal);
    await relay.restart();
    // Everybody is back, and is who it was.
    assert.deepEqual(await Promise.all(people.map(({ client }) => client.opened())), ids);
    assert.ok(people.every(({ client }) => client.state.resumed));
  }
  talking = false;
  await Promise.all(talks);
  assert.equal(outcomes.size, sent);
  const delivered = [...outcomes].filter(([, outcome]) => outcome === "delivered");
  await until(() => delivered.every(([message]) => received.has(message)), "what was delivered");
  for (const [message, times] of received) assert.equal(times, 1, message);
  // The loop has met both: a promise that was kept, and one whose end nobody knows.
  assert.ok(delivered.length > 500);
  assert.ok([...outcomes.values()].includes("unknown"));
  for (const [message, outcome] of outcomes) {
    if (outcome === "not_sent") assert.ok(!received.has(message), message);
  }
});

test("the client and the page hold by their types", () => {
  const here = fileURLToPath(new URL(".", import.meta.url));
  try {
    execFileSync("npx", ["--no-install", "tsc", "--project", "tsconfig.json"], { cwd: here, encoding: "utf8" });
  } catch (error) {
    assert.fail(/** @type {any} */ (error).stdout);
  }
});
