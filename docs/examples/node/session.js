// A session from Node.js, with nothing but the API definition, an identity and @grpc/grpc-js.
//
//   npm ci
//   node session.js ADDRESS SERVER_NAME IDENTITY_FOLDER PROTO_FOLDER AGENT
//
// It opens a shell with a terminal, types, changes the size of the window, interrupts a program, leaves the session,
// attaches again, and closes it. Then it prints one line of JSON about the result.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const { randomUUID } = require("node:crypto");
const grpc = require("@grpc/grpc-js");
const { loadSync } = require("@grpc/proto-loader");

const PROMPT = "ready> ";
const SHELL = ["env", `PS1=${PROMPT}`, "bash", "--norc", "--noprofile", "--noediting"];

/** Make a client of the service, over mTLS. */
function connect(address, serverName, identity, protos) {
  const file = "tachikoma/exec/v1/remote_execution.proto";
  const options = { includeDirs: [protos], longs: Number, enums: String, oneofs: true };
  const { RemoteExecution } = grpc.loadPackageDefinition(loadSync(file, options)).tachikoma.exec.v1;
  const read = (name) => fs.readFileSync(path.join(identity, name));
  const credentials = grpc.credentials.createSsl(read("svid_bundle.pem"), read("svid_key.pem"), read("svid.pem"));
  return new RemoteExecution(address, credentials, { "grpc.ssl_target_name_override": serverName });
}

/** One attachment: a call of ExecuteInteractive, from its first message to the end of its stream. */
class Attachment {
  constructor(client, first) {
    this.call = client.executeInteractive();
    this.output = "";
    this.screen = null;
    this.accepted = null;
    this.result = null;
    this.lastChunk = 0;
    this.ended = new Promise((resolve, reject) => {
      this.call.on("end", resolve);
      this.call.on("error", reject);
    });
    // A failure is reported where the end is awaited.
    this.ended.catch(() => {});
    this.call.on("data", (message) => this.take(message));
    this.call.write(first);
  }

  take(message) {
    if (message.event === "stdout") {
      this.output += message.stdout.toString();
      this.lastChunk = message.seq;
      // A command waits for a caller that reports its progress, so output does not pile up before a slow terminal.
      this.call.write({ written: { bytes: message.offset + message.stdout.length } });
    } else {
      this[message.event] = message[message.event];
    }
    this.call.emit("progress");
  }

  /** Wait until a condition holds after a message. */
  async until(condition) {
    while (!condition()) {
      let stop;
      const progress = new Promise((resolve) => this.call.once("progress", (stop = resolve)));
      await Promise.race([progress, this.ended.then(() => Promise.reject(new Error("the stream ended")))]);
      this.call.removeListener("progress", stop);
    }
  }

  /** Wait until a text appears in the output, and remove the output up to it. */
  async expect(text) {
    await this.until(() => this.output.includes(text));
    this.output = this.output.slice(this.output.indexOf(text) + text.length);
  }

  type(text) {
    this.call.write({ data: { data: Buffer.from(text) } });
  }
}

async function main([address, serverName, identity, protos, agentId]) {
  const client = connect(address, serverName, identity, protos);
  const id = randomUUID();
  const terminal = { type: "xterm-256color", rows: 33, columns: 99 };

  const first = new Attachment(client, {
    request: { id, agentId, command: SHELL, interactive: true, tty: true, terminal },
  });
  await first.expect(PROMPT);
  first.type("stty size; kept=42\r");
  await first.expect("\r\n33 99\r\n");
  await first.expect(PROMPT);

  first.call.write({ resize: { rows: 50, columns: 120 } });
  // The new size and the typed line take different ways to the terminal.
  first.type('until [ "$(stty size)" = "50 120" ]; do sleep 0.1; done; stty size\r');
  await first.expect("\r\n50 120\r\n");
  await first.expect(PROMPT);

  first.type("sh -c 'echo begin $((41 + 1)); exec sleep 1000'\r");
  await first.expect("begin 42\r\n");
  first.call.write({ signal: "INT" });
  await first.expect(PROMPT);

  first.call.write({ detach: {} });
  await first.ended;

  const second = new Attachment(client, { attach: { id, screen: { rows: 50, columns: 120 } } });
  await second.until(() => second.screen !== null);
  second.type("echo it is $kept\r");
  await second.expect("\r\nit is 42\r\n");
  // The command may accept the last bytes after it has answered.
  await second.until(() => second.accepted !== null);

  second.call.write({ close: {} });
  await second.ended;
  client.close();
  const { state, error, kill } = second.result;
  console.log(JSON.stringify({ id, left: first.result === null, drawn: second.screen.length, state, error, kill }));
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`session: ${error.message}`);
  process.exitCode = 1;
});
