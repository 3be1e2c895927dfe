// Tests of the JavaScript client in Node, with a relay that refuses it, ends its token, or cannot be heard.

import assert from "node:assert/strict";
import { mkdtempSync, writeFileSync } from "node:fs";
import { createServer, connect as connectTcp } from "node:net";
import { tmpdir } from "node:os";
import { join as joinPath } from "node:path";
import { after, afterEach, before, test } from "node:test";

import WebSocket from "ws";

import { Relay, until } from "./relay.mjs";

/** @typedef {import("../../src/ui/switchboard.js").Options} Options */

/** @type {Relay} */
let relay;
/** @type {typeof import("../../src/ui/switchboard.js").connect} */
let connect;
/** @type {import("../../src/ui/switchboard.js").Switchboard[]} */
const clients = [];

const secretFile = joinPath(mkdtempSync(joinPath(tmpdir(), "switchboard-")), "secret");
writeFileSync(secretFile, "a secret of at least 32 bytes, yes\n");

before(async () => {
  relay = await Relay.start({ AUTH__MODE: "jwt", AUTH__SECRET_FILE: secretFile, AUTH__LEEWAY: "1s" });
  ({ connect } = await relay.client());
});

afterEach(() => {
  for (const client of clients.splice(0)) client.close();
});

after(() => relay.stop());

/** @param {Options} options @param {string} url */
function join(options, url = relay.url) {
  /** @type {string[]} */
  const phases = [];
  const client = connect(url, { WebSocket, random: () => 0, ...options, onState: ({ phase }) => phases.push(phase) });
  clients.push(client);
  return { client, phases };
}

test("opened rejects with the reason when the token is refused, and the client stops", async () => {
  for (const token of [undefined, "x.y.z", () => "x.y.z"]) {
    const { client, phases } = join({ token });
    await assert.rejects(client.opened(), /^Error: closed: unauthorized$/);
    assert.deepEqual([client.state.phase, client.state.status], ["closed", 401]);
    assert.deepEqual(phases, ["closed"]);
    assert.equal(await client.send(1, "hello?"), "not_sent");
    await assert.rejects(client.opened(), /closed: unauthorized/);
  }
});

test("opened rejects with the reason when the page's origin is refused", async () => {
  class OfAPage extends WebSocket {
    /** @param {string} url @param {string[]} protocols */
    constructor(url, protocols) {
      super(url, protocols, { origin: "https://page.test" });
    }
  }
  const ask = globalThis.fetch;
  globalThis.fetch = (url, init) => ask(url, { ...init, headers: { ...init?.headers, origin: "https://page.test" } });
  try {
    const { client } = join({ WebSocket: OfAPage, token: relay.token() });
    await assert.rejects(client.opened(), /closed: this page may not connect: its origin is not in server.allowed_origins/);
    assert.deepEqual([client.state.phase, client.state.status], ["closed", 403]);
  } finally {
    globalThis.fetch = ask;
  }
});

for (const [name, options] of /** @type {[string, () => Options][]} */ ([
  ["token", () => ({ token: async () => relay.token("2s") })],
  ["protocols", () => ({ protocols: () => [`bearer.${relay.token("2s")}`] })],
])) {
  test(`after a token has expired, the client asks ${name} for a fresh one and keeps its id`, async () => {
    const { client, phases } = join(options());
    const id = await client.opened();
    await until(() => phases.includes("waiting"), "the end of the token");
    assert.equal(await client.opened(), id);
    assert.ok(client.state.resumed);
    assert.equal(await client.send(id, "still me"), "delivered");
  });
}

test("after a fresh token is refused, the client stops", async () => {
  const tokens = [relay.token("2s"), "x.y.z"];
  const { client, phases } = join({ token: () => String(tokens.shift()) });
  await client.opened();
  await until(() => client.state.phase === "closed", "the end");
  assert.deepEqual(phases, ["open", "waiting", "connecting", "closed"]);
  assert.equal(client.state.status, 401);
  assert.equal(tokens.length, 0);
});

test("a client without a fresh token stops when its token has expired", async () => {
  const { client, phases } = join({ token: relay.token("2s") });
  await client.opened();
  await until(() => client.state.phase === "closed", "the end of the token");
  assert.equal(client.state.code, 4401);
  assert.deepEqual(phases, ["open", "closed"]);
});

test("a client that only listens notices that the network is gone, and comes back", async () => {
  const quick = await Relay.start({ KEEPALIVE__PING_INTERVAL: "1s", KEEPALIVE__PONG_TIMEOUT: "1s" });
  const network = await Network.to(quick.port);
  try {
    /** @type {string[]} */
    const frames = [];
    const onFrame = (/** @type {{ direction: string, text: string }} */ { direction, text }) => frames.push(`${direction} ${text}`);
    const { client, phases } = join({ onFrame, answerMs: 300 }, `ws://127.0.0.1:${network.port}/`);
    await client.opened();
    // Pings are answered, so nothing else has to happen for the connection to stay.
    await until(() => frames.filter((frame) => frame === 'in {"type":"pong"}').length >= 2, "two pongs");
    assert.deepEqual(phases, ["open"]);
    network.isCut = true;
    await until(() => phases.includes("waiting"), "the loss");
    network.isCut = false;
    await client.opened();
    assert.equal(await client.send(client.state.userId ?? 0, "here again"), "delivered");
  } finally {
    network.server.close();
    for (const socket of network.sockets) socket.destroy();
    await quick.stop();
  }
});

/** Passes bytes on until it is cut. Then it swallows them, and closes nothing. */
class Network {
  isCut = false;
  /** @type {import("node:net").Socket[]} */
  sockets = [];

  /** @param {number} port */
  static async to(port) {
    const network = new Network();
    network.server = createServer((near) => {
      const far = connectTcp(port, "127.0.0.1");
      network.sockets.push(near, far);
      // Bytes that were swallowed would garble the rest, so a connection that was cut stays silent.
      let isDead = false;
      const pass = (from, to) => {
        from.on("data", (bytes) => {
          isDead ||= network.isCut;
          if (!isDead) to.write(bytes);
        });
        from.on("close", () => isDead || to.destroy());
        from.on("error", () => {});
      };
      pass(near, far);
      pass(far, near);
    });
    await new Promise((resolve) => network.server.listen(0, "127.0.0.1", () => resolve(undefined)));
    network.port = network.server.address().port;
    return network;
  }
}
