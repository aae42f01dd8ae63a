// The page, the time range and the filter. The URL holds them, so that reloads and links keep them.
import { signal } from "./api.js";
import { monthOf, utc } from "./format.js";

const HOUR = 3_600_000;
const DAY = 24 * HOUR;
export const STEP = { minute: 60_000, hour: HOUR, day: DAY };
/** Ranges: name in the URL, title of the button, words in a sentence, length in milliseconds. */
export const RANGES = [
  ["1h", "1 h", "Last hour", HOUR],
  ["24h", "24 h", "Last 24 hours", DAY],
  ["7d", "7 d", "Last 7 days", 7 * DAY],
  ["30d", "30 d", "Last 30 days", 30 * DAY],
  ["month", "Month", "This month", null],
];
export const FILTERS = ["tenant", "route", "key"];
const SHARED = ["range", "since", "until", ...FILTERS, "label"]; // parameters that all pages keep

const here = signal(location.href);
addEventListener("popstate", () => here.set(location.href));

/** Return the parameters of the URL, and redraw the component when they change. */
export function useUrl() {
  const url = new URL(here.use());
  return { path: url.pathname, parameters: url.searchParams, search: url.search };
}

/** Return the path with the shared parameters and `more`. */
export function link(path, more = {}) {
  const old = new URLSearchParams(location.search);
  const kept = SHARED.filter((name) => old.has(name)).map((name) => [name, old.get(name)]);
  const query = new URLSearchParams(Object.entries({ ...Object.fromEntries(kept), ...more }).filter(([, value]) => value));
  return query.size ? `${path}?${query}` : path;
}

export function go(url, { replace = false } = {}) {
  history[replace ? "replaceState" : "pushState"](null, "", url);
  here.set(location.href);
}

/** Change parameters of the URL; an empty value removes one. The list of requests begins with the newest again. */
export function setParameters(changes) {
  const query = new URLSearchParams(location.search);
  query.delete("before");
  for (const [name, value] of Object.entries(changes)) {
    if (value) query.set(name, value);
    else query.delete(name);
  }
  go(query.size ? `${location.pathname}?${query}` : location.pathname, { replace: true });
}

/** Return the finest granularity whose sums are kept by default, if the range has few enough periods. */
function granularityOf(since, until, now) {
  if (until - since <= 6 * HOUR && now - since <= 6 * HOUR) return "minute";
  return until - since <= 7 * DAY && now - since <= 14 * DAY ? "hour" : "day";
}

/** Return why the range of the URL is not valid. */
function reasonOf(named, from, to) {
  if (named !== "custom") return `There is no range "${named}".`;
  if (Number.isNaN(from) || Number.isNaN(to)) return "A custom range needs 'since' and 'until' as times such as 2026-11-01T00:00:00Z.";
  return from >= to ? "'since' must be earlier than 'until'." : "'since' is in the future.";
}

/** Return the selected range: bounds in milliseconds, granularity, words for a sentence, and the problem of an invalid one. */
export function period(now = Date.now()) {
  const parameters = new URLSearchParams(location.search);
  const [from, to] = ["since", "until"].map((one) => Date.parse(parameters.get(one) ?? ""));
  const named = parameters.get("range");
  if (named === "custom" && from < to && from < now) {
    return { name: "custom", since: from, until: to, granularity: granularityOf(from, to, now), words: `${utc(from)} to ${utc(to)}` };
  }
  const known = RANGES.find(([one]) => one === named);
  const [name, , words, length] = known ?? RANGES.at(-1);
  const today = new Date(now);
  const since = length ? now - length : Date.UTC(today.getUTCFullYear(), today.getUTCMonth());
  const problem = !known && named ? `The address has no valid time range, so this month is shown. ${reasonOf(named, from, to)}` : null;
  return { name, since, until: now, granularity: granularityOf(since, now, now), words: length ? words : monthOf(now), problem };
}

export const rfc3339 = (ms) => new Date(ms).toISOString().replace(/\.\d+Z$/, "Z");

/** Return the path of a data route with the selected filter and `more`; with the range, too, unless `timeless`. */
export function api(path, more = {}, { timeless = false, only = FILTERS } = {}) {
  const parameters = new URLSearchParams(location.search);
  const { name, since, until } = period();
  const query = new URLSearchParams(timeless ? {} : { since: rfc3339(since) });
  if (!timeless && name === "custom") query.set("until", rfc3339(until));
  for (const name of only) if (parameters.get(name)) query.set(name, parameters.get(name));
  for (const [name, value] of Object.entries(more)) if (value) query.set(name, value);
  return `${path}?${query}`;
}

/** Return the filter by label as [name, value]. The value is empty until it is chosen. */
export function labelFilter() {
  const [name, ...value] = (new URLSearchParams(location.search).get("label") ?? "").split("=");
  return [name, value.join("=")];
}

/** Return the parameter of the filter by label for data routes that have it. */
export const labelParameter = () => (labelFilter()[1] ? { label: labelFilter().join("=") } : {});

/** Return the start of each period of a range in milliseconds, also of periods without requests. */
export function periodsOf({ since, until, granularity }) {
  const step = STEP[granularity];
  const all = [];
  for (let start = Math.floor(since / step) * step; start < until && all.length < 2000; start += step) all.push(start);
  return all;
}
