// The unmodified `openai` package for Node.js: what it makes of each scenario. See ../programs.py.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

import { play, readPlan } from "./play.mjs";

const plan = await readPlan();
const client = new OpenAI({ baseURL: plan.base_url, apiKey: plan.key });
const chat = client.chat.completions;
const weather = {
  type: "function",
  function: { name: "weather", parameters: { type: "object", properties: { city: { type: "string" } } } },
};
const Person = z.object({ name: z.string(), born: z.number() });

const ask = (model, content, more = {}) => ({ model, messages: [{ role: "user", content }], ...more });

const describe = (error) => ({
  raised: error.constructor.name,
  is_api_error: error instanceof OpenAI.APIError,
  status: error.status ?? null,
  code: error.code ?? null,
  param: error.param ?? null,
  request_id: error.requestID ?? null,
  message: error.message,
});

// What came of a stream, also of one that broke.
async function collect(stream) {
  const seen = { text: "", finishes: [], broke: null };
  try {
    for await (const chunk of stream) {
      for (const choice of chunk.choices) {
        seen.text += choice.delta.content ?? "";
        if (choice.finish_reason) seen.finishes.push(choice.finish_reason);
      }
      seen.last = chunk;
    }
  } catch (error) {
    seen.broke = describe(error);
  }
  return seen;
}

const scenarios = {
  async answer(question) {
    const { data, response, request_id } = await chat.create(ask("chat", question)).withResponse();
    return { reply: data, mode: response.headers.get("x-gkt-mode"), request_id };
  },
  async stream(question) {
    return collect(await chat.create(ask("chat", question, { stream: true, stream_options: { include_usage: true } })));
  },
  async prompt(prompt) {
    const { data, response } = await client.completions.create({ model: "chat", prompt }).withResponse();
    return { reply: data, mode: response.headers.get("x-gkt-mode") };
  },
  async prompt_streamed(prompt) {
    const seen = { text: "", finishes: [] };
    const asked = { model: "chat", prompt, stream: true, stream_options: { include_usage: true } };
    for await (const chunk of await client.completions.create(asked)) {
      for (const choice of chunk.choices) {
        seen.text += choice.text;
        if (choice.finish_reason) seen.finishes.push(choice.finish_reason);
      }
      seen.last = chunk;
    }
    return seen;
  },
  async vector(input) {
    return (await client.embeddings.create({ model: "vectors", input })).data[0].embedding;
  },
  async stream_helper(question) {
    const deltas = [];
    const stream = chat.stream(ask("chat", question)).on("content", (delta) => deltas.push(delta));
    return { final: await stream.finalChatCompletion(), deltas };
  },
  async tools(question) {
    return (await chat.create(ask("tools", question, { tools: [weather] }))).choices[0];
  },
  async tools_streamed(question) {
    return (await chat.stream(ask("tools", question, { tools: [weather] })).finalChatCompletion()).choices[0];
  },
  async tools_run(question) {
    const told = [];
    const tool = { ...weather.function, parse: JSON.parse, function: (args) => (told.push(args), "sunny") };
    const runner = chat.runTools(ask("tools", question, { tools: [{ type: "function", function: tool }] }));
    return { content: await runner.finalContent(), told };
  },
  async parse(question) {
    const reply = await chat.parse(ask("person", question, { response_format: zodResponseFormat(Person, "person") }));
    return reply.choices[0].message.parsed;
  },
  async models() {
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    return names;
  },
  async busy_twice(question) {
    return (await chat.create(ask("busy-twice", question))).choices[0].message.content;
  },
  async no_retries(question) {
    return chat.create(ask("busy", question), { maxRetries: 0 });
  },
  async impatient(question) {
    return chat.create(ask("slow", question), { timeout: 1000, maxRetries: 1 });
  },
  async breaks(question) {
    return collect(await chat.create(ask("breaks", question, { stream: true })));
  },
  async ends_early(question) {
    return collect(await chat.create(ask("ends-early", question, { stream: true })));
  },
  async wire_cut(question) {
    return collect(await chat.create(ask("wire-cut", question, { stream: true })));
  },
  async helper_breaks(question) {
    return chat.stream(ask("breaks", question)).finalChatCompletion();
  },
};

async function refuse({ model, key, temperature, max_retries, question }) {
  const options = { baseURL: plan.base_url, apiKey: key };
  const caller = new OpenAI(max_retries === null ? options : { ...options, maxRetries: max_retries });
  return caller.chat.completions.create(ask(model, question, temperature === null ? {} : { temperature }));
}

await play(plan, scenarios, refuse, describe);
