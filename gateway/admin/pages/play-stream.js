// One run, as a stream of named events.
import { ask } from "./api.js";

/** Start a run. Return its id and an iterator of [name, data]; the names are "chunk", "error" and "receipt". */
export async function start(body, signal) {
  const reply = await ask("/playground/run", { method: "POST", body, signal, limitMs: 0 });
  return { id: reply.headers.get("x-request-id"), events: events(reply.body) };
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const read = readEvent(part);
      if (read) yield read;
    }
  }
}

function readEvent(part) {
  let name = "chunk";
  let data = "";
  for (const line of part.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    else if (line.startsWith("data: ")) data += line.slice(6);
  }
  if (!data || data === "[DONE]") return null;
  const event = JSON.parse(data);
  return event.error ? ["error", event.error] : [name, event];
}
