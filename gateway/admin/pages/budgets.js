// The table of budgets: the part of each that is spent, and the part of its period that has elapsed.
import { burndown } from "./burndown.js";
import { h } from "./dom.js";
import { fetchJson } from "./fetching.js";
import { day, minuteOfDay, money, share } from "./format.js";
import { table } from "./table.js";

const LENGTH_MS = { h: 3_600_000, d: 86_400_000, w: 7 * 86_400_000 };
const MAX_PAGES = 4;

/** Return the start of the period in milliseconds; null for a sliding window. */
function startOf(budget) {
  const match = /^(\d+)(h|d|w|mo)$/.exec(budget.budget_duration);
  if (!budget.ends || !match) return null;
  const ends = Date.parse(budget.ends);
  if (match[2] !== "mo") return ends - Number(match[1]) * LENGTH_MS[match[2]];
  const start = new Date(ends);
  start.setUTCMonth(start.getUTCMonth() - Number(match[1]));
  return start.getTime();
}

const limitOf = (budget) => budget.max_budget + (budget.raise?.usd ?? 0);
const spent = (budget) => budget.spent_usd + budget.reserved_usd;
const part = (budget) => (limitOf(budget) > 0 ? spent(budget) / limitOf(budget) : null);

/** Return the elapsed part of the period, from 0 to 1; null if it is unknown. */
function elapsed(budget) {
  const start = startOf(budget);
  return start === null ? null : Math.min(1, Math.max(0, (Date.now() - start) / (Date.parse(budget.ends) - start)));
}

function forecast(budget) {
  if (budget.left_usd <= 0) return "used up";
  const [used, time] = [part(budget), elapsed(budget)];
  if (time === null || !used || time < 0.01) return "-";
  if (used <= time) return "lasts";
  const start = startOf(budget);
  const empty = start + ((Date.now() - start) * limitOf(budget)) / spent(budget);
  return `used up by ${day(empty)}, ${minuteOfDay(empty)}`;
}

function bar(budget) {
  const [used, time] = [part(budget) ?? 0, elapsed(budget)];
  const kind = used >= 1 ? "bad" : budget.soft_budget && budget.spent_usd >= budget.soft_budget ? "warn" : "";
  const fill = h("i");
  fill.style.width = `${Math.min(100, 100 * used)}%`;
  const all = h("span", { class: "burn", "data-kind": kind, role: "img", "aria-label": `${share(used)} spent${time === null ? "" : `, ${share(time)} of the period elapsed`}` }, fill);
  if (time !== null) {
    const now = h("b");
    now.style.left = `calc(${100 * time}% - 1px)`;
    all.append(now);
  }
  all.style.display = "inline-block";
  return all;
}

const number = (key, title, value, show = money) => ({ key, title, number: true, value, show: (row) => show(value(row)) });

export function budgets(box) {
  const view = table(box, {
    caption: "Budgets: the bar shows the spent and reserved part, the line in it the elapsed part of the period",
    search: "Search budgets", sort: "part", empty: "No tenant and no key has a budget.",
    find: (row) => `${row.tenant} ${row.key ?? ""}`,
    columns: [
      { key: "tenant", title: "Tenant", value: (row) => row.tenant, show: (row) => h("button", { type: "button", class: "link", "aria-haspopup": "dialog", onclick: () => burndown(row, startOf(row), limitOf(row)) }, row.tenant) },
      { key: "key", title: "Key", value: (row) => row.key ?? "", show: (row) => row.key ?? "all" },
      { key: "part", title: "Burn-down", number: false, value: (row) => part(row), show: bar },
      number("used", "Used", part, (value) => share(value)),
      number("spent", "Spent", (row) => row.spent_usd),
      number("left", "Left", (row) => row.left_usd),
      number("max", "Budget", limitOf),
      { key: "until", title: "Period ends", value: (row) => Date.parse(row.ends ?? "") || null, show: (row) => (row.ends ? `${day(row.ends)}, ${minuteOfDay(row.ends)}` : `sliding, ${row.budget_duration}`) },
      { key: "forecast", title: "At this rate", value: (row) => forecast(row), show: (row) => forecast(row) },
    ],
  });
  const more = h("p", { class: "soft small", hidden: true }, `Only the first ${MAX_PAGES * 500} budgets are shown. The command gkt-gateway budgets lists all.`);
  box.append(more);
  return async () => {
    const all = [];
    let after = null;
    for (let page = 0; page < MAX_PAGES; page += 1) {
      const reply = await fetchJson(`/budgets?${new URLSearchParams({ limit: 500, ...(after ? { after } : {}) })}`);
      all.push(...reply.budgets);
      after = reply.next;
      if (!after) break;
    }
    more.hidden = !after;
    view.rows(all);
  };
}
