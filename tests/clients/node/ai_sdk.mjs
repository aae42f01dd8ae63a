// The unmodified AI SDK with its OpenAI provider's default, the Responses API: what it makes of each scenario.
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, isStepCount, Output, RetryError, streamText, tool } from "ai";
import { z } from "zod";

import { play, readPlan } from "./play.mjs";

const plan = await readPlan();
const openai = createOpenAI({ baseURL: plan.base_url, apiKey: plan.key });
const Person = z.object({ name: z.string(), born: z.number() });
const weather = tool({
  description: "The weather in a city.",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `sunny in ${city}`,
});

// The SDK wraps the error of the last attempt in a RetryError.
const describe = (thrown) => {
  const error = RetryError.isInstance(thrown) ? thrown.lastError : thrown;
  return {
    raised: error.name,
    retried: RetryError.isInstance(thrown),
    status: error.statusCode ?? null,
    code: error.data?.error?.code ?? null,
    param: error.data?.error?.param ?? null,
    message: error.message,
  };
};

// What came of a stream, also of one that broke.
async function collect(result) {
  const seen = { texts: [], types: [], finish: null, broke: null };
  try {
    for await (const part of result.stream) {
      if (part.type === "text-delta") seen.texts.push(part.text);
      if (part.type === "error") seen.broke = describe(part.error);
      if (part.type === "finish") Object.assign(seen, { finish: part.finishReason, usage: part.totalUsage });
      if (part.type !== seen.types.at(-1)) seen.types.push(part.type);
    }
  } catch (error) {
    seen.broke = describe(error);
  }
  return seen;
}

const ask = (model, prompt, more = {}) => ({ model: openai(model), prompt, onError() {}, ...more });
const loop = { tools: { weather }, stopWhen: isStepCount(5) };

const scenarios = {
  async answer(prompt) {
    const { text, finishReason, usage, response } = await generateText(ask("chat", prompt));
    return { text, finish: finishReason, usage, id: response.id, mode: response.headers["x-gkt-mode"] };
  },
  async stream(prompt) {
    return collect(streamText(ask("chat", prompt)));
  },
  async tools(prompt) {
    const { text, steps } = await generateText(ask("tools", prompt, loop));
    return { text, calls: steps.flatMap((step) => step.toolCalls.map(({ toolName, input }) => ({ toolName, input }))) };
  },
  async tools_streamed(prompt) {
    return collect(streamText(ask("tools", prompt, loop)));
  },
  async structured(prompt) {
    return (await generateText(ask("person", prompt, { output: Output.object({ schema: Person }) }))).output;
  },
  async structured_streamed(prompt) {
    return await streamText(ask("person", prompt, { output: Output.object({ schema: Person }) })).output;
  },
  async busy_twice(prompt) {
    return (await generateText(ask("busy-twice", prompt))).text;
  },
  async no_retries(prompt) {
    return generateText(ask("busy", prompt, { maxRetries: 0 }));
  },
  async impatient(prompt) {
    return generateText(ask("slow", prompt, { abortSignal: AbortSignal.timeout(1000) }));
  },
  async aborted(prompt) {
    const controller = new AbortController();
    const seen = [];
    for await (const part of streamText(ask("gradual", prompt, { abortSignal: controller.signal })).stream) {
      seen.push(part.type);
      if (part.type === "text-delta") controller.abort();
    }
    return seen.at(-1);
  },
  async breaks(prompt) {
    return collect(streamText(ask("breaks", prompt)));
  },
  async ends_early(prompt) {
    return collect(streamText(ask("ends-early", prompt)));
  },
  async wire_cut(prompt) {
    return collect(streamText(ask("wire-cut", prompt)));
  },
};

async function refuse({ model, key, temperature, max_retries, question }) {
  const provider = createOpenAI({ baseURL: plan.base_url, apiKey: key });
  const more = { ...(temperature === null ? {} : { temperature }), ...(max_retries === null ? {} : { maxRetries: max_retries }) };
  return generateText({ model: provider(model), prompt: question, ...more });
}

await play(plan, scenarios, refuse, describe);
