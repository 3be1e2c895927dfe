// The ticket of this tab, and whether this tab owns it. A browser copies the storage of a tab into a duplicate of
// it, and two tabs with one ticket would end each other's connection for ever.

const TICKET_KEY = "switchboard.ticket";
/** A random name for this tab, which is stored beside the ticket and copied with it. */
const TAB_KEY = "switchboard.tab";
/** The wait for an answer of another tab, where a page that is not secure has no locks. */
const ANSWER_MS = 150;

/** The storage of this tab; null if the browser allows none. @type {Storage | null} */
const storage = (() => {
  try {
    return sessionStorage;
  } catch {
    return null;
  }
})();

/**
 * Returns the ticket of this tab, or null if it has none of its own. The first tab that asks keeps the ticket until
 * it is closed; a duplicate gets a name of its own.
 *
 * @returns {Promise<string | null>}
 */
export async function ownTicket() {
  const name = storage?.getItem(TAB_KEY);
  if (name && (await take(name))) return storage?.getItem(TICKET_KEY) ?? null;
  await joinAsNew();
  return null;
}

/** Forgets the ticket, and gives this tab a new name. */
export async function joinAsNew() {
  const name = Array.from(crypto.getRandomValues(new Uint32Array(4))).join("-");
  storage?.removeItem(TICKET_KEY);
  storage?.setItem(TAB_KEY, name);
  await take(name);
}

/** @param {string} ticket */
export function storeTicket(ticket) {
  storage?.setItem(TICKET_KEY, ticket);
}

/**
 * Takes a name for as long as this tab is open. Returns false if another tab has it.
 *
 * @param {string} name
 * @returns {Promise<boolean>}
 */
function take(name) {
  if (navigator.locks) {
    return new Promise((resolve) => {
      navigator.locks.request(`switchboard.${name}`, { ifAvailable: true }, (lock) => {
        resolve(lock !== null);
        // The lock is held until this promise settles: until the tab is closed.
        return lock && new Promise(() => {});
      });
    });
  }
  const channel = new BroadcastChannel("switchboard");
  return new Promise((resolve) => {
    const timer = setTimeout(() => {
      channel.onmessage = ({ data }) => data === `who is ${name}?` && channel.postMessage(`I am ${name}`);
      resolve(true);
    }, ANSWER_MS);
    channel.onmessage = ({ data }) => {
      if (data !== `I am ${name}`) return;
      clearTimeout(timer);
      channel.close();
      resolve(false);
    };
    channel.postMessage(`who is ${name}?`);
  });
}
