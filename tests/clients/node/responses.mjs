// The unmodified `openai` package for Node.js with the Responses API: what it makes of each scenario.
import OpenAI from "openai";
import { zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

import { play, readPlan } from "./play.mjs";

const plan = await readPlan();
const client = new OpenAI({ baseURL: plan.base_url, apiKey: plan.key });
const weather = {
  type: "function",
  name: "weather",
  parameters: { type: "object", properties: { city: { type: "string" } } },
  strict: false,
};
const Person = z.object({ name: z.string(), born: z.number() });

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
  const seen = { text: "", types: [], numbers: [], broke: null, last: null };
  try {
    for await (const event of stream) {
      if (event.type === "response.output_text.delta") seen.text += event.delta;
      if (event.type !== seen.types.at(-1)) seen.types.push(event.type);
      seen.numbers.push(event.sequence_number);
      seen.last = event;
    }
  } catch (error) {
    seen.broke = describe(error);
  }
  return seen;
}

const scenarios = {
  async answer(input) {
    const { data, response, request_id } = await client.responses.create({ model: "chat", input }).withResponse();
    return { reply: data, mode: response.headers.get("x-gkt-mode"), request_id };
  },
  async stream(input) {
    return collect(await client.responses.create({ model: "chat", input, stream: true }));
  },
  async stream_helper(input) {
    const deltas = [];
    const stream = client.responses.stream({ model: "chat", input });
    stream.on("response.output_text.delta", ({ delta }) => deltas.push(delta));
    return { final: await stream.finalResponse(), deltas };
  },
  async tools(input) {
    const called = await client.responses.create({ model: "tools", input, tools: [weather] });
    const call = called.output[0];
    const result = { type: "function_call_output", call_id: call.call_id, output: "sunny" };
    const history = [{ role: "user", content: input }, ...called.output, result];
    const answer = await client.responses.create({ model: "tools", input: history, tools: [weather] });
    return { call, text: answer.output_text };
  },
  async tools_streamed(input) {
    return (await client.responses.stream({ model: "tools", input, tools: [weather] }).finalResponse()).output[0];
  },
  async parse(input) {
    const text = { format: zodTextFormat(Person, "person") };
    return (await client.responses.parse({ model: "person", input, text })).output_parsed;
  },
  async busy_twice(input) {
    return (await client.responses.create({ model: "busy-twice", input })).output_text;
  },
  async no_retries(input) {
    return client.responses.create({ model: "busy", input }, { maxRetries: 0 });
  },
  async impatient(input) {
    return client.responses.create({ model: "slow", input }, { timeout: 1000, maxRetries: 1 });
  },
  async aborted(input) {
    const stream = await client.responses.create({ model: "gradual", input, stream: true });
    for await (const event of stream) if (event.type === "response.output_text.delta") stream.controller.abort();
    return stream.controller.signal.aborted;
  },
  async breaks(input) {
    return collect(await client.responses.create({ model: "breaks", input, stream: true }));
  },
  async ends_early(input) {
    return collect(await client.responses.create({ model: "ends-early", input, stream: true }));
  },
  async wire_cut(input) {
    return collect(await client.responses.create({ model: "wire-cut", input, stream: true }));
  },
};

async function refuse({ model, key, temperature, max_retries, question }) {
  const options = { baseURL: plan.base_url, apiKey: key };
  const caller = new OpenAI(max_retries === null ? options : { ...options, maxRetries: max_retries });
  return caller.responses.create({ model, input: question, ...(temperature === null ? {} : { temperature }) });
}

await play(plan, scenarios, refuse, describe);
