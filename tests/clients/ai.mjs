// The AI SDK with its provider for servers like OpenAI's: text, a loop of tools, an object, a stream with usage.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

const provider = createOpenAICompatible({
  name: "ir3de", baseURL: process.argv[2], apiKey: "none", includeUsage: true, supportsStructuredOutputs: true,
});
const model = provider("ir3de");
const prompt = "the court and a judge";
const said = "Forty-two — naïve, 4².";

const answer = await generateText({ model, prompt, maxRetries: 0 });
assert.equal(answer.text, said);
assert.equal(answer.reasoningText, "Let me think.");
assert.equal(answer.response.headers["x-ir3de-expert"], "law");

let looked = null;
const look = tool({
  description: "looks",
  inputSchema: jsonSchema({ type: "object", properties: { at: { type: "string" } } }),
  execute: async ({ at }) => { looked = at; return "3.14"; },
});
const looped = await generateText({ model, prompt, tools: { look }, stopWhen: stepCountIs(4), maxRetries: 0 });
assert.equal(looped.text, said);
assert.equal(looked, "π");
assert.equal(looped.steps.length, 2);

const schema = jsonSchema({ type: "object", properties: { verdict: { type: "string" }, years: { type: "number" } } });
const { object } = await generateObject({ model, prompt, schema, maxRetries: 0 });
assert.deepEqual(object, { verdict: "guilty", years: 3 });

const stream = streamText({ model, prompt, maxRetries: 0 });
let text = "";
for await (const part of stream.textStream) text += part;
assert.equal(text, said);
assert.equal((await stream.usage).inputTokens, 11);
