// The charts over a range. Each has a summary sentence and a table of its figures.
import { h, color } from "./dom.js";
import { day, duration, minuteOfDay, money, moment, savedText, share, tokens, utcDay, whole } from "./format.js";
import { periodsOf } from "./ranges.js";
import { DAY, roundTicks } from "./ticks.js";

const { Chart } = globalThis;
Chart.defaults.animation = false;
Chart.defaults.maintainAspectRatio = false;
Chart.defaults.plugins.legend.display = false;
Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;

const total = (rows, of) => rows.reduce((all, row) => all + of(row), 0);
const read = ({ input, cached, cache_write }) => input + cached + cache_write;
const count = (counts) => Object.values(counts ?? {}).reduce((all, one) => all + one, 0);
const faint = (token, part) => color(token).replace(/^rgb\((.*)\)$/, (_, inner) => `rgba(${inner}, ${part})`);

/** Return the mean milliseconds of a stage over all requests, so that the stages add up. A request without it counts 0. */
function perRequest(row, stage) {
  const { count: times, mean } = row.latency_ms[stage] ?? {};
  const all = row.latency_ms.total?.count ?? 0;
  return all && times ? (mean * times) / all : 0;
}
function rest(row) {
  const wholeMean = row.latency_ms.total?.mean ?? 0;
  return ["admission", "batch_wait", "teacher", "handover"].reduce((left, stage) => Math.max(0, left - perRequest(row, stage)), wholeMean);
}

const ERROR_TOKENS = ["--series-lost", "--series-baseline", "--series-cost", "--series-wait", "--series-saved"];
const OTHERS = "others";

function errorSeries(rows) {
  const sums = new Map();
  for (const row of rows) for (const [label, times] of Object.entries(row.errors)) sums.set(label, (sums.get(label) ?? 0) + times);
  const labels = [...sums].sort((one, other) => other[1] - one[1]).map(([label]) => label);
  const own = labels.slice(0, ERROR_TOKENS.length);
  const series = own.map((label, index) => ({ title: label, token: ERROR_TOKENS[index], of: (row) => row.errors[label] ?? 0 }));
  if (labels.length > own.length) series.push({ title: OTHERS, token: "--series-admission", of: (row) => count(row.errors) - total(own, (label) => row.errors[label] ?? 0) });
  return series;
}

// `of` returns a figure of one period's row; `text` its text, for the table only. `line` draws a line; other series are stacked bars.
const CHARTS = [
  {
    id: "money", title: "Cost compared with the teacher alone", wide: true, show: money,
    series: () => [
      { title: "Cost", token: "--series-cost", line: true, of: (row) => Number(row.cost_usd) },
      { title: "Teacher alone", token: "--series-baseline", line: true, dashed: true, of: (row) => Number(row.baseline_usd) },
      { title: "Band", token: "--series-saved", line: true, band: true, table: false, of: (row) => Number(row.cost_usd) + (row.savings_about_zero ? 0 : Number(row.savings_usd)), fillTo: 0 },
      { title: "Saved", token: "--series-saved", legend: true, text: savedText },
      { title: "Cost more", token: "--series-lost", legend: true, table: false },
    ],
    summary(rows, all) {
      const [cost, baseline] = [total(rows, (row) => Number(row.cost_usd)), total(rows, (row) => Number(row.baseline_usd))];
      const saved = Number(all.savings_usd);
      const amount = all.savings_about_zero ? "about 0 saved" : saved < 0 ? `${money(-saved)} more than that was spent` : `${money(saved)} saved`;
      const unavailable = all.savings_classes?.teacher_unavailable?.requests ?? 0;
      const notes = `${unavailable ? ` The teacher was unavailable for ${tokens(unavailable)} requests. They have no savings.` : ""}${Number(all.measuring_usd) ? ` ${money(all.measuring_usd)} was spent on measuring.` : ""}`;
      const estimated = all.baseline_estimated ? ` The teacher's cost is an estimate for ${tokens(all.baseline_estimated)} of ${tokens(all.requests)} requests${Number(all.baseline_error_usd) ? `, with an error of up to ${money(all.baseline_error_usd)}` : ""}.` : "";
      return `Cost ${money(cost)}; the teacher alone would have cost ${money(baseline)}; ${amount}.${notes}${estimated}`;
    },
  },
  {
    id: "latency", title: "Time by stage", show: duration,
    series: () => [
      { title: "Admission", token: "--series-admission", of: (row) => perRequest(row, "admission") },
      { title: "Wait for batch", token: "--series-wait", of: (row) => perRequest(row, "batch_wait") },
      { title: "Teacher", token: "--series-teacher", of: (row) => perRequest(row, "teacher") },
      { title: "Hand-over", token: "--series-rest", of: (row) => perRequest(row, "handover") },
      { title: "Student and reply", token: "--series-student", of: rest },
    ],
    summary(rows) {
      const all = total(rows, (row) => row.latency_ms.total?.count ?? 0);
      const mean = total(rows, (row) => (row.latency_ms.total?.mean ?? 0) * (row.latency_ms.total?.count ?? 0)) / all;
      return `Answers took ${duration(mean)} on average, over ${tokens(all)} requests.`;
    },
  },
  {
    id: "batches", title: "Batch size and wait", show: (value) => value?.toFixed(1) ?? "-", showRight: duration,
    series: () => [
      { title: "Mean wait", token: "--series-wait", right: true, of: (row) => row.latency_ms.batch_wait?.mean ?? null },
      { title: "Calls in a batch", token: "--series-teacher", line: true, of: (row) => row.batches.mean_size },
    ],
    summary(rows) {
      const batches = total(rows, (row) => row.batches.count);
      const size = total(rows, (row) => row.batches.count * (row.batches.mean_size ?? 0)) / batches;
      return batches ? `${tokens(Math.round(batches))} batches with ${size.toFixed(1)} calls on average.` : "No batches.";
    },
  },
  {
    id: "tokens", title: "Tokens", show: tokens,
    series: () => [
      { title: "Teacher read", token: "--series-baseline", of: (row) => read(row.tokens.teacher) },
      { title: "Teacher wrote", token: "--series-lost", of: (row) => row.tokens.teacher.output },
      { title: "Student read", token: "--series-cost", of: (row) => read(row.tokens.student) },
      { title: "Student wrote", token: "--series-saved", of: (row) => row.tokens.student.output },
    ],
    summary(rows, all) {
      const [teacher, student] = ["teacher", "student"].map((role) => total(rows, (row) => row.tokens[role].output));
      return `The teacher wrote ${tokens(teacher)} tokens, the student ${tokens(student)}. The teacher's share of the answers is ${share(all.teacher_token_share)}.`;
    },
  },
  {
    id: "errors", title: "Errors", show: whole, series: errorSeries,
    summary: (rows) => `${whole(total(rows, (row) => count(row.errors)))} of ${whole(total(rows, (row) => row.requests))} requests ended in an error.`,
  },
];

