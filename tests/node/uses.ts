// Uses the types of the client as a program would. The compiler checks this file; it does not run.

import WebSocket from "ws";

import { connect, type Outcome, type Received, type State } from "../../src/ui/switchboard.js";

const me = connect("ws://127.0.0.1:8080/", {
  WebSocket,
  ticket: null,
  onMessage: ({ senderId, message }: Received) => void [senderId.toFixed(), message.trim()],
  onState: ({ phase, retryAt }: State) => void [phase === "open", retryAt],
});
const id: number = await me.opened();
const outcome: Outcome = await me.send(id, "Go Braves!");
// @ts-expect-error: a message is text
await me.send(id, 7);
// @ts-expect-error: there is no phase of this name
me.state.phase === "opened";
void outcome;
me.close();

// The global WebSocket works too.
connect("ws://127.0.0.1:8080/", { WebSocket: globalThis.WebSocket });
