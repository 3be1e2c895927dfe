// The page of the relay: two people exchange messages, and each message shows its outcome.

import { Conversation, Tail, make, smallButton } from "./conversation.js";
import { connect } from "./switchboard.js";
import { joinAsNew, ownTicket, storeTicket } from "./tab.js";

/** @import { State } from "./switchboard.js" */

const FRAMES_MAX = 100;
/** The list of frames shows only the beginning of a longer frame. */
const FRAME_CHARACTERS_MAX = 2000;

const TAKEN_OVER = 4409;
const TOKEN_EXPIRED = 4401;
const UNAUTHORIZED = 401;

/** The text of each outcome, and its color. @type {Record<string, [string, "good" | "bad"]>} */
const OUTCOMES = {
  delivered: ["delivered", "good"],
  offline: ["offline: no user has this id now", "bad"],
  queue_full: ["queue full: the recipient has too many unread messages", "bad"],
  expired: ["too old: the recipient did not read it in time", "bad"],
  disconnected: ["the recipient left; the message may have arrived", "bad"],
  too_large: ["too large", "bad"],
  rate_limited: ["too many messages at once", "bad"],
  invalid: ["the relay could not take the message", "bad"],
  draining: ["not delivered: the server restarts", "bad"],
  unavailable: ["not delivered: the recipient's server cannot be reached now", "bad"],
  not_sent: ["not sent: no connection", "bad"],
  unknown: ["outcome unknown; the message may have arrived", "bad"],
};

/**
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new () => T} type
 */
function element(id, type) {
  const found = document.getElementById(id);
  if (!(found instanceof type)) throw new Error(`no such element: ${id}`);
  return found;
}

const state = element("state", HTMLParagraphElement);
const phase = element("phase", HTMLSpanElement);
const countdown = element("countdown", HTMLSpanElement);
const self = element("self", HTMLParagraphElement);
const invite = element("invite", HTMLAnchorElement);
const inviteBox = /** @type {HTMLElement} */ (invite.closest(".invite"));
const inviteLabel = element("invite-label", HTMLParagraphElement);
const copy = element("copy", HTMLButtonElement);
const tokenForm = element("token-form", HTMLFormElement);
const token = element("token", HTMLInputElement);
const tokenProblem = element("token-problem", HTMLParagraphElement);
const form = element("form", HTMLFormElement);
const to = element("to", HTMLInputElement);
const text = element("text", HTMLTextAreaElement);
const textLabel = element("text-label", HTMLLabelElement);
const send = element("send", HTMLButtonElement);
const problem = element("problem", HTMLParagraphElement);
const joinAgain = element("new", HTMLButtonElement);
const empty = element("empty", HTMLParagraphElement);
const frames = new Tail(element("frames", HTMLOListElement), FRAMES_MAX);

const conversation = new Conversation(element("log", HTMLDivElement), element("unread", HTMLButtonElement), showTitle);

/** @type {number | null} */
let userId = null;
let unread = 0;
let bytesMax = 0;
/** @type {ReturnType<typeof setInterval> | undefined} */
let ticking;
/** The ticket of the last connection. @type {string | null} */
let ticket = null;
/** @type {ReturnType<typeof connect>} */
let me;

/** @param {number} [count] */
function showTitle(count = unread) {
  unread = count;
  const who = userId === null ? "" : `${userId} · `;
  document.title = `${count > 0 ? `(${count}) ` : ""}${who}Switchboard`;
}

/** @param {State} now */
function onState(now) {
  clearInterval(ticking);
  countdown.textContent = "";
  state.dataset.phase = now.phase;
  // While the page waits for a connection, what is written can still be sent later.
  send.disabled = now.phase === "closed" || now.userId === null;
  joinAgain.hidden = now.code !== TAKEN_OVER || now.phase !== "closed";
  switch (now.phase) {
    case "connecting":
      phase.textContent = "connecting…";
      break;
    case "open":
      phase.textContent = "connected";
      tokenForm.hidden = true;
      onId(now.userId ?? 0);
      break;
    case "waiting": {
      phase.textContent = `${now.reason}; reconnecting`;
      const count = () => {
        const seconds = Math.ceil(((now.retryAt ?? 0) - Date.now()) / 1000);
        countdown.textContent = seconds > 0 ? `in ${seconds} s` : "now";
      };
      count();
      ticking = setInterval(count, 250);
      break;
    }
    case "closed":
      if (now.status === UNAUTHORIZED || now.code === TOKEN_EXPIRED) askForToken(now.reason ?? "");
      else if (now.code === TAKEN_OVER) phase.textContent = "taken over: this id is open somewhere else";
      else phase.textContent = `closed: ${now.reason}`;
      break;
  }
  showRecipient();
}

/** @param {string} reason */
function askForToken(reason) {
  const isRefused = token.value !== "";
  phase.textContent = isRefused ? "not connected: the token was refused" : "not connected: a token is needed";
  tokenForm.hidden = false;
  tokenProblem.textContent = isRefused ? `The token was refused: ${reason}` : "This relay asks for a token.";
  tokenProblem.classList.toggle("refused", isRefused);
  token.focus();
}

