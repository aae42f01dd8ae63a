import { ask, fetchJson } from "./api.js";

const byId = (id) => document.getElementById(id);

function say(text, kind) {
  Object.assign(byId("status"), { textContent: text, hidden: !text });
  byId("status").dataset.kind = kind;
}

const WHY = {
  ended: ["Your session has ended. Log in again.", "warn"],
  left: ["You are logged out.", "info"],
};

const parameters = new URLSearchParams(location.search);

const PAGE = /^\/(playground|dashboard(\/[\w%.-]+){0,2})$/;

/** Return the page to open after the login. Only pages are allowed: a path such as //example.com is another site. */
function nextPage() {
  const value = parameters.get("next") ?? "";
  const target = URL.canParse(value, location.origin) ? new URL(value, location.origin) : null;
  if (target?.origin !== location.origin || !PAGE.test(target.pathname)) return "/dashboard";
  return target.pathname + target.search + (target.hash || location.hash); // a redirect keeps the fragment
}

const form = byId("login");
const key = byId("key");
const button = form.querySelector("button");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  button.disabled = true;
  say("", "info");
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
