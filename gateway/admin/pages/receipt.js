// The page of one request: its stages, cost, engines and shadows.
import { useData } from "./api.js";
import { column, duration, saved, savedKind, utc, whole } from "./format.js";
import { api } from "./state.js";
import { pathOf, RECEIPTS } from "./requests.js";
import { Badge, Card, Facts, html, Link, Loaded, Table } from "./ui.js";

/** Return the stages as [title, start, shown duration, color token, duration], in ms. The last stage is the remaining time. */
export function stages(receipt) {
  const { admission_ms: admission, batch_wait_ms: wait, teacher_ms: teacher, handover_ms, total_ms: total } = receipt.timings;
  const handover = teacher === undefined || teacher === null ? null : handover_ms; // without the teacher's call its start is unknown
  const parts = [];
  let at = 0;
  for (const [title, took, token] of [
    ["Admission", admission, "--series-admission"], ["Wait for batch", wait, "--series-wait"],
    ["Teacher", teacher, "--series-teacher"], ["Hand-over", handover, "--series-rest"]]) {
    if (took === undefined || took === null) continue;
    const from = Math.min(at, total);
    parts.push([title, from, Math.min(took, total - from), token, took]);
    at += took;
  }
  if (total > at) parts.push([receipt.student ? "Student and reply" : "Reply", at, total - at, "--series-student", total - at]);
  return parts;
}

function Waterfall({ receipt }) {
  const { total_ms: total, first_token_ms: first } = receipt.timings;
  const all = stages(receipt);
  const show = column("ms", all.map(([, , , , real]) => real));
  const percent = (ms) => `${(100 * ms) / (total || 1)}%`;
  return html`<dl class="lanes">${all.map(([title, from, took, token, real]) => html`<div key=${title}>
    <dt>${title}</dt>
    <dd class="lane" aria-hidden="true"><i
      style=${{ left: percent(from), width: percent(took), background: `var(${token})` }}></i>${(first ?? null) !== null && html`<b style=${{ left: percent(Math.min(first, total)) }}></b>`}</dd>
    <dd>${show(real)}</dd></div>`)}</dl>`;
}

const role = (part, money) => part && [`${part.model}: ${whole(part.input_tokens)} read`, `${whole(part.output_tokens)} written`,
  `${money(part.cost_usd)}${part.estimated ? " (estimate)" : ""}`, ...(part.shared ? [`shared (${part.shared})`] : [])].join(", ");

function Details({ receipt }) {
  const { timings, guidance, teacher, student, warmup, baseline_error_usd: error } = receipt;
  const least = Math.min(...[receipt.cost_usd, receipt.baseline_usd].map(Number).filter((usd) => usd > 0));
  const money = column("usd", [least]); // all amounts have the decimals of the smaller one
  const first = (timings.first_token_ms ?? null) === null ? "" : ` The first token came after ${duration(timings.first_token_ms)} (the line).`;
  return html`
    <${Card} title="Time" note=${`${utc(receipt.created * 1000)}: ${duration(timings.total_ms)} in total.${first}`}><${Waterfall} receipt=${receipt} /><//>
    <${Card} title="Cost"><${Facts} items=${[
      ["Cost", money(receipt.cost_usd)],
      [`${receipt.baseline_model} alone${receipt.baseline_estimated ? " (estimate)" : ""}`,
        money(receipt.baseline_usd) + (Number(error) ? ` \u00b1 ${money(error)}` : "")],
      ["Saved", receipt.savings_usd === undefined ? null : html`<span class=${savedKind(receipt)}>${saved(receipt, money)}</span>`],
      ["Savings class", receipt.savings_class],
      ["Measured baseline", receipt.measured && money(receipt.measured.baseline_usd)],
      ["Teacher", role(teacher, money)], ["Student", role(student, money)], ["Warm-up", role(warmup, money)],
      ["Failed calls", receipt.attempts?.map((one) => `${one.engine}: ${one.error}`).join("; ")],
    ]} /><//>
    <${Card} title="Request"><${Facts} items=${[
      ["Status", receipt.status === "ok" ? "ok" : html`<${Badge} kind="bad">${receipt.status}<//>`],
      ["Tenant", receipt.tenant], ["Key", receipt.key], ["Route", receipt.route],
      ["Labels", Object.entries(receipt.labels ?? {}).map(([name, value]) => `${name}: ${value}`).join(", ")],
      ["Mode", receipt.mode], ["Without guidance because", receipt.unguided_field ? `${receipt.unguided}: ${receipt.unguided_field}` : receipt.unguided],
      ["Finish reason", receipt.finish_reason === "length" ? "length: the answer is truncated" : receipt.finish_reason],
      ["Guidance", guidance && [`${whole(guidance.kept_tokens)} of ${whole(guidance.tokens)} tokens`, guidance.projection,
        `as ${guidance.placement}`, ...(guidance.cut_short ? [`cut short: ${guidance.cut_short}`] : [])].join(", ")],
      ["Hint", receipt.hint && (typeof receipt.hint === "string" ? receipt.hint : JSON.stringify(receipt.hint))],
      ["Batch", receipt.batch && `${receipt.batch.size} ${receipt.batch.size === 1 ? "call" : "calls"} (${receipt.batch.id})`],
      ["Variant", receipt.split?.variant], ["Budget", receipt.budget && `over its ${receipt.budget} limit`],
      ["Shadow of", receipt.shadow_of && html`<${Link} href=${pathOf(receipt.shadow_of)}>${receipt.shadow_of}<//>`],
      ["Guidance receipt", receipt.edge_of && html`<${Link} href=${pathOf(receipt.edge_of)}>${receipt.edge_of}<//>`],
    ]} /><//>
    ${receipt.shadows?.length > 0 && html`<${Card} title="Shadows and quality samples" note="Answers to this request that no caller got.">
      <${Table} caption="Shadows" columns=${RECEIPTS} rows=${receipt.shadows} id=${(row) => row.id} /><//>`}`;
}

/** The permalink of a request. The selected range and filter do not apply. */
export function Receipt({ id }) {
  const found = useData(() => api(`/receipts/${encodeURIComponent(id)}`, {}, { timeless: true, only: [] }), id, { everyMs: 60_000 });
  return html`<p class="row apart"><${Link} href=${pathOf()}>All requests<//><code>${id}</code></p>
    <${Loaded} of=${found}>${(receipt) => html`<${Details} receipt=${receipt} />`}<//>`;
}
