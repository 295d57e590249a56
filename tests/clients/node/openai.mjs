// What the official OpenAI client for Node gets through forebay: reads where and by which keys from stdin, prints one JSON object.

import { text } from "node:stream/consumers";
import OpenAI from "openai";

const { baseURL, status, key, refused, mark } = JSON.parse(await text(process.stdin));
const clientOf = (apiKey) => new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 30_000 });
const client = clientOf(key);
const messages = [{ role: "user", content: `Say something. ${mark}` }];

// How many requests the slow engine is answering, as soon as it is this many; else what it is after 20 s.
async function inFlight(count) {
  const deadline = Date.now() + 20_000;
  for (;;) {
    const { pools } = await (await fetch(status)).json();
    const now = pools.slow.servers[0].in_flight;
    if (now === count || Date.now() > deadline) return now;
    await new Promise((wake) => setTimeout(wake, 20));
  }
}

// The class, status and code of the error with which a call ends.
async function errorOf(call) {
  try {
    await call;
  } catch (error) {
    return { class: error.constructor.name, status: error.status, code: error.code };
  }
}

const said = {};

const chat = await client.chat.completions.create({ model: "demo", messages });
said.chat = { content: chat.choices[0].message.content, usage: chat.usage };

const stream = await client.chat.completions.create({
  model: "demo", messages, stream: true, stream_options: { include_usage: true },
});
said.stream = { content: "", reasons: [], usages: [] };
for await (const { choices, usage } of stream) {
  for (const { delta, finish_reason } of choices) {
    said.stream.content += delta.content ?? "";
    if (finish_reason) said.stream.reasons.push(finish_reason);
  }
  if (usage) said.stream.usages.push(usage);
}

const embeddings = await client.embeddings.create({ model: "demo", input: [`a ${mark}`, `b ${mark}`] });
said.embeddings = embeddings.data.map(({ embedding }) => embedding.length);

said.models = [];
for await (const model of client.models.list()) said.models.push(model.id);
said.model = (await client.models.retrieve("acme/tiny")).id;

said.errors = {
  key: await errorOf(clientOf(refused).chat.completions.create({ model: "demo", messages })),
  model: await errorOf(client.chat.completions.create({ model: "no-such-model", messages, stream: true })),
  engine: await errorOf(client.chat.completions.create({ model: "dead", messages })),
};

const response = await client.responses.create({ model: "demo", input: `Say something. ${mark}` });
said.response = { status: response.status, content: response.output_text };

const leave = new AbortController();
const endless = await client.chat.completions.create(
  // A minute's answer at 20 tokens a second.
  { model: "slow", messages, max_tokens: 1200, stream: true }, { signal: leave.signal },
);
said.abort = { chunks: 0 };
for await (const _ of endless) {
  said.abort.chunks += 1;
  said.abort.before ??= await inFlight(1);
  leave.abort();
}
said.abort.after = await inFlight(0);

console.log(JSON.stringify(said));
