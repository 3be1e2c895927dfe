// Starts the relay that cargo built on a free port, and drains, kills, freezes and restarts it.

import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** Returns the binary that `SWITCHBOARD_BIN` names, or the newest one in the target folder. */
export function binary() {
  if (process.env.SWITCHBOARD_BIN) return process.env.SWITCHBOARD_BIN;
  const target = process.env.CARGO_TARGET_DIR ?? join(root, "target");
  const built = ["debug", "release"].map((profile) => join(target, profile, "switchboard"));
  const [newest] = built.filter(existsSync).sort((a, b) => statSync(b).mtimeMs - statSync(a).mtimeMs);
  if (!newest) throw new Error(`no binary in ${target}; build one with "cargo build"`);
  return newest;
}

function freePort() {
  return new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

export class Relay {
  /** @param {Record<string, string>} settings variables, such as `LIMITS__MESSAGE_BYTES` */
  static async start(settings = {}) {
    const relay = new Relay();
    relay.port = await freePort();
    relay.settings = settings;
    relay.url = `ws://127.0.0.1:${relay.port}/`;
    await relay.restart();
    return relay;
  }

  /** Starts the relay on the same port, and waits until it is ready. */
  async restart() {
    const env = { ...process.env, SWITCHBOARD__SERVER__LISTEN: `127.0.0.1:${this.port}` };
    env.SWITCHBOARD__LOG__FILTER = "warn";
    for (const [key, value] of Object.entries(this.settings)) env[`SWITCHBOARD__${key}`] = value;
    const child = spawn(binary(), { env, stdio: ["ignore", "inherit", "inherit"] });
    this.child = child;
    this.ended = new Promise((resolve) => child.once("exit", resolve));
    for (let tries = 0; tries < 400; tries += 1) {
      if (child.exitCode !== null) throw new Error(`the relay exited with ${child.exitCode}`);
      try {
        await this.get("/readyz");
        return;
      } catch {
        await new Promise((resolve) => setTimeout(resolve, 25));
      }
    }
    throw new Error(`the relay is not ready on port ${this.port}`);
  }

  /** Stops all threads of the relay until `thaw`. */
  async freeze() {
    this.child.kill("SIGSTOP");
    const tasks = `/proc/${this.child.pid}/task`;
    // The state follows the name of the thread, which is in parentheses (proc(5)).
    const isStopped = (task) => /\) T /.test(readFileSync(`${tasks}/${task}/stat`, "utf8"));
    await until(() => readdirSync(tasks).every(isStopped), "all threads stopped");
  }

  thaw() {
    this.child.kill("SIGCONT");
  }

  /** Sends a signal, and waits until the relay exits. @param {NodeJS.Signals} signal */
  async stop(signal = "SIGKILL") {
    this.child.kill(signal);
    await this.ended;
  }

  /** @param {string} path */
  async get(path) {
    const answer = await fetch(`http://127.0.0.1:${this.port}${path}`, { headers: { connection: "close" } });
    return { status: answer.status, headers: answer.headers, text: await answer.text() };
  }

  /** Returns the sum of a metric over all labels. @param {string} name */
  async metric(name) {
    const { text } = await this.get("/metrics");
    const lines = text.split("\n").filter((line) => line.startsWith(`${name} `) || line.startsWith(`${name}{`));
    return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" ") + 1)), 0);
  }

  /** Returns a token for this relay. @param {string} expiresIn */
  token(expiresIn = "1h") {
    const variables = Object.entries(this.settings).map(([key, value]) => [`SWITCHBOARD__${key}`, value]);
    const env = { ...process.env, ...Object.fromEntries(variables) };
    const options = ["token", "issue", "--subject", "alice", "--expires-in", expiresIn];
    return execFileSync(binary(), options, { env, encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] }).trim();
  }

  /** Imports the client that the relay serves. */
  async client() {
    const { text } = await this.get("/switchboard.js");
    const path = join(mkdtempSync(join(tmpdir(), "switchboard-")), "switchboard.mjs");
    writeFileSync(path, text);
    return import(path);
  }
}

/**
 * Waits until `condition` returns a true value.
 *
 * @param {() => unknown} condition
 * @param {string} what
 */
export async function until(condition, what, timeoutMs = 20_000) {
  // Not Date.now, because tests replace it.
  const end = performance.now() + timeoutMs;
  while (!(await condition())) {
    if (performance.now() > end) throw new Error(`not within ${timeoutMs} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
