// Stream a guided answer with the unmodified OpenAI client for Node.js.
//
//     npm install --no-save openai@6 && node examples/chat.mjs "Why is the sky blue?"
//
// GKT_URL and GKT_KEY set the gateway and the key. The defaults are those of `scripts/demo`.
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: process.env.GKT_URL ?? "http://127.0.0.1:8080/v1",
  apiKey: process.env.GKT_KEY ?? "gk-demo",
});
const question = process.argv.slice(2).join(" ") || "Why is the sky blue?";

const stream = await client.chat.completions.create({
  model: "chat", // a route of the policy, not a model
  messages: [{ role: "user", content: question }],
  max_tokens: 120,
  stream: true,
  stream_options: { include_usage: true },
});
let facts;
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta.content ?? "");
  facts = chunk.gkt ?? facts; // fields outside of OpenAI's types are passed through
}
console.log();
console.log(facts.mode, "for", facts.cost_usd ?? "a cost that is not shown");
