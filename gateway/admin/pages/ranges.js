// Which time the charts and tables are of. It stands in the address, so that it outlives a reload.
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

/** As fine as the range bears, and as sums that fine are kept by default. */
function fineness(since, until) {
  if (until - since <= 6 * HOUR && Date.now() - since <= 6 * HOUR) return "minute";
  return until - since <= 7 * DAY && Date.now() - since <= 14 * DAY ? "hour" : "day";
}

const rfc3339 = (ms) => new Date(ms).toISOString().replace(/\.\d+Z$/, "Z");
const localText = (ms) => new Date(ms - new Date(ms).getTimezoneOffset() * 60_000).toISOString().slice(0, 16);

/** Draw the choice into `box`; `changed` is called with each choice. Returns a function that tells the choice. */
export function ranges(box, changed) {
  const asked = new URLSearchParams(location.search);
  let name = RANGES.some(([one]) => one === asked.get("range")) ? asked.get("range") : "24h";
  let own = null;
  const given = ["since", "until"].map((one) => Date.parse(asked.get(one) ?? ""));
  if (asked.get("range") === "custom" && given[0] < given[1]) [name, own] = ["custom", given];

  const buttons = RANGES.map(([one, title]) => h("button", { type: "button", "data-range": one, onclick: () => choose(one) }, title));
  const customButton = h("button", { type: "button", "data-range": "custom", "aria-expanded": "false", "aria-controls": "custom", onclick: openCustom }, "Custom");
  const since = h("input", { type: "datetime-local", id: "since", required: true });
  const until = h("input", { type: "datetime-local", id: "until", required: true });
  const wrong = h("p", { class: "bad small", role: "alert" });
  const form = h("form", { class: "custom", id: "custom", hidden: true, novalidate: true, onsubmit: apply },
    h("label", {}, "From", since), h("label", {}, "To", until), h("button", { type: "submit", class: "primary" }, "Show"), wrong);
  box.append(h("div", { class: "row segments", role: "group", "aria-label": "Time range" }, buttons, customButton), form);

  function mark() {
    for (const button of [...buttons, customButton]) button.setAttribute("aria-pressed", String(button.dataset.range === name));
  }

  function keep() {
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
    keep();
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
    wrong.textContent = Number.isNaN(from) || Number.isNaN(to) ? "Give both a day and a time." : from >= to ? "From must lie before to." : from > Date.now() ? "From lies in the future." : "";
    if (!wrong.textContent) choose("custom", [from, to]);
  }

  function current() {
    if (own) {
      const [from, to] = own;
      return { since: from, until: to, granularity: fineness(from, to), words: `${moment(from)} to ${moment(to)}` };
    }
    const [, , length, granularity] = RANGES.find(([one]) => one === name);
    const end = Date.now();
    return { since: end - length, until: end, granularity, words: WORDS[name] };
  }

  mark();
  return current;
}

/** Every period of a range, in milliseconds, also those of which nothing is known. */
export function periodsOf({ since, until, granularity }) {
  const step = LENGTH[granularity];
  const all = [];
  for (let start = Math.floor(since / step) * step; start < until && all.length < 2000; start += step) all.push(start);
  return all;
}

/** The query of GET /usage for a range. */
export function query(range, more = {}) {
  return new URLSearchParams({ since: rfc3339(range.since), until: rfc3339(range.until), ...more });
}
