// Charts over time with uPlot. A period without requests is a gap. Each chart has a summary and a table of its figures.
import { useEffect, useRef, useState } from "./vendor/hooks.js";
import { column, day, minuteOfDay, toMinute } from "./format.js";
import { periodsOf } from "./state.js";
import { html, Table } from "./ui.js";

const DAY_S = 86_400;
const HEIGHT = 220;
const WHOLE = Array.from({ length: 36 }, (_, at) => [1, 2, 5][at % 3] * 10 ** Math.floor(at / 3)); // steps between ticks of counts

/** Return the computed color of a design token, for a canvas. `part` is its opacity. */
function color(token, part = 1) {
  const probe = document.createElement("span");
  probe.style.color = `color-mix(in srgb, var(${token}) ${100 * part}%, transparent)`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

/** Return labels of a UTC time axis: days at midnight, else hours and minutes. */
const times = (_, ticks, axis, space, step) =>
  ticks.map((at) => (step >= DAY_S || at % DAY_S === 0 ? day(at * 1000) : minuteOfDay(at * 1000)));

/** Return the start of a period as text. */
const startOf = ({ granularity }, at) => (granularity === "day" ? day(at) : toMinute(at));

/** Draw a point where neither neighbor has a value: a line would be invisible. */
const lonely = (plot, index, show) => {
  const values = plot.data[index];
  return show ? null : [...values.keys()].filter((at) => values[at] !== null && [at - 1, at + 1].every((one) => (values[one] ?? null) === null));
};

function draw(box, { series, unit, starts, values, stacked, width, onIndex, format }) {
  const bars = globalThis.uPlot.paths.bars({ size: [0.8, 40], gap: 1 });
  const axis = { stroke: color("--ink-soft"), grid: { stroke: color("--line", 0.6), width: 1 }, ticks: { show: false },
    font: `12px ${getComputedStyle(document.body).fontFamily}` };
  const top = { usd: 0, share: 0.01, ms: 1 }[unit] ?? 1;
  const margin = starts.length < 2 ? 1800 : stacked ? (starts[1] - starts[0]) / 2 : 0;
  const options = {
    width, height: HEIGHT, padding: [8, 24, 0, 0], legend: { show: false },
    tzDate: (at) => globalThis.uPlot.tzDate(new Date(at * 1000), "Etc/UTC"),
    cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
    scales: { x: { range: (_, min, max) => [min - margin, max + margin] },
      y: { range: (_, min, max) => [Math.min(0, min ?? 0), Math.max(max ?? 0, top) * 1.08 || 1] } },
    axes: [
      { ...axis, grid: { show: false }, values: times, space: 70, size: 30 },
      {
        ...axis, ...(["count", "short"].includes(unit) ? { incrs: WHOLE } : {}), space: 44, values: (_, ticks) => ticks.map(format(ticks)),
        size: (_, labels) => 20 + 7 * Math.max(2, ...(labels ?? []).map((one) => one.length)),
      },
    ],
    series: [{}, ...series.map((one) => ({
      stroke: color(one.color), width: stacked ? 0 : 2, dash: one.dashed ? [6, 4] : undefined, spanGaps: false,
      fill: stacked ? color(one.color) : undefined, paths: stacked ? bars : undefined,
      points: { show: stacked ? false : undefined, filter: lonely, size: 6, fill: color(one.color) },
    }))],
    bands: (!stacked && series.some((one) => one.band) ? [[2, 1, "--good"], [1, 2, "--bad"]] : [])
      .map(([upper, lower, token]) => ({ series: [upper, lower], fill: color(token, 0.16) })),
    hooks: { setCursor: [(plot) => onIndex(plot.cursor.idx ?? null)] },
  };
  return new globalThis.uPlot(options, values, box);
}

/**
 * A chart of rows of GET /usage. `series`: {title, color, of(row), dashed}. With `stacked` they are bars on top of each other,
 * else lines; `band` colors the space between the first two lines. `children` is the summary.
 */
export function Chart({ title, rows, range, series, unit, stacked = false, children, empty = "No requests in this period." }) {
  const box = useRef(null);
  const [index, setIndex] = useState(null);
  const [asTable, setAsTable] = useState(false);
  const [width, setWidth] = useState(0);
  const [theme, setTheme] = useState(0);
  const byStart = new Map(rows.map((row) => [Date.parse(row.start), row]));
  const starts = periodsOf(range);
  const all = starts.map((start) => byStart.get(start) ?? null);
  const shown = series.map((one) => all.map((row) => (row?.requests || row?.shadows ? one.of(row) : null)));
  const sums = shown.map((_, last) => all.map((__, at) => (shown[last][at] === null ? null : shown.slice(0, last + 1).reduce((sum, one) => sum + (one[at] ?? 0), 0))));
  const format = column(unit, shown.flat());
  const idle = series.length === 0 || !shown.flat().some((value) => value !== null);
  const drawn = JSON.stringify([starts[0], starts.length, shown]);
  useEffect(() => {
    const watch = new ResizeObserver(([entry]) => setWidth(Math.floor(entry.contentRect.width)));
    const repaint = () => setTheme((count) => count + 1);
    watch.observe(box.current);
    document.addEventListener("themechange", repaint);
    return () => {
      watch.disconnect();
      document.removeEventListener("themechange", repaint);
    };
  }, []);
  useEffect(() => {
    if (idle || asTable || !width) return undefined;
    // Bars are drawn from the highest sum to the lowest, so that each covers the lower part of the one before.
    const order = stacked ? [...series.keys()].reverse() : [...series.keys()];
    const values = [starts.map((at) => at / 1000), ...order.map((one) => (stacked ? sums : shown)[one])];
    const plot = draw(box.current, {
      series: order.map((one) => series[one]), unit, starts: values[0], values, stacked, width, onIndex: setIndex,
      format: (ticks) => column(unit, ticks),
    });
    return () => plot.destroy();
  }, [drawn, width, theme, asTable, idle]);
  const columns = [
    { title: `Start of the ${range.granularity}, UTC`, value: (row) => Date.parse(row.start), show: (row) => startOf(range, row.start) },
    ...series.map((one) => ({ title: one.title, unit, value: one.of })),
  ];
  return html`<figure class="card chart" aria-label=${title}>
    <div class="row apart"><h2>${title}</h2>
      ${!idle && html`<button type="button" class="quiet" aria-pressed=${String(asTable)} aria-label="${title} as a table"
        onClick=${() => setAsTable(!asTable)}>Table</button>`}</div>
    <figcaption class="soft small">${idle ? "" : children}</figcaption>
    ${!idle && !asTable && html`<ul class="legend">
      ${series.map((one, at) => html`<li key=${one.title}><i class=${stacked ? "" : one.dashed ? "line dashed" : "line"}
        style=${{ color: `var(${one.color})` }}></i>${one.title}
        ${index !== null && html`<b>${format(shown[at][index])}</b>`}</li>`)}
      <li class="soft when">${index === null ? `by ${range.granularity}, UTC` : `${startOf(range, starts[index])}, UTC`}</li>
    </ul>`}
    ${idle && html`<p class="nothing soft">${empty}</p>`}
    ${asTable && !idle && html`<${Table} caption="${title} as a table" columns=${columns} rows=${rows} id=${(row) => row.start}
      sort=${[columns[0].title, true]} />`}
    <div class="plot" hidden=${idle || asTable} ref=${box} role="img" aria-label=${title}></div>
  </figure>`;
}