function label(start, { granularity, since, until }) {
  return granularity === "day" ? utcDay(start) : until - since > DAY ? `${day(start)}, ${minuteOfDay(start)}` : minuteOfDay(start);
}

const fullLabel = (start, { granularity }) => (granularity === "day" ? `${utcDay(start)} (UTC)` : moment(start));

/** Return the time axis, with ticks at round times. A tick at midnight shows the day only. */
function timeAxis(starts, range, ink, grid) {
  const utc = range.granularity === "day";
  const widest = !utc && range.until - range.since > DAY ? 12 : 6; // characters
  let step = 0;
  return {
    stacked: true, grid: { display: false }, border: { color: grid },
    afterBuildTicks(axis) {
      const found = roundTicks(starts, Math.max(2, Math.floor(axis.maxWidth / (7 * widest + 24))), { utc });
      step = found.step;
      axis.ticks = found.indexes.map((value) => ({ value }));
    },
    ticks: { color: ink, maxRotation: 0, autoSkip: false, callback: (index) => (step >= DAY && !utc ? day(starts[index]) : label(starts[index], range)) },
  };
}

class Figure {
  constructor(box, spec) {
    this.spec = spec;
    this.canvas = h("canvas", { role: "img", "aria-label": `${spec.title}, loading` });
    this.plot = h("div", { class: "plot" }, this.canvas);
    this.emptyText = h("p", { class: "nothing", hidden: true });
    this.plot.append(this.emptyText);
    this.legend = h("ul", { class: "legend" });
    this.caption = h("figcaption", {});
    this.body = h("div", { class: "table-box", hidden: true, tabindex: "0", role: "region", "aria-label": `${spec.title}, as a table` });
    this.toggle = h("button", { type: "button", class: "quiet", "aria-pressed": "false", "aria-label": `${spec.title} as a table`, onclick: () => this.flip() }, "Table");
    box.append(h("figure", { class: `card chart${spec.wide ? " wide" : ""}`, id: `chart-${spec.id}` },
      h("div", { class: "row apart" }, h("h3", {}, spec.title), this.toggle), this.caption, this.legend, this.plot, this.body));
  }

  flip() {
    const table = this.body.hidden;
    this.body.hidden = !table;
    this.plot.hidden = this.legend.hidden = table;
    this.toggle.setAttribute("aria-pressed", String(table));
  }

