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
export type Outcome = "delivered" | "offline" | "queue_full" | "expired" | "disconnected" | "too_large" | "rate_limited" | "invalid" | "draining" | "unavailable" | "not_sent" | "unknown" | (string & {});
export type Received = {
    /**
     * the id of the sender; 0 is the system
     */
    senderId: number;
    message: string;
};
export type Frame = {
    direction: "in" | "out";
    text: string;
};
export type State = {
    /**
     * `waiting`: the client waits before
     * the next attempt; `closed`: the client makes no further attempt
     */
    phase: "connecting" | "open" | "waiting" | "closed";
    /**
     * the id of the last connection; null before the first
     */
    userId: number | null;
    /**
     * whether this connection has kept the id of the previous one
     */
    resumed: boolean;
    /**
     * why the connection was lost or refused, or why the id is new
     */
    reason: string | null;
    /**
     * the close code of the connection that was lost
     */
    code: number | null;
    /**
     * the HTTP status of the answer, if the relay refused the connection
     */
    status: number | null;
    /**
     * while waiting: the time of the next attempt, in milliseconds as `Date.now()`
     */
    retryAt: number | null;
};
export type Socket = {
    onmessage: ((event: any) => void) | null;
    onerror: ((event: any) => void) | null;
    onclose: ((event: any) => void) | null;
    send: (text: string) => void;
    close: (code?: number) => void;
};
export type Options = {
    /**
     * gets each message
     */
    onMessage?: (message: Received) => void;
    /**
     * gets each new state of the connection
     */
    onState?: (state: State) => void;
    /**
     * gets the number of messages to this user that the relay
     * dropped, because this user did not read fast enough
     */
    onDropped?: (count: number) => void;
    /**
     * gets every frame, unchanged
     */
    onFrame?: (frame: Frame) => void;
    /**
     * the ticket of an earlier connection, to get its id again
     */
    ticket?: string | null;
    /**
     * gets each new ticket; store it for a later connection
     */
    onTicket?: (ticket: string) => void;
    /**
     * the token that the relay asks for, or a function
     * that returns a fresh one; the client calls it before each attempt, and tries again after a token has expired
     */
    token?: string | (() => string | Promise<string>);
    /**
     * returns further subprotocol entries; called before
     * each attempt, as `token` is
     */
    protocols?: () => string[] | Promise<string[]>;
    /**
     * default: the global one
     */
    WebSocket?: new (url: string, protocols: string[]) => Socket;
    /**
     * the time limit of an attempt, in milliseconds; default: 15 000
     */
    connectMs?: number;
    /**
     * the time limit of an answer to a ping, in milliseconds; default: 5 000
     */
    answerMs?: number;
    /**
     * default: `Math.random`
     */
    random?: () => number;
};
/**
 * Connects to a relay, and reconnects until `close` is called or the relay closes with a final code.
 *
 * @param {string} url such as `ws://127.0.0.1:8080/`
 * @param {Options} [options]
 * @returns {Switchboard}
 */
export declare function connect(url: string, options?: Options): Switchboard;
/** One user. See {@link connect}. */
export declare class Switchboard {
    #private;
    /**
     * @param {string} url
     * @param {Options} [options]
     */
    constructor(url: string, options?: Options);
    /** The current state of the connection. */
    get state(): State;
    /**
     * Waits until a connection accepts messages, and returns its id. Rejects if this client is closed.
     *
     * @returns {Promise<number>}
     */
    opened(): Promise<number>;
    /**
     * Sends a message. The promise always settles: with the outcome of the message; with `unknown` if the
     * connection is lost before the outcome arrives; with `not_sent` if there is no connection. It rejects if
     * the arguments are invalid.
     *
     * @param {number} recipientId an integer from 1 to 2^53 - 1
     * @param {string} message any text without lone surrogates
     * @returns {Promise<Outcome>}
     */
    send(recipientId: number, message: string): Promise<Outcome>;
    /** Closes the connection. The client does not reconnect. */
    close(): void;
}
