import { byId } from "./dom.js";
import { ask, fetchJson } from "./fetching.js";
import { say } from "./status.js";

const WHY = {
  ended: ["Your session has ended. Log in again.", "warn"],
  left: ["You are logged out.", "info"],
};

const parameters = new URLSearchParams(location.search);

const PAGES = ["/dashboard", "/playground"];

/** Return the page to open after the login. Only PAGES are allowed: a path such as //example.com is another site. */
function nextPage() {
  const value = parameters.get("next") ?? "";
  if (!URL.canParse(value, location.origin)) return PAGES[0];
  const target = new URL(value, location.origin);
  if (target.origin !== location.origin || !PAGES.includes(target.pathname)) return PAGES[0];
  return target.pathname + target.search + (target.hash || location.hash); // a redirect keeps the fragment
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
    location.replace(nextPage());
  } catch (error) {
    say(error.message, "bad");
    key.setAttribute("aria-invalid", "true");
    key.select();
    key.focus();
  } finally {
    button.disabled = false;
  }
});
// login.html disables the button, because without this listener the browser would send the form, and POST /session
// accepts only JSON.
button.disabled = false;

const [text, kind] = WHY[parameters.get("why")] ?? ["", "info"];
say(text, kind);
try {
  const session = await fetchJson("/session");
  if (!session.key_set) {
    form.hidden = true;
    byId("unset").hidden = false;
  } else if (session.active) location.replace(nextPage());
  else key.focus();
} catch (error) {
  say(error.message, "bad");
}
