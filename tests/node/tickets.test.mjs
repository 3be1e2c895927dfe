// Tests of tickets over real sockets, with both routing strategies: a user keeps its id when it reconnects.

import assert from "node:assert/strict";
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import WebSocket from "ws";

import { Relay, until } from "./relay.mjs";

/** A connection, and the frames that it has received. */
class Person {
  /**
   * @param {Relay} relay
   * @param {{ ticket?: string, header?: boolean, bare?: boolean }} options
   */
  static async join(relay, { ticket, header = false, bare = false } = {}) {
    const protocols = bare ? [] : ["switchboard.v1"];
    const headers = {};
    if (ticket !== undefined && header) headers["x-ticket"] = ticket;
    else if (ticket !== undefined) protocols.push(`ticket.${ticket}`);
    const person = new Person();
    person.frames = [];
    person.closed = null;
    person.socket = new WebSocket(relay.url, protocols, { headers });
    person.socket.on("message", (data) => person.frames.push(JSON.parse(String(data))));
    person.socket.on("close", (code, reason) => (person.closed = { code, reason: String(reason) }));
    person.socket.on("upgrade", (answer) => (person.id = Number(answer.headers["x-user-id"])));
    await new Promise((resolve, reject) => {
      person.socket.on("open", resolve);
      person.socket.on("error", reject);
    });
    assert.equal(person.socket.protocol, bare ? "" : "switchboard.v1");
    if (!bare) {
      await until(() => person.frames.length > 0, "welcome");
      person.welcome = person.frames.shift();
      assert.equal(person.welcome.type, "welcome");
      assert.equal(person.welcome.user_id, person.id);
    }
    return person;
  }

  send(recipientId, message, id) {
    this.socket.send(JSON.stringify({ recipient_id: recipientId, message, id }));
  }

  async next() {
    await until(() => this.frames.length > 0, "a frame");
    return this.frames.shift();
  }

  /** Sends a message, and returns its outcome. */
  async outcome(recipientId, message) {
    this.send(recipientId, message, 1);
    for (;;) {
      const frame = await this.next();
      if (frame.type === "outcome") return frame.status;
    }
  }

  async ended() {
    await until(() => this.closed !== null, "the close");
    return this.closed;
  }

  async leave() {
    this.socket.close();
    await this.ended();
  }
}

/** Returns messages and connections that are not accounted for, once the metrics are stable. */
async function balance(relay) {
  const names = ["received", "delivered", "dropped"].map((name) => `switchboard_messages_${name}_total`);
  names.push("switchboard_mailbox_messages", "switchboard_connections");
  names.push("switchboard_connections_opened_total", "switchboard_connections_closed_total");
  const read = () => Promise.all(names.map((name) => relay.metric(name)));
  let figures = await read();
  await until(async () => {
    const before = figures;
    figures = await read();
    return figures.every((figure, n) => figure === before[n]);
  }, "stable metrics");
  const [received, delivered, dropped, mailbox, connections, opened, closed] = figures;
  return { gap: received - delivered - dropped - mailbox, missing: opened - closed - connections };
}

