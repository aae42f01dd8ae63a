// What pages ask the gateway for. A session that has ended leads to the login page, with a line that says so.

/** What went wrong, in a sentence for whoever looks at the page. */
export class Refused extends Error {
  constructor(message, status, code, id = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.id = id; // of the request
  }
}

const LIMIT_MS = 15_000;
const leaving = new AbortController(); // a logout cancels all other requests: they would be answered with 401
document.addEventListener("leaving", () => leaving.abort());

function toLogin(why) {
  const here = location.pathname + location.search + location.hash;
  location.assign(`/login?${new URLSearchParams({ why, next: here })}`);
}

/**
 * The reply of a request to this listener, whatever its kind. Raises Refused. `signal` may end it; `also` are statuses
 * that are no errors here.
 */
export async function ask(path, { method = "GET", body, signal, limitMs = LIMIT_MS, also = [] } = {}) {
  const signals = [signal, limitMs ? AbortSignal.timeout(limitMs) : null, path === "/session" ? null : leaving.signal].filter(Boolean);
  let reply;
  try {
    reply = await fetch(path, {
      method,
      signal: AbortSignal.any(signals),
      credentials: "same-origin",
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (signal?.aborted || leaving.signal.aborted) throw error;
    throw new Refused("The gateway does not answer. It may have stopped, or be out of reach.", 0, "unreachable");
  }
  if (reply.ok || also.includes(reply.status)) return reply;
  let said = {};
  try {
    said = (await reply.json()).error ?? {};
  } catch {
    // Not one of the gateway's own errors: the status has to do.
  }
  if (reply.status === 401 && path !== "/session") toLogin("ended");
  if (said.code === "admin_key_unset") toLogin("unset");
  throw new Refused(said.message ?? `The gateway answered ${reply.status}.`, reply.status, said.code, reply.headers.get("x-request-id"));
}

/** The reply as JSON. Raises Refused. */
export async function fetchJson(path, options) {
  const reply = await ask(path, options);
  try {
    return await reply.json();
  } catch (error) {
    if (options?.signal?.aborted) throw error;
    throw new Refused("The gateway's answer broke off, or is none of its own.", reply.status, "unreadable", reply.headers.get("x-request-id"));
  }
}
