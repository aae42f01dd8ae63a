// The time range of charts and tables. The URL contains it, so that a reload keeps it.
import { h } from "./dom.js";
import { moment } from "./format.js";

const HOUR = 3_600_000;
const DAY = 24 * HOUR;
const RANGES = [
  ["1h", "1 h", HOUR, "minute"],
  ["6h", "6 h", 6 * HOUR, "minute"],
  ["24h", "24 h", DAY, "hour"],
  ["7d", "7 d", 7 * DAY, "hour"],
  ["30d", "30 d", 30 * DAY, "day"],
];
const WORDS = { "1h": "the last hour", "6h": "the last 6 hours", "24h": "the last 24 hours", "7d": "the last 7 days", "30d": "the last 30 days" };
const LENGTH = { minute: 60_000, hour: HOUR, day: DAY };

/** Return the finest granularity for which sums are kept by default and the range has few enough periods. */
function granularityOf(since, until) {
  if (until - since <= 6 * HOUR && Date.now() - since <= 6 * HOUR) return "minute";
  return until - since <= 7 * DAY && Date.now() - since <= 14 * DAY ? "hour" : "day";
}

const rfc3339 = (ms) => new Date(ms).toISOString().replace(/\.\d+Z$/, "Z");
const localText = (ms) => new Date(ms - new Date(ms).getTimezoneOffset() * 60_000).toISOString().slice(0, 16);

/** Create the range buttons in `box`; call `changed` after each choice. Return a function that returns the range. */
export function ranges(box, changed) {
  const parameters = new URLSearchParams(location.search);
  let name = RANGES.some(([one]) => one === parameters.get("range")) ? parameters.get("range") : "24h";
  let own = null;
  const bounds = ["since", "until"].map((one) => Date.parse(parameters.get(one) ?? ""));
  if (parameters.get("range") === "custom" && bounds[0] < bounds[1]) [name, own] = ["custom", bounds];

  const buttons = RANGES.map(([one, title]) => h("button", { type: "button", "data-range": one, onclick: () => choose(one) }, title));
  const customButton = h("button", { type: "button", "data-range": "custom", "aria-expanded": "false", "aria-controls": "custom", onclick: openCustom }, "Custom");
  const since = h("input", { type: "datetime-local", id: "since", required: true });
  const until = h("input", { type: "datetime-local", id: "until", required: true });
  const problem = h("p", { class: "bad small", role: "alert" });
  const form = h("form", { class: "custom", id: "custom", hidden: true, novalidate: true, onsubmit: apply },
    h("label", {}, "From", since), h("label", {}, "To", until), h("button", { type: "submit", class: "primary" }, "Show"), problem);
  box.append(h("div", { class: "row segments", role: "group", "aria-label": "Time range" }, buttons, customButton), form);

  function mark() {
    for (const button of [...buttons, customButton]) button.setAttribute("aria-pressed", String(button.dataset.range === name));
  }

  function writeUrl() {
    const query = new URLSearchParams(location.search);
    query.set("range", name);
    for (const [index, key] of ["since", "until"].entries()) {
      if (own) query.set(key, rfc3339(own[index]));
      else query.delete(key);
    }
    history.replaceState(null, "", `?${query}`);
  }

  function choose(one, between = null) {
    [name, own] = [one, between];
    if (one !== "custom") show(false);
    mark();
    writeUrl();
    changed();
  }

  function show(open) {
    form.hidden = !open;
    customButton.setAttribute("aria-expanded", String(open));
  }

  function openCustom() {
    const range = current();
    since.value ||= localText(range.since);
    until.value ||= localText(range.until);
    show(form.hidden);
    if (!form.hidden) since.focus();
  }

  function apply(event) {
    event.preventDefault();
    const [from, to] = [Date.parse(since.value), Date.parse(until.value)];
    problem.textContent = Number.isNaN(from) || Number.isNaN(to) ? "Enter a date and a time in both fields." : from >= to ? "'From' must be earlier than 'To'." : from > Date.now() ? "'From' is in the future." : "";
    if (!problem.textContent) choose("custom", [from, to]);
  }

  function current() {
    if (own) {
      const [from, to] = own;
      return { since: from, until: to, granularity: granularityOf(from, to), words: `${moment(from)} to ${moment(to)}` };
    }
    const [, , length, granularity] = RANGES.find(([one]) => one === name);
    const end = Date.now();
    return { since: end - length, until: end, granularity, words: WORDS[name] };
  }

  mark();
  return current;
}

/** Return the start of every period of a range in milliseconds, also of periods without a request. */
export function periodsOf({ since, until, granularity }) {
  const step = LENGTH[granularity];
  const all = [];
  for (let start = Math.floor(since / step) * step; start < until && all.length < 2000; start += step) all.push(start);
  return all;
}

/** Return the query parameters of GET /usage for a range. */
export function query(range, more = {}) {
  return new URLSearchParams({ since: rfc3339(range.since), until: rfc3339(range.until), ...more });
}
