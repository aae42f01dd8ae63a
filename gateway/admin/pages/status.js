// The one line in which a page says what is the matter with it. It is read out, and it goes when the matter does.
import { byId } from "./dom.js";

const said = new Map();

/** Say something; an empty text takes it back. `about` tells apart what may be wrong at the same time. */
export function say(text, kind = "warn", about = "page") {
  if (text) said.set(about, { text, kind });
  else said.delete(about);
  const line = byId("status");
  const all = [...said.values()];
  const words = [...new Set(all.map((one) => one.text))].join(" "); // of many that fail alike, once
  if (line.textContent !== words) line.textContent = words;
  line.hidden = all.length === 0;
  line.dataset.kind = all.some((one) => one.kind === "bad") ? "bad" : all.some((one) => one.kind === "warn") ? "warn" : "info";
}
