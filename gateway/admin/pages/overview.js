// The overview: one sentence, three tiles, problems, and cost over time.
import { useData } from "./api.js";
import { Chart } from "./chart.js";
import { column, counted, money, points, saved, savedKind, share, toMinute, utc, whole } from "./format.js";
import { api, link, period } from "./state.js";
import { Badge, Card, Empty, html, Link, Loaded } from "./ui.js";

export const VERDICTS = { holding: ["holding", "good"], falling: ["falling", "bad"], not_measured: ["not measured", ""] };

/** The reason of a verdict in words. */
export function because(quality) {
  const { reason, n, agreement, change, previous_n: before } = quality;
  const interval = (one, show) => `${show(one.low)} to ${show(one.high)}`;
  return {
    switched_off: "The quality sampler has switched guidance off for a route.",
    below_bound: "A route agrees with the teacher less than its min_agreement allows.",
    change: change && `Agreement changed by ${points(change.value)} points (95 % interval ${interval(change, points)}) against ${counted(before, "sample")} before.`,
    above_bound: agreement && "Each measured route agrees with the teacher more than its min_agreement asks for.",
    no_samples: "No answer was compared in this period. Give a guided route a quality rule.",
    too_few: `${counted(n, "sample")} cannot decide yet. Raise "sample" of the quality rule, or select a longer range.`,
  }[reason] ?? "";
}

const spentMore = (change) => (change > 0 ? "more" : "less");

export function sentence({ spent, saved: save, quality, requests }, range) {
  if (!requests.total) return html`${range.words}: no requests.`;
  const [spentText, usd, error] = [spent.usd, save.usd, save.error_usd].map(column("usd", [spent.usd, save.usd, save.error_usd]));
  const amount = save.about_zero
    ? html`saved <b>about 0</b> (${usd} \u00b1 ${error})`
    : html`saved <b class=${Number(save.usd) < 0 ? "bad" : "good"}>${usd} \u00b1 ${error}</b>`;
  const [word, kind] = VERDICTS[quality.verdict];
  return html`${range.words}: spent <b>${spentText}</b>, ${amount}; quality <b class=${kind}>${word}</b>.`;
}

const Tile = ({ title, value, kind = "", children, to }) => html`<section class="card tile" aria-label=${title}>
  <h2>${title}</h2><p class="big ${kind}">${value}</p>${children}
  <p class="small more"><${Link} href=${link(to)}>Details<span class="visually-hidden">: ${title}</span><//></p>
</section>`;

function SpentTile({ spent }) {
  const { budget } = spent;
  const part = budget ? (Number(budget.spent_usd) + Number(budget.reserved_usd)) / Number(budget.limit_usd) : null;
  return html`<${Tile} title="Spent" value=${money(spent.usd)} to="/dashboard/spend">
    <p class="small soft">${spent.change === null
      ? "No costs in the period before."
      : `${share(Math.abs(spent.change))} ${spentMore(spent.change)} per hour than before (${money(spent.previous_usd)}).`}</p>
    <p class="small soft">${parts([["answers", spent.answers_usd], ["disconnected", spent.disconnected_usd],
      ["failed requests", spent.failed_usd], ["measuring", spent.measuring_usd]])}</p>
    ${budget ? html`<${Meter} value=${part} label="Budget" /><p
      class="small">${money(Number(budget.spent_usd))} of ${money(budget.limit_usd)} budget${budget.budgets > 1 ? `, ${budget.budgets} tenants` : ""}${budget.ends
        ? `, until ${toMinute(budget.ends)} UTC` : ""}</p>`
      : html`<p class="small soft">No budget applies to this selection.</p>`}
  <//>`;
}

/** Return the parts of an amount as text, without those that are 0. */
const parts = (named) => {
  const present = named.filter(([, amount]) => Number(amount));
  const show = column("usd", present.map(([, amount]) => amount));
  return present.map(([name, amount]) => `${name} ${show(amount)}`).join(", ");
};

/** A bar for a part of 1, with an optional mark such as the elapsed part of a period. */
export const Meter = ({ value, mark = null, label, soft = 0.8 }) => html`<span
  class="meter" role="img" data-kind=${value >= 1 ? "bad" : value >= soft ? "warn" : ""}
  aria-label="${label}: ${share(value)} used${mark === null ? "" : `, ${share(mark)} of the period elapsed`}">
  <i style=${{ width: `${Math.min(100, 100 * value)}%` }}></i>${mark !== null && html`<b style=${{ left: `${100 * mark}%` }}></b>`}</span>`;

const SavedTile = ({ saved: of, spent, requests }) => {
  const part = !requests.total ? "No requests in this period."
    : of.share === null ? "The error is as large as the amount."
    : `${share(of.share)} of the teacher alone (${money(of.baseline_usd)}).`;
  const show = column("usd", [of.usd, of.error_usd]);
  const text = { ...of, savings_about_zero: of.about_zero, savings_usd: of.usd };
  return html`<${Tile} title="Saved" value=${saved(text)} kind=${savedKind(text)} to="/dashboard/spend">
    <p class="small">${of.about_zero ? `${show(of.usd)} ` : ""}\u00b1 ${show(of.error_usd)}</p>
    ${Number(of.reported.usd) ? html`<p class="small">${money(of.measured.usd)} measured by the gateway, ${
      money(of.reported.usd)} reported by devices.</p>` : ""}
    <p class="small soft">${parts([["guidance", of.guided.usd], ["student by policy", of.student_by_policy.usd],
      ["reported by devices", of.reported.usd],
      ["other unguided answers", of.unguided_usd], ["failed requests", -spent.failed_usd], ["measuring", -spent.measuring_usd]])}</p>
    <p class="small soft">${part}${(of.previous_usd ?? null) === null ? "" : ` Before: ${money(of.previous_usd)}.`}</p>
  <//>`;
};

