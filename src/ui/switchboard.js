/**
 * A client for Switchboard, a WebSocket relay between two people. No dependencies; for browsers and
 * for Node (below version 22 pass a WebSocket constructor in, such as the one of the package `ws`).
 *
 *     import { connect } from "./switchboard.js"; // the relay serves it as /switchboard.js
 *
 *     const me = connect("ws://127.0.0.1:8080/", {
 *       onMessage: ({ senderId, message }) => console.log(senderId, message),
 *     });
 *     console.log("I am", await me.opened());
 *     console.log(await me.send(2, "Go Braves!")); // "delivered", "offline", …
 *
 * It comes back by itself when the connection is lost, with the same id wherever the relay still
 * honours its ticket, and every promise that it gives settles.
 *
 * @module
 */

/**
 * What became of a message. `delivered`: it was written and flushed to the recipient's socket. All
 * others, and any that this version does not know, are to be taken as not delivered; of them
 * `disconnected` and `unknown` say that it may have arrived, and `not_sent` that it never left.
 *
 * @typedef {"delivered" | "offline" | "queue_full" | "disconnected" | "too_large" | "rate_limited"
 *   | "draining" | "unavailable" | "not_sent" | "unknown" | (string & {})} Outcome
 */

/**
 * @typedef {object} Received
 * @property {number} senderId who wrote it; 0 is the system
 * @property {string} message
 */

/**
 * @typedef {object} Frame a raw text frame
 * @property {"in" | "out"} direction
 * @property {string} text
 */

/**
 * @typedef {object} State
 * @property {"connecting" | "open" | "waiting" | "closed"} phase `waiting` for the next try; `closed`
 *   is for good
 * @property {number | null} userId the id of the last connection; null before the first
 * @property {boolean} resumed whether this connection has kept the id of the one before
 * @property {string | null} reason why the connection was lost, or why the id is a new one
 * @property {number | null} code the close code of the connection that was lost
 * @property {number | null} retryAt while waiting: when the next try is due, as `Date.now()` counts
 */

/**
 * The part of a WebSocket that is used.
 *
 * @typedef {object} Socket
 * @property {((event: any) => void) | null} onmessage
 * @property {((event: any) => void) | null} onerror
 * @property {((event: any) => void) | null} onclose
 * @property {(text: string) => void} send
 * @property {(code?: number) => void} close
 */

/**
 * @typedef {object} Options
 * @property {(message: Received) => void} [onMessage] somebody's message
 * @property {(state: State) => void} [onState] the connection has changed
 * @property {(count: number) => void} [onDropped] messages to this user were dropped, since it did
 *   not read fast enough
 * @property {(frame: Frame) => void} [onFrame] every frame, as it is on the wire
 * @property {string | null} [ticket] the ticket of an earlier connection, to come back with its id
 * @property {(ticket: string) => void} [onTicket] a ticket, to be kept for a later connection
 * @property {() => string[]} [protocols] further subprotocol entries, asked for before each try
 * @property {new (url: string, protocols: string[]) => Socket} [WebSocket] default: the global one
 * @property {number} [connectMs] how long a try may take, default 15 000
 * @property {number} [silenceMs] how long, while an outcome is owed, no frame may come before the
 *   connection is taken for dead; default 60 000
 * @property {() => number} [random] default: `Math.random`
 */

const SUBPROTOCOL = "switchboard.v1";

/** The bound of the random wait before a try: doubled with each that fails, from the one to the other. */
const BACKOFF_MS_MIN = 500;
const BACKOFF_MS_MAX = 30_000;

/** A connection that lasted as long is a success: the next wait begins small again. */
const STEADY_MS = 5_000;

/** Close codes after which coming back would be wrong: the token expired, taken over, removed. */
const FINAL_CODES = [4401, 4409, 4410];

/** How a connection ends that nobody has closed (RFC 6455 section 7.1.5). */
const ABNORMAL = 1006;

/**
 * Connects to a relay, and goes on doing so until it is closed.
 *
 * @param {string} url such as `ws://127.0.0.1:8080/`
 * @param {Options} [options]
 * @returns {Switchboard}
 */
export function connect(url, options = {}) {
  return new Switchboard(url, options);
}

