// The tiles: what the gateway does now, and what it cost today and this month.
import { h, colour } from "./dom.js";
import { duration, money, rate, savedKind, savedText, share, whole } from "./format.js";

const SAMPLES_MS = 30_000;
const samples = []; // {at, requests}: today's count as it was, newest last
const rates = [];
const MOST_RATES = 60;

const sum = (counts) => Object.values(counts ?? {}).reduce((all, one) => all + one, 0);

function tile(title, ...inner) {
  return h("article", { class: "card tile" }, h("h3", {}, title), ...inner);
}

function figure(box, title, { wide = false } = {}) {
  const big = h("p", { class: "big number" }, "-");
  const under = h("p", { class: "under number" }, "\u00a0");
  const all = tile(title, big, under);
  if (wide) all.classList.add("wide");
  box.append(all);
  return (value, below = "", kind = "") => {
    big.textContent = value;
    under.textContent = below || "\u00a0";
    big.className = `big number ${kind}`;
  };
}

function three(box, title) {
  const values = ["p50", "p95", "p99"].map(() => h("dd", { class: "number" }, "-"));
  const all = tile(title, h("dl", { class: "three" }, ["p50", "p95", "p99"].map((name, index) => h("div", {}, h("dt", {}, name), values[index]))));
  all.classList.add("wide");
  box.append(all);
  return (stage) => ["p50", "p95", "p99"].forEach((name, index) => { values[index].textContent = duration(stage?.[name]); });
}

/** Requests a second, from how today's count has grown; until that is known, of the last minutes. */
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
  pen.strokeStyle = colour("--series-cost");
  pen.lineWidth = 1.75;
  pen.lineJoin = "round";
  pen.beginPath();
  rates.forEach((one, index) => pen.lineTo((index * width) / Math.max(1, MOST_RATES - 1), height - 2 - (one / top) * (height - 4)));
  pen.stroke();
}

function mostOf(counts) {
  const [name] = Object.entries(counts ?? {}).sort((one, other) => other[1] - one[1])[0] ?? [];
  return name ? `most: ${name}` : "";
}

/** Draw the tiles into `box`. Returns a function that takes what GET /overview says. */
export function tiles(box) {
  const line = h("canvas", { "aria-hidden": "true" });
  const requests = figure(box, "Requests a second");
  box.lastChild.append(line);
  const guided = figure(box, "Guided share");
  const first = three(box, "First token of streams");
  const total = three(box, "Whole answer");
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
    let words = usd < 0 ? "cost more than the teacher alone" : Number(period.baseline_usd) ? below(part) : "nothing to save on yet";
    if (period.savings_about_zero) words = `${money(usd)} \u00b1 ${money(period.savings_error_usd)}`;
    set(savedText(period), words, savedKind(period));
  }

  document.addEventListener("themechange", () => drawLine(line));
  return (overview) => {
    const { live, today } = overview;
    if (!live) return;
    const now = perSecond(overview);
    rates.push(now ?? 0);
    if (rates.length > MOST_RATES) rates.shift();
    requests(rate(now), `${whole(live.requests)} in the last ${Math.round(live.seconds)} s`);
    drawLine(line);
    const unguided = sum(live.unguided);
    const asked = live.guided + unguided;
    guided(asked ? share(live.guided, asked) : "-", unguided ? mostOf(live.unguided) : asked ? "of guided routes" : "no guided requests");
    first(live.latency_ms.first_token);
    total(live.latency_ms.total);
    const size = live.batches.mean_size;
    fill(size === null ? "-" : share(size, overview.max_batch_size), size === null ? "no batches" : `${size.toFixed(1)} of ${overview.max_batch_size ?? "-"} calls`);
    const wrong = sum(live.errors);
    errors(whole(wrong), wrong ? `${share(wrong, live.requests)}, ${mostOf(live.errors)}` : "in the last minutes", wrong ? "bad" : "");
    const unavailable = today.savings_classes?.teacher_unavailable;
    away(whole(unavailable?.requests ?? 0), unavailable ? `requests; they cost ${money(unavailable.cost_usd)} and save nothing` : "requests", unavailable ? "bad" : "");
    measuring(money(today.measuring_usd), "shadows, quality samples, probes");
    cost(money(today.cost_usd), `teacher alone ${money(today.baseline_usd)}`);
    savings(saved, today, (part) => `${part} of the teacher alone`);
    savings(month, overview.month, (part) => `${part} of the teacher alone, ${money(overview.month.baseline_usd)}; spent ${money(overview.month.cost_usd)}`);
  };
}
