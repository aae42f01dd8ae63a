// One budget over its period: what was left, beside an even pace.
import { h, byId, colour } from "./dom.js";
import { fetchJson } from "./fetching.js";
import { day, minuteOfDay, money, moment, utcDay } from "./format.js";
import { query } from "./ranges.js";
import { DAY, roundPlaces } from "./ticks.js";

const MOST_TICKS = 6;
const LENGTH = { hour: 3_600_000, day: DAY };
const UNITS = { h: 3_600_000, d: DAY, w: 7 * DAY, mo: 30 * DAY };
let chart = null;

/** Where a budget counts the time just past, its span ends now. */
function spanOf(budget, began) {
  if (began !== null) return [began, Date.parse(budget.ends)];
  const [, count, unit] = /^(\d+)(h|d|w|mo)$/.exec(budget.budget_duration);
  return [Date.now() - Number(count) * UNITS[unit], Date.now()];
}

function paint(canvas, points, [since, until], most, granularity) {
  const utc = granularity === "day";
  const hours = [];
  for (let at = Math.ceil(since / LENGTH.hour) * LENGTH.hour; at <= until; at += LENGTH.hour) hours.push(at);
  const { places, step } = roundPlaces(hours, MOST_TICKS, { utc });
  const named = (at) => (utc ? utcDay(at) : step >= DAY ? day(at) : `${day(at)}, ${minuteOfDay(at)}`);
  const line = (label, token, data, more = {}) => ({ label, data, borderColor: colour(token), backgroundColor: colour(token), borderWidth: 2, pointRadius: data.length > 40 ? 0 : 2.5, ...more });
  const ink = colour("--ink-soft");
  chart?.destroy();
  chart = new globalThis.Chart(canvas, {
    type: "line",
    data: { datasets: [
      line("Left", "--series-cost", points.map(([at, left]) => ({ x: at, y: left }))),
      line("Even pace", "--series-baseline", [{ x: since, y: most }, { x: until, y: 0 }], { borderDash: [6, 4], pointRadius: 0 }),
    ] },
    options: {
      scales: {
        x: { type: "linear", min: since, max: until, grid: { display: false }, afterBuildTicks: (axis) => { axis.ticks = places.map((place) => ({ value: hours[place] })); }, ticks: { color: ink, maxRotation: 0, autoSkip: false, callback: named } },
        y: { beginAtZero: true, border: { display: false }, grid: { color: colour("--line") }, ticks: { color: ink, maxTicksLimit: 5, callback: (value) => money(value) } },
      },
      plugins: { tooltip: { callbacks: { title: ([item]) => moment(item.raw.x), label: (item) => `${item.dataset.label}: ${money(item.raw.y)}` } } },
    },
  });
}

/** Open the dialog. `began` is when the period did, null where it is the time just past; `most` is the budget. */
export async function burndown(budget, began, most) {
  const dialog = byId("dialog");
  const name = budget.key ? `${budget.tenant}, key ${budget.key}` : budget.tenant;
  const words = h("p", {}, "Asking...");
  const canvas = h("canvas", { role: "img", "aria-label": `What was left of the budget of ${name}` });
  const body = h("div", { class: "table-box", tabindex: "0", role: "region", "aria-label": "The same as a table" });
  dialog.replaceChildren(h("div", { class: "stack" },
    h("div", { class: "row apart" }, h("h2", { id: "dialog-title" }, `Budget of ${name}`), h("button", { type: "button", onclick: () => dialog.close() }, "Close")),
    words, h("div", { class: "plot" }, canvas), h("details", {}, h("summary", {}, "As a table"), body)));
  dialog.showModal();
  const [since, until] = spanOf(budget, began);
  const granularity = until - since <= 3 * DAY ? "hour" : "day";
  const own = { tenant: budget.tenant, ...(budget.key ? { key: budget.key } : {}) };
  try {
    const { rows } = await fetchJson(`/usage?${query({ since, until: Math.min(until, Date.now()) }, { granularity, ...own })}`);
    if (!canvas.isConnected) return; // another one was opened meanwhile
    let left = most;
    const points = [[since, most]];
    for (const row of rows) {
      left -= Number(row.cost_usd);
      points.push([Math.min(Date.now(), Date.parse(row.start) + LENGTH[granularity]), left]);
    }
    paint(canvas, points, [since, until], most, granularity);
    words.textContent = `${money(budget.left_usd)} of ${money(most)} is left${budget.ends ? `, until ${moment(budget.ends)}` : ""}. The line follows receipts by the ${granularity}; the broken one is an even pace.`;
    body.replaceChildren(h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "At"), h("th", { scope: "col", class: "num" }, "Left"))),
      h("tbody", {}, points.map(([at, usd]) => h("tr", {}, h("th", { scope: "row" }, moment(at)), h("td", { class: "num" }, money(usd)))).reverse())));
  } catch (error) {
    words.textContent = error.message;
    words.className = "bad";
  }
}
