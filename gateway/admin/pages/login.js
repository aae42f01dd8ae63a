import { byId } from "./dom.js";
import { ask, fetchJson } from "./fetching.js";
import { say } from "./status.js";

const WHY = {
  ended: ["Your session has ended. Log in again.", "warn"],
  left: ["You are logged out.", "info"],
};

const asked = new URLSearchParams(location.search);

const PAGES = ["/dashboard", "/playground"];

/** Where to go on: one of the pages, whatever the address says. A path of this host may still lead elsewhere: //example.com. */
function next() {
  const named = asked.get("next") ?? "";
  if (!URL.canParse(named, location.origin)) return PAGES[0];
  const wanted = new URL(named, location.origin);
  if (wanted.origin !== location.origin || !PAGES.includes(wanted.pathname)) return PAGES[0];
  return wanted.pathname + wanted.search + (wanted.hash || location.hash); // a redirect keeps the fragment in this address
}

const form = byId("login");
const key = byId("key");
const button = form.querySelector("button");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  button.disabled = true;
  say("");
  try {
    await ask("/session", { method: "POST", body: { key: key.value } });
    key.value = "";
    location.replace(next());
  } catch (error) {
    say(error.message, "bad");
    key.setAttribute("aria-invalid", "true");
    key.select();
    key.focus();
  } finally {
    button.disabled = false;
  }
});
// The button is disabled in login.html: without the listener above, the browser would send the form itself, and
// POST /session takes JSON only.
button.disabled = false;

const [words, kind] = WHY[asked.get("why")] ?? ["", "info"];
say(words, kind);
try {
  const session = await fetchJson("/session");
  if (!session.key_set) {
    form.hidden = true;
    byId("unset").hidden = false;
  } else if (session.active) location.replace(next());
  else key.focus();
} catch (error) {
  say(error.message, "bad");
}
