// Reliability: engines, requests without guidance by reason, failed requests and latency over time.
import { useData } from "./api.js";
import { Chart } from "./chart.js";
import { counted, duration, share, short, sum, toMinute, utc, whole } from "./format.js";
import { api, link, period } from "./state.js";
import { Badge, Card, Empty, html, Link, Loaded, Table } from "./ui.js";

const BREAKER = { closed: ["closed", "good"], half_open: ["half-open", "warn"], open: ["open", "bad"] };
const PALETTE = ["--series-lost", "--series-baseline", "--series-cost", "--series-wait", "--series-saved"];
const CAUSES = { failure: "a failure", policy: "the policy", request: "the request" };

const state = (row) => (row.up === null ? html`<${Badge} kind="warn">not probed yet<//>` : html`<${Badge}
  kind=${row.up ? "good" : "bad"}>${row.up ? "up" : "down"}<//>`);
const roles = (row) => [row.teacher, row.student].filter(Boolean);
const requests = (row) => roles(row).reduce((all, one) => all + one.requests, 0);
const latency = (row, quantile) => row.student?.latency_ms.total?.[quantile] ?? row.teacher?.latency_ms.teacher?.[quantile]
  ?? row.teacher?.latency_ms.total?.[quantile] ?? null;

/** The columns of engines. `queues` has the permits of the whole fleet. */
const engines = (queues) => [
  { title: "Engine", value: (row) => row.name, show: (row) => html`${row.name}<small
    class="soft below">${[row.teacher && "teacher", row.student && "student"].filter(Boolean).join(", ")}</small>` },
  { title: "State", value: (row) => String(row.up), show: (row) => html`${state(row)}${row.since && !row.up && html`<small
    class="soft below">since ${utc(row.since)}</small>`}` },
  { title: "Circuit breaker", value: (row) => row.breaker, show: (row) => html`<${Badge}
    kind=${BREAKER[row.breaker]?.[1] ?? "warn"}>${BREAKER[row.breaker]?.[0] ?? row.breaker}<//>` },
  { title: "Requests", unit: "count", value: requests },
  { title: "Failed", unit: "share", value: (row) => Math.max(...roles(row).map((one) => one.error_share ?? 0), requests(row) ? 0 : NaN) },
  { title: "p50", unit: "ms", value: (row) => latency(row, "p50") },
  { title: "p95", unit: "ms", value: (row) => latency(row, "p95") },
  { title: "In flight", unit: "count", value: (row) => queues[row.name]?.in_flight ?? row.in_flight,
    show: (row, format) => html`${format(queues[row.name]?.in_flight ?? row.in_flight)}${queues[row.name]?.waiting > 0 && html`<small
      class="warn below">${whole(queues[row.name].waiting)} waiting</small>`}` },
  { title: "Details", wide: true, value: (row) => [row.detail, ...row.warnings,
    ...Object.entries(row.failed_calls).map(([name, count]) => `${counted(count, "failed call")}: ${name}`)].filter(Boolean).join("; ") },
];

const REASONS = [
  { title: "Reason", value: (row) => row.reason, show: (row) => html`<${Link}
    href=${link("/dashboard/requests", { unguided: row.reason })}><code>${row.reason}</code><//>` },
  { title: "Caused by", value: (row) => CAUSES[row.cause] ?? row.cause },
  { title: "Requests", unit: "count", value: (row) => row.requests },
  { title: "Share", unit: "share", value: (row) => row.share },
];

const REJECTIONS = [
  { title: "Error", value: (row) => row.error, show: (row) => html`<code>${row.error}</code>` },
  { title: "Status", value: (row) => String(row.status) },
  { title: "Tenant", value: (row) => row.tenant ?? "unknown" },
  { title: "Requests", unit: "count", value: (row) => row.requests },
];

/** Rejected requests have no receipt, so they are in no other figure. */
const Rejections = ({ of }) => html`<${Card} title="Rejected requests" note=${of
  ? `${counted(of.total, "request")} ${of.total === 1 ? "was" : "were"} rejected from ${toMinute(of.since)} to ${toMinute(of.until)} UTC, before a receipt existed. They cost nothing and are in no other figure.${of.ignored.length
    ? ` The filter ${of.ignored.join(", ")} does not apply: rejections have none.` : ""}`
  : "Redis is unavailable, so rejections are not known."}>
  ${of && html`<${Table} caption="Rejected requests" columns=${REJECTIONS} rows=${of.rows} id=${(row) => `${row.status} ${row.error} ${row.tenant}`}
    sort=${["Requests", true]} empty=${html`<${Empty} title="No request was rejected.">Nothing to do.<//>`} />`}<//>`;

/** Return a color for each name: the one that its letters select, or the next one that is free. The order has no influence. */
function colorsOf(names) {
  const taken = {};
  for (const name of [...names].sort()) {
    let at = [...name].reduce((sum, one) => (31 * sum + one.codePointAt(0)) % 9973, 0) % PALETTE.length;
    while (Object.values(taken).includes(PALETTE[at])) at = (at + 1) % PALETTE.length;
    taken[name] = PALETTE[at];
  }
  return taken;
}

