/**
 * A client for Switchboard, a WebSocket relay between two users. It has no dependencies and runs in browsers
 * and in Node (below version 22, pass a WebSocket constructor, such as the one of the package `ws`).
 *
 *     import { connect } from "./switchboard.js"; // the relay serves it; for Node, as /switchboard.mjs
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
 * The recipient's program may not have read it: of such messages, the kernels may hold about 173 KB. Treat every
 * other outcome as not delivered, and outcomes that this version does not know, too. With `disconnected` and
 * `unknown` the message may have arrived; with `not_sent` it never left this client.
 *
 * @typedef {"delivered" | "offline" | "queue_full" | "expired" | "disconnected" | "too_large"
 *   | "rate_limited" | "invalid" | "draining" | "unavailable" | "not_sent" | "unknown" | (string & {})} Outcome
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
 * @property {string | null} reason why the connection was lost or refused, or why the id is new
 * @property {number | null} code the close code of the connection that was lost
 * @property {number | null} status the HTTP status of the answer, if the relay refused the connection
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
 * @property {string | (() => string | Promise<string>)} [token] the token that the relay asks for, or a function
 *   that returns a fresh one; the client calls it before each attempt, and tries again after a token has expired
 * @property {() => string[] | Promise<string[]>} [protocols] returns further subprotocol entries; called before
 *   each attempt, as `token` is
 * @property {new (url: string, protocols: string[]) => Socket} [WebSocket] default: the global one
 * @property {number} [connectMs] the time limit of an attempt, in milliseconds; default: 15 000
 * @property {number} [answerMs] the time limit of an answer to a ping, in milliseconds; default: 5 000
 * @property {() => number} [random] default: `Math.random`
 */

const SUBPROTOCOL = "switchboard.v1";

/** The limit of the random wait before an attempt. Each failure doubles it, from the minimum to the maximum. */
const BACKOFF_MS_MIN = 500;
const BACKOFF_MS_MAX = 30_000;

/** A longer timer would fire at once. */
const TIMER_MS_MAX = 2 ** 31 - 1;

/** After so many heartbeats of the relay without a frame, the client sends a ping. */
const QUIET_HEARTBEATS = 1.2;

/** After a connection that lasted at least this long, the limit of the wait is the minimum again. */
const STEADY_MS = 5_000;

/** Close codes after which the client must not reconnect: id taken over, user removed. */
const FINAL_CODES = [4409, 4410];

/** The close code after a token has expired. It is final for a client that has no fresh token. */
const TOKEN_EXPIRED = 4401;

/** Answers to a handshake that another attempt does not change: bad token, forbidden origin. */
const FINAL_STATUSES = [401, 403];

