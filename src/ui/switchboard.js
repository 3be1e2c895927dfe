/**
 * A client for Switchboard, a WebSocket relay between two users. It has no dependencies and runs in browsers
 * and in Node (below version 22, pass a WebSocket constructor, such as the one of the package `ws`).
 *
 *     import { connect } from "./switchboard.js"; // the relay serves it as /switchboard.js
 *
 *     const me = connect("ws://127.0.0.1:8080/", {
 *       onMessage: ({ senderId, message }) => console.log(senderId, message),
 *     });
 *     console.log("I am", await me.opened());
 *     console.log(await me.send(2, "Go Braves!")); // "delivered", "offline", …
 *
 * The client reconnects by itself when the connection is lost, and keeps its id if the relay accepts its
 * ticket. Every promise of the client settles.
 *
 * @module
 */

/**
 * The outcome of a message. `delivered`: the relay wrote the message to the recipient's socket and flushed it.
 * The recipient's program may not have read it: of such messages, the kernels may hold about 173 KB. Treat every other outcome as not delivered, and outcomes that this version does not know, too. With
 * `disconnected` and `unknown` the message may have arrived; with `not_sent` it never left this client.
 *
 * @typedef {"delivered" | "offline" | "queue_full" | "disconnected" | "too_large" | "rate_limited"
 *   | "invalid" | "draining" | "unavailable" | "not_sent" | "unknown" | (string & {})} Outcome
 */

/**
 * @typedef {object} Received
 * @property {number} senderId the id of the sender; 0 is the system
 * @property {string} message
 */

/**
 * @typedef {object} Frame a raw text frame
 * @property {"in" | "out"} direction
 * @property {string} text
 */

/**
 * @typedef {object} State
 * @property {"connecting" | "open" | "waiting" | "closed"} phase `waiting`: the client waits before
 *   the next attempt; `closed`: the client makes no further attempt
 * @property {number | null} userId the id of the last connection; null before the first
 * @property {boolean} resumed whether this connection has kept the id of the previous one
 * @property {string | null} reason why the connection was lost, or why the id is new
 * @property {number | null} code the close code of the connection that was lost
 * @property {number | null} retryAt while waiting: the time of the next attempt, in milliseconds as `Date.now()`
 */

/**
 * The part of a WebSocket that this client uses.
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
 * @property {(message: Received) => void} [onMessage] gets each message
 * @property {(state: State) => void} [onState] gets each new state of the connection
 * @property {(count: number) => void} [onDropped] gets the number of messages to this user that the relay
 *   dropped, because this user did not read fast enough
 * @property {(frame: Frame) => void} [onFrame] gets every frame, unchanged
 * @property {string | null} [ticket] the ticket of an earlier connection, to get its id again
 * @property {(ticket: string) => void} [onTicket] gets each new ticket; store it for a later connection
 * @property {() => string[]} [protocols] returns further subprotocol entries; called before each attempt
 * @property {new (url: string, protocols: string[]) => Socket} [WebSocket] default: the global one
 * @property {number} [connectMs] the time limit of an attempt, in milliseconds; default: 15 000
 * @property {number} [silenceMs] milliseconds without a frame, while an outcome is pending, after which the
 *   client gives the connection up; default: 60 000
 * @property {() => number} [random] default: `Math.random`
 */

const SUBPROTOCOL = "switchboard.v1";

/** The limit of the random wait before an attempt. Each failure doubles it, from the minimum to the maximum. */
const BACKOFF_MS_MIN = 500;
const BACKOFF_MS_MAX = 30_000;

/** After a connection that lasted at least this long, the limit of the wait is the minimum again. */
const STEADY_MS = 5_000;

/** Close codes after which the client must not reconnect: token expired, id taken over, user removed. */
const FINAL_CODES = [4401, 4409, 4410];

/** The close code of a connection that ended without a close frame (RFC 6455 section 7.1.5). */
const ABNORMAL = 1006;

