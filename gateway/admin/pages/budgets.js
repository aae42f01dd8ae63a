// Budgets and how they burn down: what is spent of each, beside how much of its time is past.
import { burndown } from "./burndown.js";
import { h } from "./dom.js";
import { fetchJson } from "./fetching.js";
import { day, minuteOfDay, money, share } from "./format.js";
import { table } from "./table.js";

const LENGTH_MS = { h: 3_600_000, d: 86_400_000, w: 7 * 86_400_000 };
const MOST_PAGES = 4;

/** When the period began, in milliseconds; null where it has no fixed beginning. */
function began(budget) {
  const found = /^(\d+)(h|d|w|mo)$/.exec(budget.budget_duration);
  if (!budget.ends || !found) return null;
  const ends = Date.parse(budget.ends);
  if (found[2] !== "mo") return ends - Number(found[1]) * LENGTH_MS[found[2]];
  const start = new Date(ends);
  start.setUTCMonth(start.getUTCMonth() - Number(found[1]));
  return start.getTime();
}

const most = (budget) => budget.max_budget + (budget.raise?.usd ?? 0);
const spent = (budget) => budget.spent_usd + budget.reserved_usd;
const part = (budget) => (most(budget) > 0 ? spent(budget) / most(budget) : null);

/** How much of the period is past, from 0 to 1; null where that is not known. */
function past(budget) {
  const start = began(budget);
  return start === null ? null : Math.min(1, Math.max(0, (Date.now() - start) / (Date.parse(budget.ends) - start)));
}

function forecast(budget) {
  if (budget.left_usd <= 0) return "spent";
  const [done, time] = [part(budget), past(budget)];
  if (time === null || !done || time < 0.01) return "-";
  if (done <= time) return "lasts";
  const start = began(budget);
  const empty = start + ((Date.now() - start) * most(budget)) / spent(budget);
  return `spent by ${day(empty)}, ${minuteOfDay(empty)}`;
}

function bar(budget) {
  const [done, time] = [part(budget) ?? 0, past(budget)];
  const kind = done >= 1 ? "bad" : budget.soft_budget && budget.spent_usd >= budget.soft_budget ? "warn" : "";
  const fill = h("i");
  fill.style.width = `${Math.min(100, 100 * done)}%`;
  const all = h("span", { class: "burn", "data-kind": kind, role: "img", "aria-label": `${share(done)} spent${time === null ? "" : `, ${share(time)} of the time past`}` }, fill);
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
    caption: "Budgets: the bar is what is spent and reserved, the line in it how much of the period is past",
    search: "Search budgets", sort: "part", empty: "No tenant and no key has a budget.",
    find: (row) => `${row.tenant} ${row.key ?? ""}`,
    columns: [
      { key: "tenant", title: "Tenant", value: (row) => row.tenant, show: (row) => h("button", { type: "button", class: "link", "aria-haspopup": "dialog", onclick: () => burndown(row, began(row), most(row)) }, row.tenant) },
      { key: "key", title: "Key", value: (row) => row.key ?? "", show: (row) => row.key ?? "all" },
      { key: "part", title: "Burn-down", number: false, value: (row) => part(row), show: bar },
      number("used", "Used", part, (value) => share(value)),
      number("spent", "Spent", (row) => row.spent_usd),
      number("left", "Left", (row) => row.left_usd),
      number("max", "Budget", most),
      { key: "until", title: "Period ends", value: (row) => Date.parse(row.ends ?? "") || null, show: (row) => (row.ends ? `${day(row.ends)}, ${minuteOfDay(row.ends)}` : `${row.budget_duration} just past`) },
      { key: "forecast", title: "At this pace", value: (row) => forecast(row), show: (row) => forecast(row) },
    ],
  });
  const more = h("p", { class: "soft small", hidden: true }, `These are the first ${MOST_PAGES * 500}; gkt-gateway budgets lists all.`);
  box.append(more);
  return async () => {
    const all = [];
    let after = null;
    for (let page = 0; page < MOST_PAGES; page += 1) {
      const reply = await fetchJson(`/budgets?${new URLSearchParams({ limit: 500, ...(after ? { after } : {}) })}`);
      all.push(...reply.budgets);
      after = reply.next;
      if (!after) break;
    }
    more.hidden = !after;
    view.rows(all);
  };
}
