// A Python script's functions in Node.js: `shmexec serve` as a child process, spoken to
// through the package json-rpc-2.0.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { JSONRPCClient, JSONRPCServer, JSONRPCServerAndClient } from "json-rpc-2.0";

export class Python {
  constructor(command, args, options = {}) {
    this.process = spawn(command, args, { ...options, stdio: ["pipe", "pipe", "inherit"] });
    this.streams = new Map(); // by the ids of their requests
    this.nextId = 1;
    const send = (message) => {
      this.process.stdin.write(JSON.stringify(message) + "\n");
      return Promise.resolve();
    };
    this.peer = new JSONRPCServerAndClient(
      new JSONRPCServer(),
      new JSONRPCClient(send, () => this.nextId++),
    );
    this.peer.addMethod("stream.item", ({ id, item }) => this.streams.get(id)?.(item));
    createInterface({ input: this.process.stdout }).on("line", (line) =>
      this.peer.receiveAndSend(JSON.parse(line)),
    );
    this.exited = once(this.process, "exit").then(([code]) => {
      this.peer.rejectAllPendingRequests(`the server ended with code ${code}`);
      return code;
    });
  }

  request(method, params) {
    return this.peer.request(method, params);
  }

  call(name, ...args) {
    return this.request("call", { function: name, args });
  }

  notify(name, ...args) {
    this.peer.notify("call", { function: name, args });
  }

  // Requests with an id of our choice, to know the stream's items and to cancel by it.
  async requestAs(id, method, params) {
    const { result, error } = await this.peer.requestAdvanced({
      jsonrpc: "2.0",
      id,
      method,
      params,
    });
    if (error) throw Object.assign(new Error(error.message), error);
    return result;
  }

  async stream(onItem, name, ...args) {
    const id = `stream ${this.nextId++}`;
    this.streams.set(id, onItem);
    try {
      return await this.requestAs(id, "stream", { function: name, args });
    } finally {
      this.streams.delete(id);
    }
  }
}

export function toJson(array) {
  const bytes = Buffer.from(array.buffer, array.byteOffset, array.byteLength);
  return { __ndarray__: bytes.toString("base64"), dtype: "<f4", shape: [array.length] };
}

export function fromJson({ __ndarray__, dtype }) {
  if (dtype !== "<f4") throw new TypeError(`expected <f4, not ${dtype}`);
  const bytes = Buffer.from(__ndarray__, "base64");
  return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
}
