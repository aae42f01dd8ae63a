// Requests to the gateway, and polling. After a session ended, the login page opens and shows the reason.
import { useCallback, useEffect, useLayoutEffect, useReducer, useRef, useState } from "./vendor/hooks.js";

/** A failed request. `message` is shown on the page. */
export class RequestError extends Error {
  constructor(message, status, code, id = null) {
    super(message);
    Object.assign(this, { status, code, id }); // the id of the request
  }
}

const LIMIT_MS = 15_000;
const leaving = new AbortController(); // a logout cancels all other requests, because they would fail with 401
document.addEventListener("leaving", () => leaving.abort());

function toLogin(why) {
  const here = location.pathname + location.search + location.hash;
  location.assign(`/login?${new URLSearchParams({ why, next: here })}`);
}

/** Send a request and return the response. `also` lists statuses that are no errors. Throws RequestError. */
export async function ask(path, { method = "GET", body, signal, limitMs = LIMIT_MS, also = [] } = {}) {
  const limit = limitMs ? AbortSignal.timeout(limitMs) : null;
  const signals = [signal, limit, path === "/session" ? null : leaving.signal].filter(Boolean);
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
    const slow = error.name === "TimeoutError";
    throw new RequestError(slow ? "The gateway's reply took too long." : "The gateway cannot be reached. Check that it is running and that the network works.", 0);
  }
  if (reply.ok || also.includes(reply.status)) return reply;
  const { error: problem = {} } = await reply.json().catch(() => ({})); // the body may have another format
  if (reply.status === 401 && path !== "/session") toLogin("ended");
  if (problem.code === "admin_key_unset") toLogin("unset");
  const message = problem.message ?? `The gateway returned status ${reply.status}.`;
  throw new RequestError(message, reply.status, problem.code, reply.headers.get("x-request-id"));
}

/** Send a request and return the body, parsed as JSON. Throws RequestError. */
export async function fetchJson(path, options) {
  const reply = await ask(path, options);
  try {
    return await reply.json();
  } catch (error) {
    if (options?.signal?.aborted) throw error;
    const slow = error.name === "TimeoutError";
    throw new RequestError(slow ? "The gateway's reply took too long." : "The gateway's reply is not valid JSON.", reply.status);
  }
}

/** Return a value that components read with `use()` and that redraws them when it is set. */
export function signal(value) {
  const listeners = new Set();
  return {
    get: () => value,
    set(next) {
      value = next;
      for (const redraw of [...listeners]) redraw();
    },
    use() {
      const [, redraw] = useReducer((count) => count + 1, 0);
      useLayoutEffect(() => {
        listeners.add(redraw);
        return () => listeners.delete(redraw);
      }, []);
      return value;
    },
  };
}

const RANKS = { viewer: 1, operator: 2, admin: 3 };
export const session = signal(null); // the reply of GET /session; null until it is there

/** Return whether the person who is logged in has a role. The gateway checks every request, too. */
export const may = (role) => (RANKS[session.get()?.role] ?? 0) >= RANKS[role];

export const paused = signal(false);
export const updatedAt = signal(null);
export const problems = signal(new Map()); // messages at the top of the page, by subject
let subjects = 0;

export function report(subject, message) {
  if ((problems.get().get(subject) ?? "") === message) return;
  const next = new Map(problems.get());
  if (message) next.set(subject, message);
  else next.delete(subject);
  problems.set(next);
}

/**
 * Fetch JSON, and again every `everyMs` while the page is visible and not paused. `path` is a function, called for each
 * request; it returns null if there is nothing to fetch. A change of `key` fetches at once and drops an earlier reply.
 * Return the last reply, the error of the last request, and a function that fetches at once.
 */
export function useData(path, key, { everyMs = 15_000, also = [] } = {}) {
  const [state, setState] = useState({ key, data: null, error: null });
  const subject = useRef((subjects += 1)).current;
  const latest = useRef(path);
  latest.current = path;
  const rerun = useRef(() => {});
  useEffect(() => {
    let [timer, failures, sent] = [0, 0, new AbortController()];
    const plan = (inMs) => {
      clearTimeout(timer);
      const idle = paused.get() || document.visibilityState !== "visible" || leaving.signal.aborted;
      if (!idle) timer = setTimeout(run, inMs);
    };
    async function run() {
      clearTimeout(timer);
      const url = latest.current();
      if (!url) return;
      sent.abort(); // an earlier reply must not replace a later one
      const { signal } = (sent = new AbortController());
      try {
        const data = await fetchJson(url, { also, signal });
        if (signal.aborted) return;
        failures = 0;
        setState({ key, data, error: null });
        updatedAt.set(Date.now());
        report(subject, "");
      } catch (error) {
        if (signal.aborted || leaving.signal.aborted) return;
        failures += 1;
        setState((before) => ({ key, data: before.key === key ? before.data : null, error }));
        report(subject, error.message);
      }
      plan(Math.min(60_000, everyMs * 2 ** Math.min(failures, 3)));
    }
    const resume = () => plan(0);
    rerun.current = run;
    document.addEventListener("visibilitychange", resume);
    document.addEventListener("pausechange", resume);
    run();
    return () => {
      sent.abort();
      clearTimeout(timer);
      report(subject, "");
      document.removeEventListener("visibilitychange", resume);
      document.removeEventListener("pausechange", resume);
    };
  }, [key]);
  const reload = useCallback(() => rerun.current(), []);
  return { data: state.key === key ? state.data : null, error: state.key === key ? state.error : null, reload };
}
