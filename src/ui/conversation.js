// The messages on the page: grouped by sender, with times, and with a hint where the reader has scrolled away. User
// input is shown only as text, never as HTML.

/** The page removes older entries, so that a tab that stays open for days does not grow. */
const MESSAGES_MAX = 500;
/** A message of the same person within this time continues the group of the one before. */
const GROUP_MS = 5 * 60_000;
/** A list is at its end if less than this is below. */
const END_PX = 40;

/**
 * @param {string} tag
 * @param {string} className
 * @param {string} content
 */
export function make(tag, className, content) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = content;
  return made;
}

/**
 * @param {string} content
 * @param {string} label what a screen reader says
 * @param {() => void} onClick
 */
export function smallButton(content, label, onClick) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "small";
  button.textContent = content;
  button.setAttribute("aria-label", label);
  button.addEventListener("click", onClick);
  return button;
}

/** A list that stays at its end while entries are added, and while its height or that of an entry changes. */
export class Tail {
  #list;
  #max;
  #atEnd = true;
  /** Where the list was scrolled to last. */
  #top = 0;
  // The text box grows, a keyboard opens, the window is resized, an outcome takes a second line: the newest entry
  // stays visible.
  #resizes = new ResizeObserver(() => this.#atEnd && this.toEnd());

  /**
   * @param {HTMLElement} list
   * @param {number} max
   * @param {(atEnd: boolean) => void} [onScroll]
   */
  constructor(list, max, onScroll) {
    this.#list = list;
    this.#max = max;
    list.addEventListener("scroll", () => {
      const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < END_PX;
      // Only a reader scrolls up. The event of a scroll to the end can come when the list has already shrunk again.
      this.#atEnd = atEnd || (this.#atEnd && list.scrollTop >= this.#top);
      this.#top = list.scrollTop;
      onScroll?.(this.#atEnd);
    });
    this.#resizes.observe(list);
  }

  get atEnd() {
    return this.#atEnd;
  }

  /** @param {HTMLElement} entry */
  add(entry) {
    this.#list.append(entry);
    this.#resizes.observe(entry);
    while (this.#list.childElementCount > this.#max) this.remove(this.#list.firstElementChild);
    if (this.#atEnd) this.toEnd();
  }

  /** @param {Element | null} entry */
  remove(entry) {
    if (!entry) return;
    this.#resizes.unobserve(entry);
    entry.remove();
  }

  toEnd() {
    this.#list.scrollTop = this.#list.scrollHeight;
    this.#top = this.#list.scrollTop;
  }
}

/** The log of messages. */
export class Conversation {
  #tail;
  #hint;
  #unread = 0;
  #onUnread;
  /** The sender and the time of the last message, in milliseconds. */
  #last = { who: "", at: 0 };

  /**
   * @param {HTMLElement} log
   * @param {HTMLButtonElement} hint shows the number of unread messages, and scrolls to them
   * @param {(count: number) => void} onUnread gets the number of messages that the reader has not seen
   */
  constructor(log, hint, onUnread) {
    this.#hint = hint;
    this.#onUnread = onUnread;
    this.#tail = new Tail(log, MESSAGES_MAX, () => this.#look());
    hint.addEventListener("click", () => this.#tail.toEnd());
    document.addEventListener("visibilitychange", () => this.#look());
  }

  /**
   * @param {"in" | "out"} direction
   * @param {string} who
   * @param {string} message
   */
  show(direction, who, message) {
    const now = new Date();
    const entry = make("div", `message ${direction}`, "");
    const head = make("div", "who", who);
    const time = make("time", "", now.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }));
    time.setAttribute("datetime", now.toISOString());
    head.append(time);
    if (this.#last.who === who && now.getTime() - this.#last.at < GROUP_MS) entry.classList.add("next");
    this.#last = { who, at: now.getTime() };
    const body = make("div", "body", message);
    body.dir = "auto";
    entry.append(head, body);
    // Counted before the entry is added, so that the reader's place is still known.
    if (direction === "in" && !this.#isSeen()) this.#count(this.#unread + 1);
    this.#tail.add(entry);
    if (direction === "out") this.#tail.toEnd();
    // Only a body that scrolls needs the keyboard focus.
    if (body.scrollHeight > body.clientHeight) {
      body.tabIndex = 0;
      body.setAttribute("role", "group");
      body.setAttribute("aria-label", "Long message");
    }
    return { entry, head };
  }

  /**
   * Removes a message. The next one of its group gets the head.
   *
   * @param {HTMLElement} entry
   */
  remove(entry) {
    if (!entry.classList.contains("next")) entry.nextElementSibling?.classList.remove("next");
    if (!entry.nextElementSibling) this.#last = { who: "", at: 0 };
    this.#tail.remove(entry);
  }

  /** @param {string} notice */
  note(notice) {
    this.#last = { who: "", at: 0 };
    this.#tail.add(make("div", "notice", notice));
  }

  #isSeen() {
    return this.#tail.atEnd && !document.hidden;
  }

  #look() {
    if (this.#isSeen()) this.#count(0);
  }

  /** @param {number} count */
  #count(count) {
    this.#unread = count;
    this.#hint.hidden = count === 0;
    this.#hint.textContent = count === 1 ? "1 new message" : `${count} new messages`;
    this.#onUnread(count);
  }
}