/** @param {number} id */
function onId(id) {
  if (userId === id) conversation.note(`Connected again as ${id}.`);
  else if (userId !== null) conversation.note(`You were ${userId}; you are ${id} now.`);
  const isFirst = userId === null;
  userId = id;
  self.textContent = String(id);
  self.classList.toggle("long", id > 999_999);
  showTitle();
  const link = new URL(`./#to=${id}`, location.href);
  inviteBox.hidden = false;
  invite.href = link.href;
  invite.textContent = link.href;
  const isHere = ["127.0.0.1", "[::1]", "localhost"].includes(link.hostname);
  inviteLabel.textContent = isHere
    ? "Open this link on this computer to write to you:"
    : "Share this link to receive messages:";
  copy.disabled = !navigator.clipboard;
  // The field that comes first gets the focus, unless the reader is somewhere else already.
  if (isFirst && [null, document.body, token].includes(/** @type {any} */ (document.activeElement))) {
    (to.value === "" ? to : text).focus();
  }
}

/** @param {string} content */
function onFrame(/** @type {"in" | "out"} */ direction, content) {
  const entry = document.createElement("li");
  const hidden = content.length - FRAME_CHARACTERS_MAX;
  const shown = hidden > 0 ? `${content.slice(0, FRAME_CHARACTERS_MAX)}… (${hidden} more)` : content;
  entry.append(make("span", "arrow", direction === "in" ? "← " : "→ "), shown);
  frames.add(entry);
  if (direction === "in" && content.startsWith('{"type":"welcome"')) bytesMax = JSON.parse(content).max_message_bytes;
}

/** @param {number} senderId @param {string} message */
function onMessage(senderId, message) {
  const { head } = conversation.show("in", senderId === 0 ? "from the system" : `from ${senderId}`, message);
  if (senderId === 0) return;
  if (to.value === "") setRecipient(String(senderId));
  const reply = smallButton("Reply", `Reply to ${senderId}`, () => {
    setRecipient(String(senderId));
    text.focus();
  });
  reply.classList.add("reply");
  head.append(reply);
}

/** @param {string} id */
function setRecipient(id) {
  to.value = id;
  showRecipient();
}

function showRecipient() {
  const id = recipient();
  textLabel.textContent = id === null ? "Message" : `Write to ${id}`;
  if (state.dataset.phase === "closed") empty.textContent = "No messages.";
  else if (id !== null) empty.textContent = `No messages yet. Write to ${id}.`;
  else empty.textContent = "No messages yet. Open this page in another tab, and write to the number that it shows.";
}

/** The recipient in the form; null if it is not an id. */
function recipient() {
  const id = Number(to.value);
  return /^\d+$/.test(to.value.trim()) && Number.isSafeInteger(id) && id > 0 ? id : null;
}

/**
 * Sends a message and shows it with its outcome.
 *
 * @param {number} recipientId
 * @param {string} message
 */
async function sendAndShow(recipientId, message) {
  const { entry } = conversation.show("out", `to ${recipientId}`, message);
  const line = make("div", "outcome", "sent");
  entry.append(line);
  // A lone surrogate is not a character, and JSON cannot carry it. Some keyboards leave one half of a pair.
  const outcome = await me.send(recipientId, message.replace(/\p{Surrogate}/gu, "\ufffd"));
  const [words, kind] = OUTCOMES[outcome] ?? [`not delivered: ${outcome}`, "bad"];
  line.textContent = words;
  line.dataset.kind = kind;
  line.dataset.outcome = outcome;
  if (outcome === "delivered") return;
  if (outcome === "too_large") {
    // The writer can shorten it, and does not lose it.
    conversation.remove(entry);
    if (text.value === "") text.value = message;
    problem.textContent = `The message is too large: the limit is ${bytesMax.toLocaleString("en")} bytes with its frame.`;
    text.focus();
    return;
  }
  const again = smallButton("Send again", `Send again to ${recipientId}`, () => {
    conversation.remove(entry);
    void sendAndShow(recipientId, message);
  });
  line.append(" ", again);
}

function start() {
  // Relative, because a proxy may serve the page below a path.
  const url = new URL("./", location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  url.hash = "";
  me = connect(url.href, {
    ticket,
    token: token.value.trim(),
    onTicket: (fresh) => {
      ticket = fresh;
      storeTicket(fresh);
    },
    onState,
    onFrame: ({ direction, text }) => onFrame(direction, text),
    onDropped: (count) => conversation.note(`${count} messages to you were dropped: your queue was full.`),
    onMessage: ({ senderId, message }) => onMessage(senderId, message),
  });
  onState(me.state);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const recipientId = recipient();
  to.setAttribute("aria-invalid", String(recipientId === null));
  problem.textContent = recipientId === null ? "Enter the id of the recipient: a whole number, such as 2." : "";
  if (recipientId === null) {
    to.focus();
    return;
  }
  const message = text.value;
  text.focus();
  if (message === "" || send.disabled) return;
  text.value = "";
  void sendAndShow(recipientId, message);
});

text.addEventListener("keydown", (event) => {
  // In many languages, Enter also completes the composition of a character; that must not send the message.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});

to.addEventListener("input", showRecipient);

tokenForm.addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});

joinAgain.addEventListener("click", async () => {
  await joinAsNew();
  ticket = null;
  start();
});

copy.addEventListener("click", async () => {
  await navigator.clipboard.writeText(invite.href);
  copy.textContent = "Copied";
  setTimeout(() => (copy.textContent = "Copy link"), 2000);
});

function readHash() {
  const invited = new URLSearchParams(location.hash.slice(1)).get("to");
  if (!invited || !/^\d{1,16}$/.test(invited)) return;
  setRecipient(invited);
  text.focus();
}
addEventListener("hashchange", readHash);
readHash();
ticket = await ownTicket();
start();
