import { ask, fetchJson } from "./api.js";

const byId = (id) => document.getElementById(id);

function say(text, kind) {
  Object.assign(byId("status"), { textContent: text, hidden: !text });
  byId("status").dataset.kind = kind;
}

const RETRY = "Log in again.";
const WHY = {
  ended: ["Your session has ended. Log in again.", "warn"],
  left: ["You are logged out.", "info"],
  // Results of a login at the identity provider (gateway/admin/oidc.py).
  done: ["The login worked, but this browser did not keep the session cookie. Use the address in admin.oidc.public_url, and allow cookies for it.", "bad"],
  expired: [`The login took more than ten minutes, or another one was started in this browser. ${RETRY}`, "warn"],
  refused: ["The identity provider did not log you in. Try again, or ask its administrators for access to this gateway.", "bad"],
  unreachable: ["The identity provider cannot be reached. Try again later, or use the admin key. The log of the gateway has the reason.", "bad"],
  invalid: ["The identity provider's reply was not accepted. The log of the gateway has the reason.", "bad"],
  no_role: ["Your account is valid, but it has no role in this gateway. Ask the gateway's operators for one (admin.oidc.roles), or use another account.", "bad"],
  busy: ["Too many logins at the moment. Wait a few seconds, and log in again.", "warn"],
};

const parameters = new URLSearchParams(location.search);

const PAGE = /^\/(playground|dashboard(\/[\w%.-]+){0,2})\/?$/;

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

const why = parameters.get("why");
const [text, kind] = WHY[why] ?? ["", "info"];
// After a login at the identity provider, the session opens the page at once. The browser sends a SameSite=Strict cookie
// with requests of this page, but not with a redirect from another site.
if (why !== "done") say(text, kind);
else form.hidden = true;
try {
  const session = await fetchJson("/session");
  if (session.active) location.replace(nextPage());
  else {
    say(text, kind);
    const { oidc } = session;
    form.hidden = !session.key_set;
    byId("unset").hidden = session.key_set || oidc !== null;
    byId("oidc").hidden = oidc === null;
    if (oidc) {
      const again = why === "no_role" ? { again: "1" } : {}; // the provider would return the same account at once
      const link = byId("oidc").firstElementChild;
      link.href = `${oidc.url}?${new URLSearchParams({ next: nextPage(), ...again })}`;
      link.textContent = `Log in with ${oidc.name}`;
      link.focus();
    } else key.focus();
  }
} catch (error) {
  say(error.message, "bad");
}
