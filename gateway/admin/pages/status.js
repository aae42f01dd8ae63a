// The status line of a page. Screen readers announce it. A message is removed when its problem ends.
import { byId } from "./dom.js";

const messages = new Map();

/** Show a message; an empty text removes it. `about` identifies the problem, since several may exist at a time. */
export function say(text, kind = "warn", about = "page") {
  if (text) messages.set(about, { text, kind });
  else messages.delete(about);
  const line = byId("status");
  const all = [...messages.values()];
  const joined = [...new Set(all.map((one) => one.text))].join(" "); // each text once
  if (line.textContent !== joined) line.textContent = joined;
  line.hidden = all.length === 0;
  line.dataset.kind = all.some((one) => one.kind === "bad") ? "bad" : all.some((one) => one.kind === "warn") ? "warn" : "info";
}
