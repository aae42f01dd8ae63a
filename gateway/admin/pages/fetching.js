// Requests of the pages to the gateway. After a session ended, the login page opens and shows the reason.

/** A failed request. `message` is shown on the page. */
export class RequestError extends Error {
  constructor(message, status, code, id = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.id = id; // of the request
  }
}

const LIMIT_MS = 15_000;
const leaving = new AbortController(); // a logout cancels all other requests, because they would fail with 401
document.addEventListener("leaving", () => leaving.abort());

function toLogin(why) {
  const here = location.pathname + location.search + location.hash;
  location.assign(`/login?${new URLSearchParams({ why, next: here })}`);
}

/**
 * Send a request to this listener and return the response. `signal` cancels it; `also` lists statuses that are no errors.
 * Throws RequestError.
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
    throw new RequestError("The gateway cannot be reached. Check that it is running and that the network works.", 0, "unreachable");
  }
  if (reply.ok || also.includes(reply.status)) return reply;
  let problem = {};
  try {
    problem = (await reply.json()).error ?? {};
  } catch {
    // The body is not in the gateway's error format.
  }
  if (reply.status === 401 && path !== "/session") toLogin("ended");
  if (problem.code === "admin_key_unset") toLogin("unset");
  throw new RequestError(problem.message ?? `The gateway returned status ${reply.status}.`, reply.status, problem.code, reply.headers.get("x-request-id"));
}

/** Send a request and return the body, parsed as JSON. Throws RequestError. */
export async function fetchJson(path, options) {
  const reply = await ask(path, options);
  try {
    return await reply.json();
  } catch (error) {
    if (options?.signal?.aborted) throw error;
    throw new RequestError("The gateway's reply is incomplete or not valid JSON.", reply.status, "unreadable", reply.headers.get("x-request-id"));
  }
}
