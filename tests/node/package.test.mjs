// Tests of the client as a file that a program takes: its types, its size, and callers of CommonJS.

import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { brotliCompressSync } from "node:zlib";

import { transformSync } from "esbuild";

import { Relay } from "./relay.mjs";

const BYTES_MAX = 5 * 1024;

const here = fileURLToPath(new URL(".", import.meta.url));
const source = join(here, "../../src/ui/switchboard.js");
const types = join(here, "../../src/ui/switchboard.d.ts");
const folder = mkdtempSync(join(tmpdir(), "switchboard-"));

/** @type {Relay} */
let relay;

before(async () => {
  relay = await Relay.start();
  for (const name of ["switchboard.mjs", "switchboard.d.mts"]) {
    writeFileSync(join(folder, name), (await relay.get(`/${name}`)).text);
  }
});

after(() => relay.stop());

/** Runs the TypeScript compiler. @param {string[]} options */
function tsc(...options) {
  try {
    execFileSync("npx", ["--no-install", "tsc", ...options], { cwd: here, encoding: "utf8" });
  } catch (error) {
    assert.fail(/** @type {any} */ (error).stdout);
  }
}

/** Runs a program of CommonJS in the folder of the client. @param {string} program @param {string[]} options */
function runCommonJs(program, ...options) {
  writeFileSync(join(folder, "main.cjs"), program);
  return spawnSync(process.execPath, [...options, "main.cjs"], { cwd: folder, encoding: "utf8" });
}

test("the types of the client and of the page are correct", () => tsc("--project", "tsconfig.json"));

test("the file of types is what the compiler makes of the client", () => {
  tsc("--project", "tsconfig.types.json", "--outDir", folder);
  const made = readFileSync(join(folder, "switchboard.d.ts"), "utf8");
  if (process.env.UPDATE) writeFileSync(types, made);
  assert.equal(readFileSync(types, "utf8"), made, "UPDATE=1 tests/node/run writes src/ui/switchboard.d.ts");
});

test("a program has the types when it saves both files beside it", async () => {
  for (const name of ["switchboard.d.ts", "switchboard.d.mts"]) {
    assert.equal((await relay.get(`/${name}`)).text, readFileSync(types, "utf8"), name);
  }
  const uses = readFileSync(join(here, "uses.ts"), "utf8");
  writeFileSync(join(folder, "uses.mts"), uses.replace("../../src/ui/switchboard.js", "./switchboard.mjs"));
  mkdirSync(join(folder, "node_modules"));
  for (const name of ["ws", "@types"]) symlinkSync(join(here, "node_modules", name), join(folder, "node_modules", name));
  const strict = ["--ignoreConfig", "--strict", "--noEmit", "--target", "es2022", "--types", "node"];
  tsc(...strict, "--module", "nodenext", join(folder, "uses.mts"));
});

test("the client is small", (t) => {
  const { code } = transformSync(readFileSync(source, "utf8"), { minify: true, target: "es2022" });
  const bytes = brotliCompressSync(code).length;
  t.diagnostic(`${bytes} bytes, minified and compressed by brotli`);
  assert.ok(bytes <= BYTES_MAX, `${bytes} bytes`);
});

test("a caller of CommonJS has the client, or is told to import it", () => {
  const required = 'console.log(require("./switchboard.mjs").connect.name);';
  const imported = 'import("./switchboard.mjs").then(({ connect }) => console.log(connect.name));';
  // As in Node before 20.19 and 22.12.
  const old = "--no-experimental-require-module";
  const works = [runCommonJs(required), runCommonJs(imported), runCommonJs(imported, old)];
  for (const { stdout, stderr } of works) assert.equal(stdout, "connect\n", stderr);
  const { stderr, status } = runCommonJs(required, old);
  assert.equal(status, 1);
  assert.match(stderr, /ERR_REQUIRE_ESM/);
  assert.match(stderr, /require\(\) of ES Module .* not supported.\nInstead change the require .* to a dynamic import\(\)/);
});
