// Quality: the verdict, the agreement with the teacher by route and length of guidance, and switched-off guidance.
import { useData } from "./api.js";
import { money, points, share, utc, whole } from "./format.js";
import { because, VERDICTS } from "./overview.js";
import { api } from "./state.js";
import { Badge, Card, Empty, html, Loaded, Table } from "./ui.js";

const LENGTHS = { 16: "to 16", 32: "17 to 32", 64: "33 to 64", 128: "65 to 128", more: "over 128", all: "all" };
const ORDER = ["16", "32", "64", "128", "more", "all"];
const names = [{ title: "Route", value: (row) => row.route }, { title: "Tenant", value: (row) => row.tenant }, { title: "Comparison", value: (row) => row.compare }];
const interval = (one, show) => (one && (one.low ?? null) !== null ? `${show(one.low)} to ${show(one.high)}` : "-");
const word = (verdict) => html`<${Badge} kind=${VERDICTS[verdict][1]}>${VERDICTS[verdict][0]}<//>`;

const ROUTES = [
  ...names,
  { title: "Verdict", value: (row) => row.verdict, show: (row) => word(row.verdict) },
  { title: "Compared", unit: "count", value: (row) => row.n },
  { title: "Agreement", unit: "share", value: (row) => row.agreement?.value ?? null },
  { title: "95 % interval", unit: "share", value: (row) => row.agreement?.low ?? null, show: (row, format) => interval(row.agreement, format) },
  { title: "Change, points", unit: "points", value: (row) => row.change?.value ?? null },
  { title: "min_agreement", unit: "share", value: (row) => row.bound },
];
const GAIN = [
  ...names,
  { title: "Teacher's tokens", value: (row) => ORDER.indexOf(row.length), show: (row) => LENGTHS[row.length] ?? row.length },
  { title: "Compared", unit: "count", value: (row) => row.samples },
  { title: "Guided", unit: "share", value: (row) => row.guided_teacher },
  { title: "Student alone", unit: "share", value: (row) => row.student_teacher },
  { title: "Gain, points", unit: "points", value: (row) => row.difference,
    show: (row, format) => html`<span class=${row.low > 0 ? "good" : row.high < 0 ? "bad" : ""}>${format(row.difference)}</span>` },
  { title: "95 % interval", unit: "points", value: (row) => row.low, show: (row, format) => (row.low === null ? "too few" : interval(row, format)) },
];

/** A switch: its scope, and the operator or rule that switched it off. */
function Off({ one }) {
  const scope = one.tenant === null ? "Everything" : one.route === null ? one.tenant : `${one.route} of ${one.tenant}`;
  const by = one.by === "quality" ? "the rule quality.min_agreement" : one.actor || "an operator";
  return html`<li><strong>${scope}</strong>${` since ${utc(one.since)}, by ${by}${one.reason ? `: ${one.reason}` : ""}`}</li>`;
}

const rule = html`<${Empty} title="No answers have been compared in this selection.">
  Give a guided route a <code>quality</code> rule in its policy, such as <code>quality: {sample: 0.05}</code>, and wait for its first samples.<//>`;

export function Quality({ search }) {
  const summary = useData(() => api("/summary"), search, { everyMs: 30_000 });
  const gain = useData(() => api("/quality"), search, { everyMs: 30_000 });
  return html`<${Loaded} of=${summary}>${({ quality }) => html`
    <p class="sentence">Quality is <b class=${VERDICTS[quality.verdict][1]}>${VERDICTS[quality.verdict][0]}</b> (n = ${whole(quality.n)}). ${because(quality)}</p>
    ${quality.ignored?.length > 0 && html`<p class="soft">The filter ${quality.ignored.join(", ")} does not apply: quality samples have no ${quality.ignored.join(", ")}.</p>`}
    <${Card} title="Verdict by route" note="Agreement of guided answers with the teacher's, against the period before.">
      <${Table} caption="Verdict by route" columns=${ROUTES} rows=${quality.routes}
        id=${(row) => `${row.tenant}/${row.route}/${row.compare}`} search="Search routes" empty=${rule} /><//>`}<//>
    <${Loaded} of=${gain}>${({ rows, guidance_off: off, spent_today: spent, since, until }) => html`
      ${off.length > 0 && html`<${Card} title="Switched-off guidance" note=${html`<code>gkt-gateway guidance on</code> switches it on again.`}><ul
        class="errors">${off.map((one) => html`<${Off} one=${one} />`)}</ul><//>`}
      <${Card} title="Gain through guidance" note=${[
        `Agreement with the teacher of guided answers and of the student alone, ${since} to ${until} (UTC).`,
        "Colored if the interval excludes 0.",
        `Comparisons cost ${money(spent.reduce((all, one) => all + Number(one.usd), 0))} today.`].join(" ")}>
        <${Table} caption="Gain through guidance" columns=${GAIN} rows=${rows}
          id=${(row) => `${row.tenant}/${row.route}/${row.compare}/${row.length}`} search="Search routes" empty=${rule} /><//>`}<//>`;
}
