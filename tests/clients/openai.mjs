// OpenAI's client for Node: chat, a loop of tools, JSON of a schema, a stream with usage, Responses.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "the court and a judge" }];
const said = "Forty-two — naïve, 4².";

const { data, response } = await client.chat.completions.create({ model: "ir3de", messages }).withResponse();
assert.equal(response.headers.get("x-ir3de-expert"), "law");
assert.equal(data.choices[0].message.content, said);
assert.equal(data.usage.total_tokens, 18);

const stream = await client.chat.completions.create({
  model: "ir3de", messages, stream: true, stream_options: { include_usage: true },
});
let text = "", usage = null;
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, said);
assert.equal(usage.prompt_tokens_details.cached_tokens, 3);

let looked = null;
const parameters = { type: "object", properties: { at: { type: "string" } } };
const look = { name: "look", parse: JSON.parse, parameters, function: ({ at }) => { looked = at; return "3.14"; } };
const runner = client.chat.completions.runTools({ model: "ir3de", messages, tools: [{ type: "function", function: look }] });
assert.equal(await runner.finalContent(), said);
assert.equal(looked, "π");

const schema = { type: "object", properties: { verdict: { type: "string" }, years: { type: "number" } } };
const parsed = await client.chat.completions.parse({
  model: "ir3de", messages,
  response_format: {
    type: "json_schema", json_schema: { name: "Verdict", schema }, $brand: "auto-parseable-response-format",
    $parseRaw: JSON.parse,
  },
});
assert.deepEqual(parsed.choices[0].message.parsed, { verdict: "guilty", years: 3 });

const answer = await client.responses.create({ model: "ir3de", input: "the court and a judge" });
assert.equal(answer.output_text, "Forty-two.");
const types = [];
for await (const event of await client.responses.create({ model: "ir3de", input: "the court", stream: true })) {
  types.push(event.type);
}
assert.equal(types.at(-1), "response.completed");

await assert.rejects(client.chat.completions.create({ model: "gpt-4", messages }), (error) => error.status === 404);
