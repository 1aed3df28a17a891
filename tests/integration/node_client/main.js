// Asks the server for all it can do, and checks what comes back.
// Usage: node main.js COMMAND ARGUMENT...  (what starts the server)

import assert from "node:assert/strict";
import { fromJson, Python, toJson } from "./python.js";

const [command, ...args] = process.argv.slice(2);
const python = new Python(command, args);

// Who runs this sees what failed, and the server does not outlive it.
process.on("uncaughtException", (error) => {
  console.error(error);
  process.exit(1);
});

async function refused(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  assert.fail("it was not refused");
}

const functions = await python.request("functions");
assert.deepEqual(
  functions.find(({ name }) => name === "predict"),
  { name: "predict", kind: "function", signature: "(x)", doc: "Twice x." },
);
const health = await python.request("health");
assert.equal(health.status, "ok");
assert.equal(health.workers, 2);

const texts = { emoji: "😀🇩🇪", "漢字": "مرحبا", separators: "a\u2028b\u2029c\u0085d" };
assert.deepEqual(await python.call("echo", texts), texts);

const array = Float32Array.of(1, 2.5, -3);
const doubled = fromJson(await python.call("predict", toJson(array)));
assert.deepEqual([...doubled], [2, 5, -6]);

const error = await refused(python.call("fail", "漢字"));
assert.equal(error.code, -32000);
assert.equal(error.data.type, "ValueError");
assert.equal(error.data.message, "漢字");
assert.match(error.data.traceback, /model\.py.*in fail/s);
assert.match((await refused(python.call("ech"))).message, /did you mean 'echo'/);
assert.equal((await refused(python.request("nothing", {}))).code, -32601);

const items = [];
assert.deepEqual(await python.stream((item) => items.push(item), "count_up", 100), {
  items: 100,
});
assert.deepEqual(items, [...Array(100).keys()]);

let first;
const started = new Promise((resolve) => (first = resolve));
const endless = refused(python.requestAs("endless", "stream", { function: "endless" }));
python.streams.set("endless", first);
await started;
assert.equal(await python.request("cancel", { id: "endless" }), true);
assert.equal((await endless).code, -32003);

const batch = await python.peer.requestAdvanced([
  { jsonrpc: "2.0", id: "a", method: "call", params: ["echo", [1]] },
  { jsonrpc: "2.0", id: "b", method: "call", params: ["echo", [2]] },
]);
assert.deepEqual(Object.fromEntries(batch.map(({ id, result }) => [id, result])), {
  a: 1,
  b: 2,
});

// A hundred at once, and one of them kills its worker.
python.notify("echo", "nobody waits for this one");
const outcomes = await Promise.allSettled(
  [...Array(100).keys()].map((i) => (i === 50 ? python.call("die") : python.call("echo", i))),
);
const failed = outcomes.splice(50, 1)[0].reason;
assert.equal(failed.code, -32001);
assert.equal(failed.data.type, "WorkerDied");
assert.deepEqual(
  outcomes.map(({ value }) => value),
  [...Array(100).keys()].filter((i) => i !== 50),
);
assert.equal((await python.request("stats")).pool.worker_deaths, 1);
assert.equal(await python.call("echo", "it goes on"), "it goes on");

assert.equal(await python.request("shutdown"), null);
assert.equal(await python.exited, 0);
console.log("all is well");