/** @type {{ status: number | null, reason: string }} */
const NO_REFUSAL = { status: null, reason: "" };

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
    status: null,
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
  /** The time without a frame after which the client asks whether the relay is there, in milliseconds. */
  #quietMs = Infinity;
  #bytesMax = Infinity;
  #nextId = 1;
  /** Messages whose outcome is pending, by the id on the wire. @type {Map<number, (outcome: Outcome) => void>} */
  #pending = new Map();
  /** Pending calls of `opened`. @type {{ resolve: (id: number) => void, reject: (error: Error) => void }[]} */
  #waiters = [];
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #quietTimer;
  /** Removes the listeners of events when this client is closed. */
  #ended = new AbortController();

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
    // A network that comes back, and a laptop that wakes up, say nothing about the old connection.
    const ask = () => this.#askForLife();
    const { signal } = this.#ended;
    globalThis.addEventListener?.("online", ask, { signal });
    globalThis.document?.addEventListener("visibilitychange", ask, { signal });
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

  async #connect() {
    this.#afterMs = null;
    const { token, protocols, connectMs } = this.#options;
    const entries = [SUBPROTOCOL];
    try {
      const bearer = typeof token === "function" ? await token() : token;
      if (bearer) entries.push(`bearer.${bearer}`);
      entries.push(...((await protocols?.()) ?? []));
    } catch (error) {
      if (this.#state.phase === "connecting") this.#onClose(ABNORMAL, `no token: ${error}`);
      return;
    }
    // `close` may have been called meanwhile.
    if (this.#state.phase !== "connecting") return;
    if (this.#ticket) entries.push(`ticket.${this.#ticket}`);
    const socket = new this.#WebSocket(this.#url, entries);
    this.#socket = socket;
    // A socket that this client has given up can still have events; they must not change the state.
    socket.onmessage = (event) => {
      if (this.#socket === socket) this.#receive(String(event.data));
    };
    socket.onclose = async (event) => {
      if (this.#socket !== socket) return;
      const { status, reason } = this.#state.phase === "connecting" ? await this.#refusal(entries) : NO_REFUSAL;
      if (this.#socket === socket) this.#onClose(event.code, event.reason || reason, status);
    };
    // The close event carries the reason. Without this handler, `ws` would throw the error.
    socket.onerror = () => {};
    this.#timer = setTimeout(() => this.#giveUp("no answer"), connectMs ?? 15_000);
  }

  /**
   * Asks over HTTP why the relay has refused a handshake, since a browser hides the answer to it.
   *
   * @param {string[]} entries the subprotocol entries of the handshake
   * @returns {Promise<{ status: number | null, reason: string }>}
   */
  async #refusal(entries) {
    const url = new URL("handshake", this.#url);
    url.protocol = url.protocol.replace("ws", "http");
    const bearer = entries.find((entry) => entry.startsWith("bearer."))?.slice("bearer.".length);
    /** @type {Record<string, string>} */
    const headers = bearer ? { Authorization: `Bearer ${bearer}` } : {};
    try {
      const answer = await fetch(url, { headers, cache: "no-store" });
      return answer.ok ? NO_REFUSAL : { status: answer.status, reason: (await answer.text()).trim() };
    } catch {
      return NO_REFUSAL; // The relay cannot be reached over HTTP either.
    }
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
   * @param {{ user_id: number, heartbeat_ms: number, max_message_bytes: number, ticket?: string, resumed?: boolean,
   *   reason?: string }} frame
   */
  #welcome({ user_id: userId, heartbeat_ms: heartbeatMs, max_message_bytes: bytesMax, ticket, resumed, reason }) {
    clearTimeout(this.#timer);
    this.#welcomedAt = this.#lastFrameAt;
    this.#quietMs = heartbeatMs * QUIET_HEARTBEATS;
    this.#watchForQuiet();
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
      status: null,
      retryAt: null,
    });
    for (const { resolve } of this.#waiters.splice(0)) resolve(userId);
  }

  /**
   * Handles the end of a connection: waits for the next attempt, or closes after a final code.
   *
   * @param {number} code
   * @param {string} reason
   * @param {number | null} [status] the HTTP status of a refused handshake
   */
  #onClose(code, reason, status = null) {
    const afterMs = this.#afterMs;
    const steady = this.#state.phase === "open" && Date.now() - this.#welcomedAt >= STEADY_MS;
    this.#detach();
    const hasFreshToken = [this.#options.token, this.#options.protocols].some((one) => typeof one === "function");
    const expired = code === TOKEN_EXPIRED && !hasFreshToken;
    if (expired || FINAL_CODES.includes(code) || (status !== null && FINAL_STATUSES.includes(status))) {
      this.#end(code, reason || `close code ${code}`, status);
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
      status,
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
    clearTimeout(this.#quietTimer);
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
   * @param {number | null} [status]
   */
  #end(code, reason, status = null) {
    this.#ended.abort();
    this.#change({ ...this.#state, phase: "closed", resumed: false, reason, code, status, retryAt: null });
    for (const { reject } of this.#waiters.splice(0)) reject(new Error(`closed: ${reason}`));
  }

  /** Asks for a sign of life when no frame has come for a while: a network that fails does not close the socket. */
  #watchForQuiet() {
    const left = this.#lastFrameAt + this.#quietMs - Date.now();
    const wait = Math.min(Math.max(left, 0), TIMER_MS_MAX);
    this.#quietTimer = setTimeout(() => (left > 0 ? this.#watchForQuiet() : this.#askForLife()), wait);
  }

  /** Sends a ping, and gives the connection up if no frame answers it in time. */
  #askForLife() {
    if (this.#state.phase !== "open") return;
    clearTimeout(this.#quietTimer);
    const askedAt = Date.now();
    const text = '{"type":"ping"}';
    this.#socket?.send(text);
    this.#options.onFrame?.({ direction: "out", text });
    this.#quietTimer = setTimeout(() => {
      if (this.#lastFrameAt >= askedAt) this.#watchForQuiet();
      else this.#giveUp("no answer");
    }, this.#options.answerMs ?? 5_000);
  }

  /** @param {State} state */
  #change(state) {
    this.#state = state;
    this.#options.onState?.(state);
  }
}
