// The tiles: current figures of the gateway, and its cost and savings today and this month.
import { h, color } from "./dom.js";
import { duration, money, rate, savedKind, savedText, share, whole } from "./format.js";

const SAMPLES_MS = 30_000;
const samples = []; // {at, requests}: earlier counts of today, newest last
const rates = [];
const MAX_RATES = 60;

const sum = (counts) => Object.values(counts ?? {}).reduce((all, one) => all + one, 0);

function tile(title, ...inner) {
  return h("article", { class: "card tile" }, h("h3", {}, title), ...inner);
}

function figure(box, title, { wide = false } = {}) {
  const big = h("p", { class: "big number" }, "-");
  const caption = h("p", { class: "under number" }, "\u00a0");
  const all = tile(title, big, caption);
  if (wide) all.classList.add("wide");
  box.append(all);
  return (value, below = "", kind = "") => {
    big.textContent = value;
    caption.textContent = below || "\u00a0";
    big.className = `big number ${kind}`;
  };
}

function percentiles(box, title) {
  const values = ["p50", "p95", "p99"].map(() => h("dd", { class: "number" }, "-"));
  const all = tile(title, h("dl", { class: "three" }, ["p50", "p95", "p99"].map((name, index) => h("div", {}, h("dt", {}, name), values[index]))));
  all.classList.add("wide");
  box.append(all);
  return (stage) => ["p50", "p95", "p99"].forEach((name, index) => { values[index].textContent = duration(stage?.[name]); });
}

/** Return requests per second from the growth of today's count; without an earlier sample, of the last minutes. */
function perSecond(overview) {
  const at = Date.parse(overview.at);
  const requests = overview.today.requests;
  if (samples.length && (requests < samples.at(-1).requests || at <= samples.at(-1).at)) samples.length = 0; // a new day
  samples.push({ at, requests });
  while (samples.length > 2 && at - samples[0].at > SAMPLES_MS) samples.shift();
  const first = samples[0];
  if (at - first.at >= 1_500) return (1000 * (requests - first.requests)) / (at - first.at);
  return overview.live.seconds > 0 ? overview.live.requests / overview.live.seconds : null;
}

function drawLine(canvas) {
  const ratio = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const top = Math.max(...rates, 0.001);
  pen.strokeStyle = color("--series-cost");
  pen.lineWidth = 1.75;
  pen.lineJoin = "round";
  pen.beginPath();
  rates.forEach((value, index) => pen.lineTo((index * width) / Math.max(1, MAX_RATES - 1), height - 2 - (value / top) * (height - 4)));
  pen.stroke();
}

function mostFrequent(counts) {
  const [name] = Object.entries(counts ?? {}).sort((one, other) => other[1] - one[1])[0] ?? [];
  return name ? `most: ${name}` : "";
}

/** Create the tiles in `box`. Return a function that shows a reply of GET /overview. */
export function tiles(box) {
  const line = h("canvas", { "aria-hidden": "true" });
  const requests = figure(box, "Requests per second");
  box.lastChild.append(line);
  const guided = figure(box, "Guided share");
  const first = percentiles(box, "First token of streams");
  const total = percentiles(box, "Whole answer");
  const fill = figure(box, "Batch fill");
  const errors = figure(box, "Errors");
  const cost = figure(box, "Cost today");
  const saved = figure(box, "Saved today");
  const month = figure(box, "Saved this month", { wide: true });
  const away = figure(box, "Teacher unavailable today");
  const measuring = figure(box, "Cost of measuring today");

  function savings(set, period, below) {
    const usd = Number(period.savings_usd);
    const part = share(usd, Number(period.baseline_usd));
    let text = usd < 0 ? "cost more than the teacher alone" : Number(period.baseline_usd) ? below(part) : "no requests yet";
    if (period.savings_about_zero) text = `${money(usd)} \u00b1 ${money(period.savings_error_usd)}`;
    set(savedText(period), text, savedKind(period));
  }

  document.addEventListener("themechange", () => drawLine(line));
  return (overview) => {
    const { live, today } = overview;
    if (!live) return;
    const now = perSecond(overview);
    rates.push(now ?? 0);
    if (rates.length > MAX_RATES) rates.shift();
    requests(rate(now), `${whole(live.requests)} in the last ${Math.round(live.seconds)} s`);
    drawLine(line);
    const unguided = sum(live.unguided);
    const routed = live.guided + unguided;
    guided(routed ? share(live.guided, routed) : "-", unguided ? mostFrequent(live.unguided) : routed ? "of guided routes" : "no guided requests");
    first(live.latency_ms.first_token);
    total(live.latency_ms.total);
    const size = live.batches.mean_size;
    fill(size === null ? "-" : share(size, overview.max_batch_size), size === null ? "no batches" : `${size.toFixed(1)} of ${overview.max_batch_size ?? "-"} calls`);
    const failed = sum(live.errors);
    errors(whole(failed), failed ? `${share(failed, live.requests)}, ${mostFrequent(live.errors)}` : "in the last minutes", failed ? "bad" : "");
    const unavailable = today.savings_classes?.teacher_unavailable;
    away(whole(unavailable?.requests ?? 0), unavailable ? `requests, cost ${money(unavailable.cost_usd)}, no savings` : "requests", unavailable ? "bad" : "");
    measuring(money(today.measuring_usd), "shadows, quality samples");
    cost(money(today.cost_usd), `teacher alone ${money(today.baseline_usd)}`);
    savings(saved, today, (part) => `${part} of the teacher alone`);
    savings(month, overview.month, (part) => `${part} of the teacher alone, ${money(overview.month.baseline_usd)}; spent ${money(overview.month.cost_usd)}`);
  };
}
