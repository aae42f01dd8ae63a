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

let past = null;
let who = null;
const range = ranges(byId("ranges"), () => { past?.(); who?.(); });
openPage("dashboard");

const pause = byId("pause");
pause.addEventListener("click", () => {
  setPaused(!isPaused());
  pause.setAttribute("aria-pressed", String(isPaused()));
  if (isPaused()) byId("pulse").textContent = "paused";
});

const draw = charts(byId("charts"));
let wanted = 0;
let drawn;
const firstDrawn = new Promise((done) => { drawn = done; });
past = poll(async () => {
  const [ticket, of] = [(wanted += 1), range()];
  try {
    const reply = await fetchJson(`/usage?${query(of, { granularity: of.granularity })}`);
    if (ticket === wanted) draw(of, reply.rows, reply.total);
  } finally {
    drawn();
  }
}, 15_000, { about: "history" });
// Other queries take the same threads, and would delay the first chart.
await Promise.race([firstDrawn, new Promise((done) => { setTimeout(done, 1_000); })]);

const table = usage(byId("usage-by"), byId("usage"), () => who());
who = poll(async () => {
  const [by, of] = [table.by(), range()];
  const reply = await fetchJson(`/usage?${query(of, { by })}`);
  byId("usage-range").textContent = `Of ${of.words}.`;
  byId("usage-csv").href = `/usage?${query(of, { by, format: "csv" })}`;
  table.rows(by, reply.rows);
}, 15_000, { about: "usage" });

const showTiles = tiles(byId("tiles"));
const showEngines = engines(byId("engines"), byId("engines-note"));
const showPolicies = policies(byId("policies"));
poll(async () => {
  const overview = await fetchJson("/overview");
  byId("pulse").textContent = isPaused() ? "paused" : `as of ${timeOfDay(overview.at)}`;
  say(overview.redis.up ? "" : "Redis is away: the gateway goes on as redis.on_failure says.", "bad", "redis");
  say(overview.usage.answered ? "" : "The usage database cannot be read: sums, charts and receipts are not updated.", "bad", "usage");
  say(overview.status === "draining" ? "This gateway is shutting down." : "", "warn", "draining");
  showTiles(overview);
  showEngines.show(overview);
  await showPolicies(overview);
}, 2_000, { about: "live", what: "The figures" });
poll(() => showEngines.look(), 4_000, { about: "queues" });
poll(books(byId("books")), 4_000, { about: "books" });
poll(receipts(byId("receipts")), 4_000, { about: "receipts" });
poll(budgets(byId("budgets")), 15_000, { about: "budgets" });
const showQuality = quality(byId("quality"), byId("quality-note"));
poll(async () => showQuality(await fetchJson("/quality")), 30_000, { about: "quality" });