const QualityTile = ({ quality }) => {
  const [word, kind] = VERDICTS[quality.verdict];
  return html`<${Tile} title="Quality" value=${word[0].toUpperCase() + word.slice(1)} kind=${kind} to="/dashboard/quality">
    <p class="small">n = ${whole(quality.n)}${quality.agreement
      ? `, agreement ${share(quality.agreement.value)} (${share(quality.agreement.low)} to ${share(quality.agreement.high)})` : ""}</p>
    <p class="small soft">${because(quality)}</p>
  <//>`;
};

const REASONS = (reasons) => Object.entries(reasons).sort((a, b) => b[1] - a[1]).map(([name, count]) => `${name} ${whole(count)}`).join(", ");

/** The text of each kind of banner: its first sentence and the rest. */
const BANNERS = {
  engine: (one) => [`Engine ${one.engine} is unavailable${one.since ? ` since ${utc(one.since)}` : ""}.`,
    `Reason: ${one.reason}. Circuit breaker: ${one.breaker}.`],
  unguided: (one) => [`${share(one.share)} of ${counted(one.requests, "request")} ${one.requests === 1 ? "is" : "are"} without guidance${one.since ? ` since ${utc(one.since)}` : ""}.`,
    `The threshold is ${share(one.threshold)}. Reasons: ${REASONS(one.reasons)}.`],
};

function Banner({ banner }) {
  const [title, text] = BANNERS[banner.kind]?.(banner) ?? [`${banner.kind}.`, ""];
  return html`<div class="banner" role="alert" aria-relevant="additions"><strong>${title}</strong> ${text}${" "}
    <${Link} href=${link("/dashboard/reliability")}>Reliability<//></div>`;
}

/** `total` has the exact sums of the range: the rows may cover whole days or hours beyond it. */
export function CostChart({ rows, total, range }) {
  const [cost, baseline, difference] = ["cost_usd", "baseline_usd", "savings_usd"].map((name) => Number(total[name]));
  const show = column("usd", [cost, baseline, difference]);
  return html`<${Chart} title="Cost compared with the teacher alone" rows=${rows} range=${range} unit="usd" series=${[
    { title: "Cost", color: "--series-cost", of: (row) => Number(row.cost_usd), band: true },
    { title: "Teacher alone", color: "--series-baseline", dashed: true, of: (row) => Number(row.baseline_usd) },
  ]}>${`${counted(total.requests, "request")} cost ${show(cost)}. The teacher alone would have cost ${show(baseline)}: saved ${show(difference)}.`}<//>`;
}

export function Overview({ search }) {
  const range = period();
  const summary = useData(() => api("/summary"), search);
  const usage = useData(() => api("/usage", { granularity: range.granularity }), search);
  return html`<${Loaded} of=${summary}>${(data) => html`
    <p class="sentence">${sentence(data, range)}</p>
    <p class="failures ${data.failures.failed ? "bad" : "soft"}">Last 15 minutes: ${data.failures.text}.</p>
    ${data.banners.map((one) => html`<${Banner} key=${`${one.kind} ${one.engine ?? one.name}`} banner=${one} />`)}
    <div class="tiles"><${SpentTile} ...${data} /><${SavedTile} ...${data} /><${QualityTile} ...${data} /></div>
    ${!data.requests.total && html`<${Card} title="First steps"><${Empty} title="No requests in this selection.">
      Send a request with an API key, select a longer range, or try a question in the <${Link} href=${link("/playground")}>playground<//>.<//><//>`}
    <${Traffic} requests=${data.requests} />
  `}<//>
  ${usage.data && summary.data && html`<${CostChart} rows=${usage.data.rows} total=${totalOf(summary.data)} range=${range} />`}`;
}

const totalOf = ({ spent, saved: of, requests }) => ({
  requests: requests.total, cost_usd: spent.usd, baseline_usd: of.baseline_usd, savings_usd: of.usd });

const Traffic = ({ requests }) => html`<dl class="strip card">
  <div><dt>Requests</dt><dd>${whole(requests.total)}</dd></div>
  <div><dt>Answered</dt><dd>${whole(requests.answers)}</dd></div>
  <div><dt>Failed</dt><dd>${requests.errors ? html`<${Badge} kind="bad">${whole(requests.errors)} (${share(requests.error_share)})<//>` : "0"}</dd></div>
  <div><dt>Disconnected by the caller</dt><dd>${whole(requests.disconnected)}</dd></div>
  <div><dt>Guided</dt><dd>${whole(requests.guided)}</dd></div>
  <div><dt>Without guidance by failure</dt><dd>${share(requests.unguided_share)}</dd></div>
  <div><dt>Shadows, not in requests</dt><dd>${whole(requests.shadows)}</dd></div>
</dl>`;
