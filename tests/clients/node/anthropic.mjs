// The unmodified `@anthropic-ai/sdk` for Node.js: what it makes of each scenario.
import Anthropic from "@anthropic-ai/sdk";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";

import { play, readPlan } from "./play.mjs";

const plan = await readPlan();
const baseURL = plan.base_url.replace(/\/v1$/, "");
const client = new Anthropic({ baseURL, apiKey: plan.key });
const weather = {
  name: "weather",
  description: "The weather in a city.",
  input_schema: { type: "object", properties: { city: { type: "string" } } },
};
const Person = z.object({ name: z.string(), born: z.number() });

const ask = (model, content, more = {}) => ({ model, max_tokens: 100, messages: [{ role: "user", content }], ...more });

const describe = (error) => ({
  raised: error.constructor.name,
  is_api_error: error instanceof Anthropic.APIError,
  status: error.status ?? null,
  type: error.error?.error?.type ?? null,
  request_id: error.requestID ?? null,
  message: error.message,
});

// What came of a stream, also of one that broke.
async function collect(stream) {
  const seen = { text: "", types: [], stop: null, broke: null };
  try {
    for await (const event of stream) {
      if (event.type === "content_block_delta" && event.delta.type === "text_delta") seen.text += event.delta.text;
      if (event.type === "message_delta") Object.assign(seen, { stop: event.delta.stop_reason, usage: event.usage });
      if (event.type !== seen.types.at(-1)) seen.types.push(event.type);
    }
  } catch (error) {
    seen.broke = describe(error);
  }
  return seen;
}

const scenarios = {
  async answer(question) {
    const { data, response, request_id } = await client.messages.create(ask("chat", question)).withResponse();
    return { reply: data, mode: response.headers.get("x-gkt-mode"), request_id };
  },
  async stream(question) {
    return collect(await client.messages.create(ask("chat", question, { stream: true })));
  },
  async stream_helper(question) {
    const deltas = [];
    const stream = client.messages.stream(ask("chat", question)).on("text", (text) => deltas.push(text));
    return { final: await stream.finalMessage(), deltas };
  },
  async count(question) {
    return client.messages.countTokens({ model: "chat", messages: [{ role: "user", content: question }] });
  },
  async tools(question) {
    return client.messages.create(ask("tools", question, { tools: [weather] }));
  },
  async tools_run(question) {
    const told = [];
    const run = (input) => (told.push(input), "sunny");
    const tool = betaZodTool({ ...weather, inputSchema: z.object({ city: z.string() }), run });
    const final = await client.beta.messages.toolRunner(ask("tools", question, { tools: [tool] }));
    return { text: final.content[0].text, told };
  },
  async parse(question) {
    const format = zodOutputFormat(Person);
    return (await client.messages.parse(ask("person", question, { output_config: { format } }))).parsed_output;
  },
  async busy_twice(question) {
    return (await client.messages.create(ask("busy-twice", question))).content[0].text;
  },
  async no_retries(question) {
    return client.messages.create(ask("busy", question), { maxRetries: 0 });
  },
  async impatient(question) {
    return client.messages.create(ask("slow", question), { timeout: 1000, maxRetries: 1 });
  },
  async aborted(question) {
    const stream = client.messages.stream(ask("gradual", question)).on("text", () => stream.abort());
    return stream.finalMessage();
  },
  async breaks(question) {
    return collect(await client.messages.create(ask("breaks", question, { stream: true })));
  },
  async ends_early(question) {
    return collect(await client.messages.create(ask("ends-early", question, { stream: true })));
  },
  async wire_cut(question) {
    return collect(await client.messages.create(ask("wire-cut", question, { stream: true })));
  },
};

async function refuse({ model, key, temperature, max_retries, question }) {
  const options = { baseURL, apiKey: key };
  const caller = new Anthropic(max_retries === null ? options : { ...options, maxRetries: max_retries });
  return caller.messages.create(ask(model, question, temperature === null ? {} : { temperature }));
}

await play(plan, scenarios, refuse, describe);
