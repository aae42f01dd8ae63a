// The dialog that shows the remaining amount of one budget over its period, and an even rate of spending.
import { h, byId, color } from "./dom.js";
import { fetchJson } from "./fetching.js";
import { day, minuteOfDay, money, moment, utcDay } from "./format.js";
import { query } from "./ranges.js";
import { DAY, roundTicks } from "./ticks.js";

const MAX_TICKS = 6;
const LENGTH = { hour: 3_600_000, day: DAY };
const UNITS = { h: 3_600_000, d: DAY, w: 7 * DAY, mo: 30 * DAY };
let chart = null;

/** Return the start and end of the period in milliseconds. A sliding window ends now. */
function spanOf(budget, start) {
  if (start !== null) return [start, Date.parse(budget.ends)];
  const [, count, unit] = /^(\d+)(h|d|w|mo)$/.exec(budget.budget_duration);
  return [Date.now() - Number(count) * UNITS[unit], Date.now()];
}

function paint(canvas, points, [since, until], limit, granularity) {
  const utc = granularity === "day";
  const hours = [];
  for (let at = Math.ceil(since / LENGTH.hour) * LENGTH.hour; at <= until; at += LENGTH.hour) hours.push(at);
  const { indexes, step } = roundTicks(hours, MAX_TICKS, { utc });
  const labelOf = (at) => (utc ? utcDay(at) : step >= DAY ? day(at) : `${day(at)}, ${minuteOfDay(at)}`);
  const line = (label, token, data, more = {}) => ({ label, data, borderColor: color(token), backgroundColor: color(token), borderWidth: 2, pointRadius: data.length > 40 ? 0 : 2.5, ...more });
  const ink = color("--ink-soft");
  chart?.destroy();
  chart = new globalThis.Chart(canvas, {
    type: "line",
    data: { datasets: [
      line("Left", "--series-cost", points.map(([at, left]) => ({ x: at, y: left }))),
      line("Even rate", "--series-baseline", [{ x: since, y: limit }, { x: until, y: 0 }], { borderDash: [6, 4], pointRadius: 0 }),
    ] },
    options: {
      scales: {
        x: { type: "linear", min: since, max: until, grid: { display: false }, afterBuildTicks: (axis) => { axis.ticks = indexes.map((index) => ({ value: hours[index] })); }, ticks: { color: ink, maxRotation: 0, autoSkip: false, callback: labelOf } },
        y: { beginAtZero: true, border: { display: false }, grid: { color: color("--line") }, ticks: { color: ink, maxTicksLimit: 5, callback: (value) => money(value) } },
      },
      plugins: { tooltip: { callbacks: { title: ([item]) => moment(item.raw.x), label: (item) => `${item.dataset.label}: ${money(item.raw.y)}` } } },
    },
  });
}

/** Open the dialog. `start` is the start of the period, null for a sliding window; `limit` is the budget in USD. */
export async function burndown(budget, start, limit) {
  const dialog = byId("dialog");
  const name = budget.key ? `${budget.tenant}, key ${budget.key}` : budget.tenant;
  const text = h("p", {}, "Loading...");
  const canvas = h("canvas", { role: "img", "aria-label": `Remaining budget of ${name}` });
  const body = h("div", { class: "table-box", tabindex: "0", role: "region", "aria-label": "Remaining budget as a table" });
  dialog.replaceChildren(h("div", { class: "stack" },
    h("div", { class: "row apart" }, h("h2", { id: "dialog-title" }, `Budget of ${name}`), h("button", { type: "button", onclick: () => dialog.close() }, "Close")),
    text, h("div", { class: "plot" }, canvas), h("details", {}, h("summary", {}, "As a table"), body)));
  dialog.showModal();
  const [since, until] = spanOf(budget, start);
  const granularity = until - since <= 3 * DAY ? "hour" : "day";
  const own = { tenant: budget.tenant, ...(budget.key ? { key: budget.key } : {}) };
  try {
    const { rows } = await fetchJson(`/usage?${query({ since, until: Math.min(until, Date.now()) }, { granularity, ...own })}`);
    if (!canvas.isConnected) return; // another dialog was opened
    let left = limit;
    const points = [[since, limit]];
    for (const row of rows) {
      left -= Number(row.cost_usd);
      points.push([Math.min(Date.now(), Date.parse(row.start) + LENGTH[granularity]), left]);
    }
    paint(canvas, points, [since, until], limit, granularity);
    text.textContent = `${money(budget.left_usd)} of ${money(limit)} is left${budget.ends ? `, until ${moment(budget.ends)}` : ""}. The solid line is the remaining budget at the end of each ${granularity}. The dashed line is an even rate of spending.`;
    body.replaceChildren(h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "At"), h("th", { scope: "col", class: "num" }, "Left"))),
      h("tbody", {}, points.map(([at, usd]) => h("tr", {}, h("th", { scope: "row" }, moment(at)), h("td", { class: "num" }, money(usd)))).reverse())));
  } catch (error) {
    text.textContent = error.message;
    text.className = "bad";
  }
}
