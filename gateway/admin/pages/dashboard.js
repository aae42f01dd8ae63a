import { books } from "./books.js";
import { budgets } from "./budgets.js";
import { charts } from "./charts.js";
import { byId } from "./dom.js";
import { fetchJson } from "./fetching.js";
import { timeOfDay } from "./format.js";
import { tiles } from "./live.js";
import { isPaused, poll, setPaused } from "./polling.js";
import { quality } from "./quality.js";
import { query, ranges } from "./ranges.js";
import { receipts } from "./receipts.js";
import { openPage } from "./shell.js";
import { engines, policies } from "./standing.js";
import { say } from "./status.js";
import { usage } from "./usage.js";

let pollHistory = null;
let pollUsage = null;
const range = ranges(byId("ranges"), () => { pollHistory?.(); pollUsage?.(); });
openPage("dashboard");

const pause = byId("pause");
pause.addEventListener("click", () => {
  setPaused(!isPaused());
  pause.setAttribute("aria-pressed", String(isPaused()));
  if (isPaused()) byId("pulse").textContent = "paused";
});

const draw = charts(byId("charts"));
let newestTicket = 0;
let drawn;
const firstDrawn = new Promise((done) => { drawn = done; });
pollHistory = poll(async () => {
  const [ticket, selected] = [(newestTicket += 1), range()];
  try {
    const reply = await fetchJson(`/usage?${query(selected, { granularity: selected.granularity })}`);
    if (ticket === newestTicket) draw(selected, reply.rows, reply.total);
  } finally {
    drawn();
  }
}, 15_000, { about: "history" });
// Other queries use the same threads and would delay the first chart.
await Promise.race([firstDrawn, new Promise((done) => { setTimeout(done, 1_000); })]);

const table = usage(byId("usage-by"), byId("usage"), () => pollUsage());
pollUsage = poll(async () => {
  const [by, selected] = [table.by(), range()];
  const reply = await fetchJson(`/usage?${query(selected, { by })}`);
  byId("usage-range").textContent = `Period: ${selected.words}.`;
  byId("usage-csv").href = `/usage?${query(selected, { by, format: "csv" })}`;
  table.rows(by, reply.rows);
}, 15_000, { about: "usage" });

const showTiles = tiles(byId("tiles"));
const showEngines = engines(byId("engines"), byId("engines-note"));
const showPolicies = policies(byId("policies"));
poll(async () => {
  const overview = await fetchJson("/overview");
  byId("pulse").textContent = isPaused() ? "paused" : `as of ${timeOfDay(overview.at)}`;
  say(overview.redis.up ? "" : "Redis is unavailable: the gateway follows the setting redis.on_failure.", "bad", "redis");
  say(overview.usage.answered ? "" : "The usage database cannot be read. Sums, charts and receipts are not updated.", "bad", "usage");
  say(overview.status === "draining" ? "This gateway is shutting down." : "", "warn", "draining");
  showTiles(overview);
  showEngines.show(overview);
  await showPolicies(overview);
}, 2_000, { about: "live", what: "Figures" });
poll(() => showEngines.refresh(), 4_000, { about: "queues" });
poll(books(byId("books")), 4_000, { about: "books" });
poll(receipts(byId("receipts")), 4_000, { about: "receipts" });
poll(budgets(byId("budgets")), 15_000, { about: "budgets" });
const showQuality = quality(byId("quality"), byId("quality-note"));
poll(async () => showQuality(await fetchJson("/quality")), 30_000, { about: "quality" });
