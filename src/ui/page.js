// The page of the relay: two people exchange messages, and each message shows its outcome. The page shows
// user input only as text, never as HTML.

import { connect } from "./switchboard.js";

/** @import { Outcome, State } from "./switchboard.js" */

/** The page removes older entries, so that a tab that stays open for days does not grow. */
const MESSAGES_MAX = 500;
const FRAMES_MAX = 100;
/** The list of frames shows only the beginning of a longer frame. */
const FRAME_CHARACTERS_MAX = 2000;

/** The key under which a tab stores its ticket, so that a reload keeps its id. */
const TICKET_KEY = "switchboard.ticket";

/** The text of each outcome, and its color. @type {Record<string, [string, "good" | "bad"]>} */
const OUTCOMES = {
  delivered: ["delivered", "good"],
  offline: ["offline: no user has this id now", "bad"],
  queue_full: ["queue full: the recipient has too many unread messages", "bad"],
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
const copy = element("copy", HTMLButtonElement);
const log = element("log", HTMLDivElement);
const form = element("form", HTMLFormElement);
const to = element("to", HTMLInputElement);
const text = element("text", HTMLTextAreaElement);
const problem = element("problem", HTMLParagraphElement);
const frames = element("frames", HTMLOListElement);

/**
 * @param {string} tag
 * @param {string} className
 * @param {string} content
 */
function make(tag, className, content) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = content;
  return made;
}

/**
 * Adds an entry to the end of a list, and removes the oldest entries above `max`. The list scrolls to the new
 * entry only if it was at its end before.
 *
 * @param {HTMLElement} list
 * @param {HTMLElement} entry
 * @param {number} max
 */
function append(list, entry, max) {
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  list.append(entry);
  while (list.childElementCount > max) list.firstElementChild?.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

/**
 * @param {"in" | "out"} direction
 * @param {string} user
 * @param {string} message
 */
function show(direction, user, message) {
  const entry = make("div", `message ${direction}`, "");
  const head = make("div", "who", user);
  const body = make("div", "body", message);
  body.dir = "auto";
  entry.append(head, body);
  append(log, entry, MESSAGES_MAX);
  // Only a body that scrolls needs the keyboard focus.
  if (body.scrollHeight > body.clientHeight) {
    body.tabIndex = 0;
    body.setAttribute("role", "group");
    body.setAttribute("aria-label", "Long message");
  }
  return { entry, head };
}

/** @param {string} notice */
function note(notice) {
  append(log, make("div", "notice", notice), MESSAGES_MAX);
}

/** @type {number | null} */
let userId = null;
/** @type {ReturnType<typeof setInterval> | undefined} */
let ticking;

/** @param {State} now */
function onState(now) {
  clearInterval(ticking);
  countdown.textContent = "";
  state.dataset.phase = now.phase;
  switch (now.phase) {
    case "connecting":
      phase.textContent = "connecting…";
      break;
    case "open":
      phase.textContent = "connected";
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
      phase.textContent =
        now.code === 4409 ? "taken over: this id is open somewhere else" : `closed: ${now.reason}`;
      break;
  }
}

/** @param {number} id */
function onId(id) {
  if (userId === id) note(`Connected again as ${id}.`);
  else if (userId !== null) note(`You were ${userId}; you are ${id} now.`);
  userId = id;
  self.textContent = String(id);
  self.classList.toggle("long", id > 999_999);
  document.title = `${id} · Switchboard`;
  const link = new URL(`./#to=${id}`, location.href);
  invite.href = link.href;
  invite.textContent = link.href;
  copy.disabled = !navigator.clipboard;
}

/** @param {string} content */
function onFrame(/** @type {"in" | "out"} */ direction, content) {
  const entry = document.createElement("li");
  const hidden = content.length - FRAME_CHARACTERS_MAX;
  const shown = hidden > 0 ? `${content.slice(0, FRAME_CHARACTERS_MAX)}… (${hidden} more)` : content;
  entry.append(make("span", "arrow", direction === "in" ? "← " : "→ "), shown);
  append(frames, entry, FRAMES_MAX);
}

/**
 * @param {HTMLElement} line
 * @param {Outcome} outcome
 */
function onOutcome(line, outcome) {
  const [words, kind] = OUTCOMES[outcome] ?? [`not delivered: ${outcome}`, "bad"];
  line.textContent = words;
  line.dataset.kind = kind;
  line.dataset.outcome = outcome;
}

/** The storage of this tab; null if the browser allows none. @type {Storage | null} */
const storage = (() => {
  try {
    return sessionStorage;
  } catch {
    return null;
  }
})();

// Relative, because a proxy may serve the page below a path.
const url = new URL("./", location.href);
url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
url.hash = "";

const me = connect(url.href, {
  ticket: storage?.getItem(TICKET_KEY) ?? null,
  onTicket: (ticket) => storage?.setItem(TICKET_KEY, ticket),
  onState,
  onFrame: ({ direction, text }) => onFrame(direction, text),
  onDropped: (count) => note(`${count} messages to you were dropped: your queue was full.`),
  onMessage: ({ senderId, message }) => {
    const { head } = show("in", senderId === 0 ? "from the system" : `from ${senderId}`, message);
    if (senderId === 0) return;
    if (to.value === "") to.value = String(senderId);
    const reply = document.createElement("button");
    reply.type = "button";
    reply.className = "reply";
    reply.textContent = "Reply";
    reply.setAttribute("aria-label", `Reply to ${senderId}`);
    reply.addEventListener("click", () => {
      to.value = String(senderId);
      text.focus();
    });
    head.append(reply);
  },
});
onState(me.state);

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const recipientId = Number(to.value);
  const valid = /^\d+$/.test(to.value.trim()) && Number.isSafeInteger(recipientId) && recipientId > 0;
  to.setAttribute("aria-invalid", String(!valid));
  problem.textContent = valid ? "" : "Enter the id of the recipient: a whole number, such as 2.";
  if (!valid) {
    to.focus();
    return;
  }
  if (text.value === "") {
    text.focus();
    return;
  }
  const message = text.value;
  text.value = "";
  text.focus();
  const { entry } = show("out", `to ${recipientId}`, message);
  const line = make("div", "outcome", "sent");
  entry.append(line);
  log.scrollTop = log.scrollHeight;
  // A lone surrogate is not a character, and JSON cannot carry it. Some keyboards leave one half of a pair.
  onOutcome(line, await me.send(recipientId, message.replace(/\p{Surrogate}/gu, "\ufffd")));
});

text.addEventListener("keydown", (event) => {
  // In many languages, Enter also completes the composition of a character; that must not send the message.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});

copy.addEventListener("click", async () => {
  await navigator.clipboard.writeText(invite.href);
  copy.textContent = "Copied";
  setTimeout(() => (copy.textContent = "Copy link"), 2000);
});

function readHash() {
  const invited = new URLSearchParams(location.hash.slice(1)).get("to");
  if (!invited || !/^\d{1,16}$/.test(invited)) return;
  to.value = invited;
  text.focus();
}
addEventListener("hashchange", readHash);
readHash();