/** The most frequent names as series of bars, the others as one. `of` returns the counts of a row by name. */
function byName(rows, of) {
  const totals = {};
  for (const row of rows) for (const [name, count] of Object.entries(of(row) ?? {})) totals[name] = (totals[name] ?? 0) + count;
  const top = Object.keys(totals).filter((name) => totals[name]).sort((a, b) => totals[b] - totals[a]);
  const shown = top.slice(0, PALETTE.length);
  const colors = colorsOf(shown);
  const series = shown.map((name) => ({ title: name, color: colors[name], of: (row) => of(row)[name] ?? 0 }));
  const rest = top.slice(PALETTE.length);
  return rest.length ? [...series, { title: "others", color: "--series-admission", of: (row) => rest.reduce((all, name) => all + (of(row)[name] ?? 0), 0) }] : series;
}

/** Return the mean ms of a stage over all requests, so that the stages add up. A request without it counts 0. */
function perRequest(row, stage) {
  const { count, mean } = row.latency_ms[stage] ?? {};
  const all = row.latency_ms.total?.count ?? 0;
  return all && count ? (mean * count) / all : 0;
}
const STAGES = [["Admission", "--series-admission", "admission"],
  ["Wait for batch", "--series-wait", "batch_wait"],
  ["Teacher", "--series-teacher", "teacher"],
  ["Hand-over", "--series-rest", "handover"]];
const rest = (row) => Math.max(0, STAGES.reduce((left, [, , stage]) => left - perRequest(row, stage), row.latency_ms.total?.mean ?? 0));

export function Reliability({ search }) {
  const range = period();
  const data = useData(() => api("/reliability"), search, { everyMs: 10_000 });
  const queues = useData(() => "/queue", "queue", { everyMs: 5_000 }).data?.teachers ?? {};
  const usage = useData(() => api("/usage", { granularity: range.granularity }), search);
  const chart = (title, more) => html`<${Chart} title=${title} rows=${usage.data.rows} range=${range} stacked ...${more} />`;
  return html`
    <${Loaded} of=${data}>${(all) => html`
      <p class="sentence">${counted(all.requests, "request")}: ${whole(all.answers)} answered, ${whole(sum(all.errors))} failed (${share(all.error_share)}), ${
        whole(all.disconnected)} disconnected by the caller. ${counted(all.shadows, "shadow")} apart. ${share(all.unguided_share)} without guidance by failure (threshold ${share(all.threshold)}).</p>
      <${Card} title="Engines" note=${`State, breaker and details as worker ${all.worker} sees them. Failed requests and latency are of the selected range. Calls in flight are those of all workers.`}>
        <${Table} caption="Engines" columns=${engines(queues)} rows=${all.engines} id=${(row) => row.name} empty=${html`<${Empty}
          title="No engine is configured.">Add one to <code>models</code> in config.yaml.<//>`} /><//>
      <${Card} title="Requests without guidance" note="Of requests to guided routes, by reason. Only failures count toward the threshold.">
        <${Table} caption="Requests without guidance" columns=${REASONS} rows=${all.unguided} id=${(row) => row.reason}
          sort=${["Requests", true]} empty=${html`<${Empty} title="Each request of a guided route got guidance.">Nothing to do.<//>`} /><//>
      <${Rejections} of=${all.rejections} />`}<//>
    ${usage.data && html`<div class="charts">
      ${chart("Failed requests", { unit: "count", series: byName(usage.data.rows, (row) => row.errors), empty: "No failed requests in this period.",
        children: data.data && `${whole(sum(data.data.errors))} of ${counted(data.data.requests, "request")} failed. Callers that disconnected are not included.` })}
      ${chart("Without guidance", { unit: "count", series: byName(usage.data.rows, (row) => row.unguided), empty: "No request without guidance in this period.",
        children: "Requests to guided routes that were answered without guidance, by reason." })}
      ${chart("Time by stage", { unit: "ms", series: [...STAGES.map(([title, color, stage]) => ({ title, color, of: (row) => perRequest(row, stage) })),
        { title: "Student and reply", color: "--series-student", of: rest }],
        children: `Answers took ${duration(usage.data.total.latency_ms.total?.mean)} on average, p95 ${duration(usage.data.total.latency_ms.total?.p95)}.` })}
      <${Chart} title="Calls in a batch" rows=${usage.data.rows} range=${range} unit="mean"
        series=${[{ title: "Mean size", color: "--series-teacher", of: (row) => row.batches.mean_size }]}>
        ${`${short(Math.round(usage.data.total.batches.count))} ${Math.round(usage.data.total.batches.count) === 1 ? "batch" : "batches"} with ${usage.data.total.batches.mean_size?.toFixed(1) ?? "-"} calls on average.`}<//>
    </div>`}`;
}