/**
 * Connects to a relay, and reconnects until `close` is called or the relay closes with a final code.
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
  /** Attempts that failed in a row. */
  #failures = 0;
  /** The times of the last frame and of this connection's welcome, in milliseconds. */
  #lastFrameAt = 0;
  #welcomedAt = 0;
  /** The wait that the relay asked for in `reconnect`. @type {number | null} */
  #afterMs = null;
  #bytesMax = Infinity;
  #nextId = 1;
  /** Messages whose outcome is pending, by the id on the wire. @type {Map<number, (outcome: Outcome) => void>} */
  #pending = new Map();
  /** Pending calls of `opened`. @type {{ resolve: (id: number) => void, reject: (error: Error) => void }[]} */
  #waiters = [];
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #silenceTimer;

  /**
   * @param {string} url
   * @param {Options} [options]
   */
  constructor(url, options = {}) {
    const constructor = options.WebSocket ?? globalThis.WebSocket;
    if (!constructor) {
      throw new TypeError("no global WebSocket: pass a constructor as options.WebSocket");
    }
    this.#url = url;
    this.#options = options;
    this.#WebSocket = constructor;
    this.#ticket = options.ticket ?? null;
    this.#connect();
  }

  /** The current state of the connection. */
  get state() {
    return this.#state;
  }

  /**
   * Waits until a connection accepts messages, and returns its id. Rejects if this client is closed.
   *
   * @returns {Promise<number>}
   */
  opened() {
    const { phase, userId, reason } = this.#state;
    if (userId !== null && this.#acceptsMessages()) return Promise.resolve(userId);
    if (phase === "closed") return Promise.reject(new Error(`closed: ${reason}`));
    return new Promise((resolve, reject) => this.#waiters.push({ resolve, reject }));
  }

  /**
   * Sends a message. The promise always settles: with the outcome of the message; with `unknown` if the
   * connection is lost before the outcome arrives; with `not_sent` if there is no connection. It rejects if
   * the arguments are invalid.
   *
   * @param {number} recipientId an integer from 1 to 2^53 - 1
   * @param {string} message any text without lone surrogates
   * @returns {Promise<Outcome>}
   */
  async send(recipientId, message) {
    if (!Number.isSafeInteger(recipientId) || recipientId < 1) {
      throw new RangeError("the recipient's id is an integer from 1 to 9007199254740991");
    }
    // With the flag u a surrogate pair is one character, so this class matches only lone surrogates.
    if (typeof message !== "string" || /\p{Surrogate}/u.test(message)) {
      throw new TypeError("the message is a string without lone surrogates");
    }
    if (!this.#socket || !this.#acceptsMessages()) return "not_sent";
    const id = this.#nextId++;
    const text = JSON.stringify({ recipient_id: recipientId, message, id });
    // The relay would answer too_large as well, but closes the connection above limits.frame_bytes.
    if (new TextEncoder().encode(text).length > this.#bytesMax) return "too_large";
    /** @type {Promise<Outcome>} */
    const outcome = new Promise((resolve) => this.#pending.set(id, resolve));
    this.#socket.send(text);
    this.#options.onFrame?.({ direction: "out", text });
    this.#watchForSilence();
    return outcome;
  }

  /** Closes the connection. The client does not reconnect. */
  close() {
    if (this.#state.phase === "closed") return;
    const socket = this.#detach();
    socket?.close(1000);
    this.#end(1000, "closed here");
  }

  /** After `reconnect` the relay reads nothing more, so a message would only get the outcome `unknown`. */
  #acceptsMessages() {
    return this.#state.phase === "open" && this.#afterMs === null;
  }

  #connect() {
    this.#afterMs = null;
    const protocols = [SUBPROTOCOL, ...(this.#options.protocols?.() ?? [])];
    if (this.#ticket) protocols.push(`ticket.${this.#ticket}`);
    const socket = new this.#WebSocket(this.#url, protocols);
    this.#socket = socket;
    // A socket that this client has given up can still have events; they must not change the state.
    socket.onmessage = (event) => {
      if (this.#socket === socket) this.#receive(String(event.data));
    };
    socket.onclose = (event) => {
      if (this.#socket === socket) this.#onClose(event.code, event.reason);
    };
    // The close event carries the reason. Without this handler, `ws` would throw the error.
    socket.onerror = () => {};
    this.#timer = setTimeout(() => this.#giveUp("no answer"), this.#options.connectMs ?? 15_000);
  }

  /** @param {string} text */
  #receive(text) {
    this.#lastFrameAt = Date.now();
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
      // A later relay may send other types; this version ignores them.
    }
  }

  /**
   * @param {{ user_id: number, max_message_bytes: number, ticket?: string, resumed?: boolean, reason?: string }} frame
   */
  #welcome({ user_id: userId, max_message_bytes: bytesMax, ticket, resumed, reason }) {
    clearTimeout(this.#timer);
    this.#welcomedAt = this.#lastFrameAt;
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
   * Handles the end of a connection: waits for the next attempt, or closes after a final code.
   *
   * @param {number} code
   * @param {string} reason
   */
  #onClose(code, reason) {
    const afterMs = this.#afterMs;
    const steady = this.#state.phase === "open" && Date.now() - this.#welcomedAt >= STEADY_MS;
    this.#detach();
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
      // The handler of onState may have called close.
      if (this.#state.phase === "connecting") this.#connect();
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
   * Treats a connection that does not answer as lost.
   *
   * @param {string} reason
   */
  #giveUp(reason) {
    const socket = this.#socket;
    this.#onClose(ABNORMAL, reason);
    socket?.close();
  }

  /** Detaches the socket and settles pending sends with `unknown`. Returns the socket, so that it can be closed. */
  #detach() {
    clearTimeout(this.#timer);
    clearTimeout(this.#silenceTimer);
    this.#silenceTimer = undefined;
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

  /**
   * Gives the connection up if an outcome is pending and no frame arrives for `silenceMs`. A network that fails
   * does not close the socket, so silence is the only sign.
   */
  #watchForSilence() {
    if (this.#silenceTimer !== undefined) return;
    this.#lastFrameAt = Date.now();
    const limit = this.#options.silenceMs ?? 60_000;
    const check = () => {
      this.#silenceTimer = undefined;
      if (this.#pending.size === 0) return;
      const left = this.#lastFrameAt + limit - Date.now();
      if (left <= 0) this.#giveUp("no answer");
      else this.#silenceTimer = setTimeout(check, left);
    };
    this.#silenceTimer = setTimeout(check, limit);
  }

  /** @param {State} state */
  #change(state) {
    this.#state = state;
    this.#options.onState?.(state);
  }
}
