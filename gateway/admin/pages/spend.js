// Spend: cost over time, tokens, and sums by tenant, route, key, tag, label or engines.
import { useData } from "./api.js";
import { CostChart } from "./overview.js";
import { Chart } from "./chart.js";
import { column, counted, money, saved, savedKind, share, sum, whole } from "./format.js";
import { api, labelFilter, labelParameter, period, setParameters } from "./state.js";
import { Card, Empty, Facts, html, Loaded, Segments, Table } from "./ui.js";

const GROUPS = [["tenant", "Tenants"], ["route", "Routes"], ["key", "Keys"], ["tag", "Tags"], ["teacher,student", "Engines"]];

const titleOf = (name) => name.replace("label:", "").replace(/^./, (first) => first.toUpperCase());

/** The columns of sums. Those by tag and label have fewer figures. */
const columns = (by, few) => [
  ...by.split(",").map((name) => ({ title: titleOf(name), value: (row) => row[name] || "none" })),
  { title: "Requests", unit: "count", value: (row) => row.requests },
  { title: "Failed", unit: "count", value: (row) => (few ? row.errors : sum(row.errors)) },
  { title: "Tokens written", unit: "count", value: (row) => row.output_tokens ?? row.tokens.teacher.output + row.tokens.student.output },
  ...(few ? [] : [{ title: "Teacher's share", unit: "share", value: (row) => row.teacher_token_share }]),
  { title: "Cost", unit: "usd", value: (row) => Number(row.cost_usd) },
  { title: "Teacher alone", unit: "usd", value: (row) => Number(row.baseline_usd) },
  { title: "Saved", unit: "usd", value: (row) => Number(row.savings_usd), show: (row, format) => html`<span
    class=${savedKind(row)}>${saved(row, format)}</span>` },
  { title: "Saved, %", unit: "share", value: (row) => (Number(row.baseline_usd) && !row.savings_about_zero ? Number(row.savings_usd) / Number(row.baseline_usd) : null) },
  ...(few ? [] : [{ title: "Failed requests", unit: "usd", value: (row) => Number(row.failed_usd) },
    { title: "Measuring", unit: "usd", value: (row) => Number(row.measuring_usd) }]),
];

const TOKENS = [["Teacher read", "--series-baseline", "teacher", true], ["Teacher wrote", "--series-lost", "teacher", false],
  ["Student read", "--series-cost", "student", true], ["Student wrote", "--series-saved", "student", false]];
const read = ({ input, cached, cache_write }) => input + cached + cache_write;

/** The identity of the amounts, with the number of requests of each cost, and the parts of the savings. */
function Sum({ total }) {
  const show = column("usd", [total.baseline_usd, total.cost_usd, total.savings_usd]);
  const minus = (name, number, usd) => [`\u2212 ${name} (${whole(number)})`, show(usd)];
  const of = (...classes) => classes.reduce((all, one) => all + Number(total.savings_classes[one]?.savings_usd ?? 0), 0);
  return html`<${Card} title="How the amounts add up" note="The teacher alone counts for answers whose savings count. The baseline of other answers is their own cost: they save nothing. Failed requests and measuring have no baseline: they cost.">
    <${Facts} items=${[
      ["Teacher alone", show(total.baseline_usd)],
      minus("Answers", total.answers, total.answers_usd),
      minus("Disconnected by the caller", total.disconnected, total.disconnected_usd),
      minus("Failed requests", sum(total.errors), total.failed_usd),
      minus("Measuring, shadows", total.shadows, total.measuring_usd),
      ["= Saved", `${show(total.savings_usd)} \u00b1 ${show(total.savings_error_usd)}`],
      ["Saved by guidance", show(of("guided"))],
      ["Saved by student by policy", show(of("student_by_policy"))],
      ["Reported by devices, not verified", show(of("reported"))],
      ["Other unguided answers", show(of("teacher_unavailable", "not_guidable"))],
      ["Failed requests and measuring", show(of("failed", "measuring"))],
    ]} /><//>`;
}

/** A sentence on what the sums of the period contain. */
function notes(total) {
  const unavailable = total.savings_classes?.teacher_unavailable?.requests;
  const reported = total.savings_classes?.reported;
  return [
    total.baseline_estimated ? `The teacher's cost is an estimate for ${whole(total.baseline_estimated)} of ${counted(total.requests, "request")},` : "",
    total.baseline_estimated ? `with an error of up to ${money(total.savings_error_usd)}.` : "",
    unavailable ? `The teacher was unavailable for ${counted(unavailable, "request")} without savings.` : "",
    reported ? `${money(reported.savings_usd)} of the savings were reported by devices and not verified.` : "",
    Number(total.measuring_usd) ? `${money(total.measuring_usd)} was spent on measuring (shadows, quality samples).` : "",
  ].filter(Boolean).join(" ");
}

const written = ({ tokens, teacher_token_share: part }) => `The teacher wrote ${counted(tokens.teacher.output, "token")}, the student ${
  whole(tokens.student.output)}: the teacher's share of the answers is ${share(part)}.`;

export function Spend({ search, parameters }) {
  const range = period();
  const policies = useData(() => "/policies", "policies", { everyMs: 60_000 }).data?.data ?? [];
  const labeled = Boolean(labelFilter()[1]);
  const names = new Set(policies.filter((one) => [null, one.tenant].includes(parameters.get("tenant"))).flatMap((one) => one.labels ?? []));
  const options = [...GROUPS.filter(([one]) => !labeled || !one.includes(",")), ...[...names].sort().map((one) => [`label:${one}`, titleOf(one)])];
  const by = options.some(([one]) => one === parameters.get("by")) ? parameters.get("by") : "tenant";
  const few = labeled || by === "tag" || by.startsWith("label:");
  const series = useData(() => api("/usage", { granularity: range.granularity, ...labelParameter() }), search.replace(/&?by=[^&]*/, ""));
  const sums = useData(() => api("/usage", labelParameter()), search.replace(/&?by=[^&]*/, "")).data;
  const groups = useData(() => api("/usage", { by, ...labelParameter() }), search + by);
  return html`
    <${Loaded} of=${series}>${({ rows }) => sums && html`
      <${CostChart} rows=${rows} total=${sums.total} range=${range} />
      ${sums.total.savings_classes && html`<${Sum} total=${sums.total} />`}
      <p class="soft">${notes(sums.total)}</p>`}<//>
    <${Card} title="Sums" side=${html`<div class="row"><${Segments} label="Group by" options=${options} value=${by}
      onChange=${(one) => setParameters({ by: one })} />
      <a href=${api("/usage", { by, format: "csv", ...labelParameter() })} download>Download CSV</a></div>`}>
      <${Loaded} of=${groups}>${({ rows }) => html`<${Table} key=${by} caption="Sums by ${by.replace(",", " and ").replace("label:", "")}"
        columns=${columns(by, few)} rows=${rows} id=${(row) => by.split(",").map((one) => row[one]).join("/")}
        sort=${["Cost", true]} search="Search" empty=${html`<${Empty}
          title=${by === "tag" ? "No requests with tags in this period." : "No requests in this period."}>
          ${by === "tag" ? "Callers set tags with the header x-gkt-tags. " : ""}Select a longer range, or clear the filter.<//>`} />`}<//>
    <//>
    ${!labeled && series.data && sums && html`<${Chart} title="Tokens" rows=${series.data.rows} range=${range} unit="short" stacked
      series=${TOKENS.map(([title, color, role, reads]) => ({ title, color, of: (row) => (reads ? read(row.tokens[role]) : row.tokens[role].output) }))}>
      ${written(sums.total)}<//>`}`;
}