  draw(range, rows, all) {
    this.last = [range, rows, all];
    const starts = periodsOf(range);
    const byStart = new Map(rows.map((row) => [Date.parse(row.start), row]));
    const periods = starts.map((start) => byStart.get(start) ?? null);
    const series = this.spec.series(rows);
    const idle = !rows.some((row) => row.requests);
    const empty = idle || series.length === 0;
    this.caption.textContent = idle ? "" : this.spec.summary(rows, all);
    this.emptyText.hidden = !empty;
    this.emptyText.textContent = idle ? "No requests in this period." : `No ${this.spec.title.toLowerCase()} in this period.`;
    this.canvas.setAttribute("aria-label", `${this.spec.title}, ${range.words}. ${empty ? "No requests." : this.caption.textContent}`);
    this.legend.replaceChildren(...series.filter((one) => !one.band).map((one) => {
      const swatch = h("span", { class: `swatch${one.line ? " line" : ""}${one.dashed ? " dashed" : ""}` });
      swatch.style.background = one.legend ? faint(one.token, 0.45) : `var(${one.token})`;
      swatch.style.borderColor = `var(${one.token})`;
      return h("li", {}, swatch, one.title);
    }));
    this.tabulate(starts, periods, series, range);
    this.paint(starts, periods, series.filter((one) => !one.legend), range, empty);
  }

  tabulate(starts, periods, series, range) {
    const columns = series.filter((one) => one.table !== false);
    const lines = starts.map((start, index) => [start, periods[index]]).filter(([, row]) => row).reverse();
    this.body.replaceChildren(h("table", {}, h("caption", { class: "visually-hidden" }, `${this.spec.title}, ${range.words}`),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, `Start of the ${range.granularity}${range.granularity === "day" ? " (UTC)" : ""}`), columns.map((one) => h("th", { scope: "col", class: "num" }, one.title)))),
      h("tbody", {}, lines.map(([start, row]) => h("tr", {}, h("th", { scope: "row" }, label(start, range)),
        columns.map((one) => h("td", { class: "num" }, one.text ? one.text(row) : (one.right ? this.spec.showRight : this.spec.show)(one.of(row)))))))));
  }

  paint(starts, periods, series, range, empty) {
    const ink = color("--ink-soft");
    const grid = faint("--line", 0.7);
    const datasets = series.map((one) => ({
      label: one.title,
      data: periods.map((row) => (row ? one.of(row) : one.line && this.spec.id !== "money" ? null : 0)),
      type: one.line ? "line" : "bar",
      yAxisID: one.right ? "right" : "y",
      stack: one.line ? `line ${one.title}` : one.right ? "right" : "bars",
      borderColor: color(one.token),
      backgroundColor: color(one.token),
      borderWidth: one.line && !one.band ? 2 : 0,
      borderDash: one.dashed ? [6, 4] : [],
      pointRadius: ({ dataIndex: at, dataset: { data: of } }) => (one.band ? 0 : periods.length <= 40 || (of[at - 1] ?? null) === null || (of[at + 1] ?? null) === null ? 2.5 : 0),
      pointHitRadius: one.band ? 0 : 8,
      spanGaps: true,
      barPercentage: 1,
      categoryPercentage: periods.length > 60 ? 1 : 0.8,
      order: one.line ? 0 : 1,
      fill: one.fillTo === undefined ? false : { target: one.fillTo, above: faint("--series-saved", 0.3), below: faint("--series-lost", 0.4) },
    }));
    const axis = (show, extra = {}) => ({
      beginAtZero: true, stacked: true, border: { display: false }, grid: { color: grid },
      ticks: { color: ink, maxTicksLimit: 5, precision: this.spec.show === whole || this.spec.show === tokens ? 0 : undefined, callback: (value) => show(value) }, ...extra,
    });
    const scales = {
      x: timeAxis(starts, range, ink, grid),
      y: axis(this.spec.show, { display: !empty }),
    };
    if (series.some((one) => one.right)) scales.right = axis(this.spec.showRight, { position: "right", grid: { display: false }, display: !empty });
    const options = {
      interaction: { mode: "index", intersect: false },
      scales,
      plugins: {
        tooltip: {
          filter: (item) => !series[item.datasetIndex].band,
          callbacks: {
            title: ([item]) => fullLabel(starts[item.dataIndex], range),
            label: (item) => `${item.dataset.label}: ${(item.dataset.yAxisID === "right" ? this.spec.showRight : this.spec.show)(item.raw)}`,
            footer: ([item]) => (this.spec.id === "money" && item && periods[item.dataIndex] ? `Saved: ${savedText(periods[item.dataIndex])}` : ""),
          },
        },
      },
    };
    if (empty) datasets.length = 0;
    const data = { labels: starts.map((start) => label(start, range)), datasets };
    if (this.chart) {
      Object.assign(this.chart, { data, options }); // a new chart would close an open tooltip
      this.chart.update("none");
      return;
    }
    this.chart = new Chart(this.canvas, { type: "bar", data, options });
    if (!performance.getEntriesByName("first-chart").length) performance.mark("first-chart");
  }

  repaint() {
    if (this.last) this.draw(...this.last);
  }
}

/** Create the charts in `box`. Return a function that draws a range and its rows from GET /usage. */
export function charts(box) {
  const all = CHARTS.map((spec) => new Figure(box, spec));
  document.addEventListener("themechange", () => all.forEach((one) => one.repaint()));
  return (range, rows, sums) => all.forEach((one) => one.draw(range, rows, sums));
}