/** One user. See {@link connect}. */
export class Switchboard {
  /** @type {string} */
  #url;
  /** @type {Options} */
  #options;
  /** @type {new (url: string, protocols: string[]) => Socket} */
  #WebSocket;
  /** @type {State} */
  #state = {
    phase: "connecting",
    userId: null,
    resumed: false,
    reason: null,
    code: null,
    retryAt: null,
  };
  /** @type {Socket | null} */
  #socket = null;
  /** @type {string | null} */
  #ticket;
  /** Tries that failed in a row. */
  #failures = 0;
  /** When the relay last said something, and when it first did on this connection. */
  #heardAt = 0;
  #welcomedAt = 0;
  /** What the relay asked for before it closed. @type {number | null} */
  #afterMs = null;
  #bytesMax = Infinity;
  #nextId = 1;
  /** Messages without an outcome, by the id on the wire. @type {Map<number, (outcome: Outcome) => void>} */
  #pending = new Map();
  /** Who waits for a connection. @type {{ resolve: (id: number) => void, reject: (error: Error) => void }[]} */
  #waiters = [];
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #watch;

  /**
   * @param {string} url
   * @param {Options} [options]
   */
  constructor(url, options = {}) {
    const constructor = options.WebSocket ?? globalThis.WebSocket;
    if (!constructor) {
      throw new TypeError("there is no global WebSocket here: pass a constructor in, as options.WebSocket");
    }
    this.#url = url;
    this.#options = options;
    this.#WebSocket = constructor;
    this.#ticket = options.ticket ?? null;
    this.#dial();
  }

  /** The connection as it is now. */
  get state() {
    return this.#state;
  }

  /**
   * Waits until there is a connection that takes messages, and says its id; rejects once this is
   * closed.
   *
   * @returns {Promise<number>}
   */
  opened() {
    const { phase, userId, reason } = this.#state;
    if (userId !== null && this.#takesMessages()) return Promise.resolve(userId);
    if (phase === "closed") return Promise.reject(new Error(`closed: ${reason}`));
    return new Promise((resolve, reject) => this.#waiters.push({ resolve, reject }));
  }

  /**
   * Sends a message. The promise settles in every case: with what became of the message; with
   * `unknown` when the connection is lost before that is known; with `not_sent` where there is none.
   * It rejects for what no relay could take.
   *
   * @param {number} recipientId an integer from 1 to 2^53 - 1
   * @param {string} message any text without lone surrogates
   * @returns {Promise<Outcome>}
   */
  async send(recipientId, message) {
    if (!Number.isSafeInteger(recipientId) || recipientId < 1) {
      throw new RangeError("the recipient's id is an integer from 1 to 9007199254740991");
    }
    // With the flag u a pair is one character, so what is left of this class is alone.
    if (typeof message !== "string" || /\p{Surrogate}/u.test(message)) {
      throw new TypeError("the message is a string without lone surrogates");
    }
    if (!this.#socket || !this.#takesMessages()) return "not_sent";
    const id = this.#nextId++;
    const text = JSON.stringify({ recipient_id: recipientId, message, id });
    // The relay says so too, but closes the connection on what is far too large.
    if (new TextEncoder().encode(text).length > this.#bytesMax) return "too_large";
    /** @type {Promise<Outcome>} */
    const outcome = new Promise((resolve) => this.#pending.set(id, resolve));
    this.#socket.send(text);
    this.#options.onFrame?.({ direction: "out", text });
    this.#watchSilence();
    return outcome;
  }

  /** Ends the connection for good. */
  close() {
    if (this.#state.phase === "closed") return;
    const socket = this.#hangUp();
    socket?.close(1000);
    this.#end(1000, "closed here");
  }

  /** Behind its wish that we come back later, the relay reads nothing. */
  #takesMessages() {
    return this.#state.phase === "open" && this.#afterMs === null;
  }

  #dial() {
    this.#afterMs = null;
    const protocols = [SUBPROTOCOL, ...(this.#options.protocols?.() ?? [])];
    if (this.#ticket) protocols.push(`ticket.${this.#ticket}`);
    const socket = new this.#WebSocket(this.#url, protocols);
    this.#socket = socket;
    // Events of a socket that was given up are not ours any more.
    socket.onmessage = (event) => {
      if (this.#socket === socket) this.#hear(String(event.data));
    };
    socket.onclose = (event) => {
      if (this.#socket === socket) this.#lose(event.code, event.reason);
    };
    // What went wrong comes with the close event, but `ws` throws where nobody listens to this one.
    socket.onerror = () => {};
    this.#timer = setTimeout(() => this.#giveUp("no answer"), this.#options.connectMs ?? 15_000);
  }

  /** @param {string} text */
  #hear(text) {
    this.#heardAt = Date.now();
    this.#options.onFrame?.({ direction: "in", text });
    const frame = JSON.parse(text);
    switch (frame.type) {
      case "welcome":
        this.#welcome(frame);
        break;
      case "message":
        this.#options.onMessage?.({ senderId: frame.sender_id, message: frame.message });
        break;
      case "outcome":
        this.#pending.get(frame.id)?.(frame.status);
        this.#pending.delete(frame.id);
        break;
      case "dropped":
        this.#options.onDropped?.(frame.count);
        break;
      case "reconnect":
        this.#afterMs = frame.after_ms;
        break;
      // What a later relay may say besides is not for this version.
    }
  }

  /**
   * @param {{ user_id: number, max_message_bytes: number, ticket?: string, resumed?: boolean, reason?: string }} frame
   */
  #welcome({ user_id: userId, max_message_bytes: bytesMax, ticket, resumed, reason }) {
    clearTimeout(this.#timer);
    this.#welcomedAt = this.#heardAt;
    this.#bytesMax = bytesMax;
    if (ticket) {
      this.#ticket = ticket;
      this.#options.onTicket?.(ticket);
    }
    this.#change({
      phase: "open",
      userId,
      resumed: resumed ?? false,
      reason: reason ?? null,
      code: null,
      retryAt: null,
    });
    for (const { resolve } of this.#waiters.splice(0)) resolve(userId);
  }

  /**
   * The connection is gone.
   *
   * @param {number} code
   * @param {string} reason
   */
  #lose(code, reason) {
    const afterMs = this.#afterMs;
    const steady = this.#state.phase === "open" && Date.now() - this.#welcomedAt >= STEADY_MS;
    this.#hangUp();
    if (FINAL_CODES.includes(code)) {
      this.#end(code, reason || `close code ${code}`);
      return;
    }
    if (steady || afterMs !== null) this.#failures = 0;
    const bound = Math.min(BACKOFF_MS_MAX, BACKOFF_MS_MIN * 2 ** this.#failures);
    const wait = afterMs ?? (this.#options.random ?? Math.random)() * bound;
    if (afterMs === null) this.#failures += 1;
    this.#timer = setTimeout(() => {
      this.#change({ ...this.#state, phase: "connecting", retryAt: null });
      // Whoever was just told may have closed this.
      if (this.#state.phase === "connecting") this.#dial();
    }, wait);
    this.#change({
      ...this.#state,
      phase: "waiting",
      resumed: false,
      reason: reason || (code === ABNORMAL ? "connection lost" : `close code ${code}`),
      code,
      retryAt: Date.now() + wait,
    });
  }

  /**
   * Takes a connection for lost that does not say so itself.
   *
   * @param {string} reason
   */
  #giveUp(reason) {
    const socket = this.#socket;
    this.#lose(ABNORMAL, reason);
    socket?.close();
  }

  /** Forgets the socket and all that hung on it; the socket, to be closed where it is still open. */
  #hangUp() {
    clearTimeout(this.#timer);
    clearTimeout(this.#watch);
    this.#watch = undefined;
    const socket = this.#socket;
    this.#socket = null;
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    for (const settle of pending) settle("unknown");
    return socket;
  }

  /**
   * @param {number} code
   * @param {string} reason
   */
  #end(code, reason) {
    this.#change({ ...this.#state, phase: "closed", resumed: false, reason, code, retryAt: null });
    for (const { reject } of this.#waiters.splice(0)) reject(new Error(`closed: ${reason}`));
  }

  /** A network that is gone closes nothing: while an outcome is owed, silence means that it is. */
  #watchSilence() {
    if (this.#watch !== undefined) return;
    this.#heardAt = Date.now();
    const limit = this.#options.silenceMs ?? 60_000;
    const look = () => {
      this.#watch = undefined;
      if (this.#pending.size === 0) return;
      const left = this.#heardAt + limit - Date.now();
      if (left <= 0) this.#giveUp("no answer");
      else this.#watch = setTimeout(look, left);
    };
    this.#watch = setTimeout(look, limit);
  }

  /** @param {State} state */
  #change(state) {
    this.#state = state;
    this.#options.onState?.(state);
  }
}