for (const strategy of ["directory", "router"]) {
  describe(`tickets with the ${strategy} strategy`, () => {
    const secretFile = join(mkdtempSync(join(tmpdir(), "switchboard-")), "secret");
    writeFileSync(secretFile, "a secret of at least 32 bytes, yes\n");
    /** @type {Relay} */
    let relay;
    before(async () => {
      relay = await Relay.start({
        ROUTING__STRATEGY: strategy,
        TICKETS__SECRET_FILE: secretFile,
        TICKETS__TTL: "2s",
        KEEPALIVE__WRITE_TIMEOUT: "1s",
      });
    });
    after(() => relay.stop());

    test("a user that has left comes back with its id", async () => {
      const first = await Person.join(relay);
      assert.deepEqual([first.welcome.resumed, first.welcome.reason], [false, undefined]);
      assert.match(first.welcome.ticket, /^[\w-]{75}$/);
      const other = await Person.join(relay);
      await first.leave();
      await until(async () => (await other.outcome(first.id, "x")) === "offline", "offline");
      for (const header of [false, true]) {
        const again = await Person.join(relay, { ticket: first.welcome.ticket, header });
        assert.equal(again.id, first.id);
        assert.deepEqual([again.welcome.resumed, again.welcome.reason], [true, undefined]);
        assert.equal(await other.outcome(first.id, "welcome back"), "delivered");
        assert.equal((await again.next()).message, "welcome back");
        await again.leave();
      }
      await other.leave();
    });

    test("a bare connection comes back with the header, and gets no frame about it", async () => {
      const first = await Person.join(relay);
      await first.leave();
      const again = await Person.join(relay, { ticket: first.welcome.ticket, header: true, bare: true });
      assert.equal(again.id, first.id);
      again.send(again.id, "to myself");
      assert.deepEqual(await again.next(), { sender_id: first.id, message: "to myself" });
      await again.leave();
    });

    test("a newer connection takes over the id, and keeps it when the earlier one ends", async () => {
      const [first, other] = await Promise.all([Person.join(relay), Person.join(relay)]);
      const second = await Person.join(relay, { ticket: first.welcome.ticket });
      assert.deepEqual([second.id, second.welcome.resumed], [first.id, true]);
      assert.deepEqual(await first.ended(), { code: 4409, reason: "taken over" });
      assert.equal(await other.outcome(second.id, "for the later"), "delivered");
      assert.equal((await second.next()).message, "for the later");
      assert.deepEqual(first.frames, []);
      assert.equal(await second.outcome(other.id, "and back"), "delivered");
      assert.deepEqual(await balance(relay), { gap: 0, missing: 0 });
      await Promise.all([second.leave(), other.leave()]);
    });

    test("an earlier connection that does not read stays in the ledger until it ends", async () => {
      const [silent, other] = await Promise.all([Person.join(relay), Person.join(relay)]);
      silent.socket._socket.pause();
      const text = "x".repeat(60_000);
      let sent = 0;
      // The socket is full when the messages without an outcome are those that stay in the mailbox.
      await until(async () => {
        const inMailbox = await relay.metric("switchboard_mailbox_messages");
        if (other.frames.length + inMailbox < sent) return false;
        if (inMailbox > 0) return true;
        for (let n = 0; n < 20; n += 1) other.send(silent.id, text, sent++);
        return false;
      }, "messages that stay in the mailbox");
      const second = await Person.join(relay, { ticket: silent.welcome.ticket });
      assert.equal(second.id, silent.id);
      for (let n = 0; n < 20; n += 1) {
        const { gap, missing } = await balance(relay);
        assert.deepEqual({ gap, missing }, { gap: 0, missing: 0 });
      }
      await until(() => other.frames.length >= sent, "every outcome");
      assert.ok(other.frames.some(({ status }) => status === "disconnected"));
      other.frames.length = 0;
      assert.equal(await other.outcome(second.id, "afterwards"), "delivered");
      await until(async () => (await relay.metric("switchboard_connections")) === 2, "the end of the earlier connection");
      assert.deepEqual(await balance(relay), { gap: 0, missing: 0 });
      silent.socket.terminate();
      await Promise.all([second.leave(), other.leave()]);
    });

    test("of many connections with one ticket, one stays and receives messages", async () => {
      const other = await Person.join(relay);
      const { welcome, id } = await Person.join(relay);
      for (let round = 0; round < 10; round += 1) {
        const { ticket } = welcome;
        const many = await Promise.all(Array.from({ length: 8 }, () => Person.join(relay, { ticket })));
        assert.ok(many.every((person) => person.id === id && person.welcome.resumed));
        await until(() => many.filter(({ closed }) => closed === null).length === 1, "seven closed");
        assert.ok(many.every(({ closed }) => closed === null || closed.code === 4409));
        const [one] = many.filter(({ closed }) => closed === null);
        assert.equal(await other.outcome(id, `round ${round}`), "delivered");
        assert.equal((await one.next()).message, `round ${round}`);
      }
      assert.deepEqual(await balance(relay), { gap: 0, missing: 0 });
      await other.leave();
    });

    test("a forged or foreign ticket gives a new id and a reason", async () => {
      const first = await Person.join(relay);
      const { ticket } = first.welcome;
      const elsewhere = await Relay.start({ ROUTING__STRATEGY: strategy });
      const foreign = (await Person.join(elsewhere)).welcome.ticket;
      await elsewhere.stop();
      const forged = `${ticket.slice(0, 20)}${ticket[20] === "A" ? "B" : "A"}${ticket.slice(21)}`;
      for (const bad of [foreign, forged, "x", "_".repeat(75), ticket.slice(1), `${ticket}AAAA`]) {
        const person = await Person.join(relay, { ticket: bad });
        assert.deepEqual([person.welcome.resumed, person.welcome.reason], [false, "ticket_invalid"], bad);
        assert.notEqual(person.id, first.id);
        await person.leave();
      }
      // The first user is not affected.
      assert.equal(await first.outcome(first.id, "still here"), "delivered");
      await first.leave();
    });

    test("an expired ticket gives a new id and a reason", async () => {
      const first = await Person.join(relay);
      await first.leave();
      let again;
      await until(async () => {
        again = await Person.join(relay, { ticket: first.welcome.ticket });
        await again.leave();
        return !again.welcome.resumed;
      }, "the ticket to expire");
      assert.equal(again.welcome.reason, "ticket_expired");
      assert.notEqual(again.id, first.id);
      // The new ticket is valid.
      const last = await Person.join(relay, { ticket: again.welcome.ticket });
      assert.deepEqual([last.id, last.welcome.resumed], [again.id, true]);
      await last.leave();
    });

    test("a restart keeps all ids and gives none to two users", async () => {
      // Longer than the test, so that no ticket expires.
      relay.settings.TICKETS__TTL = "1h";
      await relay.stop();
      await relay.restart();
      const people = [];
      for (let n = 0; n < 5; n += 1) people.push(await Person.join(relay));
      const ids = people.map(({ id }) => id);
      assert.deepEqual(ids, [0, 1, 2, 3, 4].map((n) => ids[0] + n));
      await relay.stop();
      await relay.restart();
      // Whoever comes first, the ids of the earlier process are kept for their owners.
      const stranger = await Person.join(relay);
      assert.ok(!ids.includes(stranger.id), `${stranger.id} is one of ${ids}`);
      for (const person of people) {
        const again = await Person.join(relay, { ticket: person.welcome.ticket });
        assert.deepEqual([again.id, again.welcome.resumed], [person.id, true]);
        assert.equal(await stranger.outcome(person.id, "hello"), "delivered");
      }
      assert.deepEqual(await balance(relay), { gap: 0, missing: 0 });
    });
  });
}
