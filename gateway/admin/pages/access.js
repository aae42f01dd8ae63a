// Keys and budgets: create, rotate and revoke keys, raise budgets, and the audit trail.
import { useEffect, useRef, useState } from "./vendor/hooks.js";
import { may, session, useData } from "./api.js";
import { money, toMinute, utc } from "./format.js";
import { Meter } from "./overview.js";
import { api } from "./state.js";
import { Badge, Card, Copy, Dialog, Empty, Field, html, Loaded, RequestForm, Select, Table } from "./ui.js";

const KINDS = { active: "good", expired: "", revoked: "", replaced: "warn" };
const LENGTH_MS = { h: 3_600_000, d: 86_400_000, w: 7 * 86_400_000 };
const path = (...parts) => `/${parts.map(encodeURIComponent).join("/")}`;
const limits = (of) => Object.entries(of ?? {}).map(([name, value]) => `${name} ${value}`).join(", ");
/** Columns without the last one, which has buttons, for persons who may not use them. */
const allowed = (columns) => (may("operator") ? columns : columns.slice(0, -1));
const Actions = ({ children }) => html`<span class="actions">${children}</span>`;

/** Part of the period of a budget that has elapsed, from 0 to 1; null for a sliding window. */
function elapsed(budget) {
  const match = /^(\d+)(h|d|w|mo)$/.exec(budget.budget_duration);
  if (!budget.ends || !match) return null;
  const ends = Date.parse(budget.ends);
  const start = new Date(ends);
  if (match[2] === "mo") start.setUTCMonth(start.getUTCMonth() - Number(match[1]));
  else start.setTime(ends - Number(match[1]) * LENGTH_MS[match[2]]);
  return Math.min(1, Math.max(0, (Date.now() - start) / (ends - start)));
}

const limitOf = (budget) => Number(budget.max_budget) + Number(budget.raise?.usd ?? 0);
const part = (budget) => (limitOf(budget) > 0 ? (Number(budget.spent_usd) + Number(budget.reserved_usd)) / limitOf(budget) : null);

/** Return the forecast at the present rate of spending. */
function forecast(budget) {
  const [used, time] = [part(budget), elapsed(budget)];
  if (budget.left_usd <= 0) return html`<${Badge} kind="bad">used up<//>`;
  if (time === null || !used || time < 0.01) return "-";
  if (used <= time) return html`<${Badge} kind="good">lasts<//>`;
  const left = (Date.parse(budget.ends) - Date.now()) / (1 - time || 1);
  return html`<${Badge} kind="warn">used up ${toMinute(Date.now() + left * ((time * (1 - used)) / used))} UTC<//>`;
}

const keyColumns = (open) => allowed([
  { title: "Key", value: (row) => row.id },
  { title: "Tenant", value: (row) => row.tenant },
  { title: "Status", value: (row) => row.status, show: (row) => html`<${Badge} kind=${KINDS[row.status] ?? "warn"}>${row.status}<//>` },
  { title: "Begins with", value: (row) => row.hint, show: (row) => (row.hint ? html`<code>${row.hint}</code>` : "-") },
  { title: "Kept in", value: (row) => (row.source === "file" ? "policy file" : "Redis") },
  { title: "Last used, UTC", unit: "time", value: (row) => row.last_used ?? null, show: (row) => toMinute(row.last_used) },
  { title: "Expires, UTC", unit: "time", value: (row) => row.expires, show: (row) => toMinute(row.expires) },
  { title: "Limits", wide: true, value: (row) => [
    row.models && `routes ${row.models.join(", ")}`,
    limits(row.limits),
    row.budget && `budget ${money(row.budget.max_budget)}`
  ].filter(Boolean).join("; ") },
  { title: "Actions", plain: true, value: () => "", show: (row) => row.source === "redis" && ["active", "grace"].includes(row.status) && html`<${Actions}>
    ${row.status === "active" && html`<button type="button" aria-label="Rotate ${row.tenant} ${row.id}" onClick=${() => open({ kind: "rotate", row })}>Rotate</button>`}
    <button type="button" aria-label="Revoke ${row.tenant} ${row.id}" onClick=${() => open({ kind: "revoke", row })}>Revoke</button><//>` },
]);

/** The key, or the label and its value, of a budget in words. */
const ownerOf = (row) => (row.label ? `, ${row.label} ${row.value}` : row.key ? `, key ${row.key}` : "");

const budgetColumns = (open) => allowed([
  { title: "Budget", value: (row) => `${row.tenant}${ownerOf(row)}` },
  { title: "Used", unit: "share", value: part, show: (row, format) => html`<${Meter} value=${part(row) ?? 0} mark=${elapsed(row)}
    label=${row.tenant} soft=${row.soft_budget ? row.soft_budget / limitOf(row) : 0.8} />${format(part(row))}` },
  { title: "Spent", unit: "usd", value: (row) => row.spent_usd },
  { title: "Left", unit: "usd", value: (row) => row.left_usd },
  { title: "Limit", unit: "usd", value: limitOf, show: (row, format) => html`${format(limitOf(row))}${row.raise ? html`<small
    class="below">+${format(row.raise.usd)} until ${toMinute(row.raise.until)} UTC</small>` : ""}` },
  { title: "Period ends, UTC", unit: "time", value: (row) => row.ends, show: (row) => (row.ends ? toMinute(row.ends) : `sliding, ${row.budget_duration}`) },
  { title: "At this rate", value: (row) => part(row), show: forecast },
  { title: "Actions", plain: true, value: () => "", show: (row) => html`<${Actions}><button type="button"
    aria-label="Raise ${row.tenant} ${row.key ?? row.value ?? ""}" onClick=${() => open({ kind: "raise", row })}>Raise</button><//>` },
]);

const named = (row) => (row.key ? `${row.tenant} (key ${row.key})` : row.tenant);
const unread = ({ unreadable = [], keys_current: current = true }) => html`${unreadable.length > 0 && html`<p class="small" role="status"><${Badge}
  kind="bad">Incomplete<//> A node of Redis does not answer. These budgets cannot be read: ${unreadable.slice(0, 20).map(named).join(", ")}${unreadable.length > 20
    ? ` and ${unreadable.length - 20} more`
    : ""}.</p>`}${!current && html`<p class="small" role="status"><${Badge} kind="warn">Old keys<//> The node of Redis with the API keys does not answer. The last changes may be missing.</p>`}`;

const state = (value) => (value ? Object.entries(value).map(([name, one]) => `${name}: ${typeof one === "object" && one ? JSON.stringify(one) : one}`).join(", ") : "-");
const AUDIT = [
  { title: "At, UTC", value: (row) => Date.parse(row.at), show: (row) => utc(row.at).replace(" UTC", "") },
  { title: "Actor", value: (row) => row.actor },
  { title: "Action", value: (row) => row.action, show: (row) => html`<code>${row.action}</code>` },
  { title: "Subject", value: (row) => [row.tenant, row.subject].filter(Boolean).join(", ") || "everything" },
  { title: "Before", wide: true, value: (row) => state(row.before) },
  { title: "After", wide: true, value: (row) => state(row.after) },
];

const expires = html`<${Field} label="Expires" help="A duration or a date, such as 90d or 2027-06-30. Empty: never."><input name="expires" placeholder="never" autocomplete="off" /><//>`;
const filled = (fields) => Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== ""));

/** Return the body of POST /keys from the fields of the form. */
function newKey({ models, rpm_limit: rpm, tpm_limit: tpm, max_budget: usd, budget_duration: length, ...rest }) {
  const numbers = filled({ rpm_limit: rpm && Number(rpm), tpm_limit: tpm && Number(tpm) });
  return filled({
    ...rest,
    models: models.trim() ? models.split(",").map((one) => one.trim()) : "",
    limits: Object.keys(numbers).length ? numbers : "",
    budget: usd ? { max_budget: Number(usd), budget_duration: length } : "",
  });
}

const Create = ({ tenants, tenant, done }) => html`<${RequestForm} action="Create key" path="/keys" toBody=${newKey} done=${done}>
  <${Field} label="Tenant"><${Select} name="tenant" options=${[...new Set([tenant ?? tenants[0], ...tenants])].map((one) => [one])} /><//>
  <${Field} label="Id" help="The name of the key in usage and receipts."><input name="id" required autocomplete="off" spellcheck="false" /><//>
  ${expires}
  <${Field} label="Routes" help="Separated by commas. Empty: all."><input name="models" placeholder="all" autocomplete="off" /><//>
  <${Field} label="Requests per minute"><input name="rpm_limit" type="number" min="1" placeholder="no limit" /><//>
  <${Field} label="Tokens per minute"><input name="tpm_limit" type="number" min="1" placeholder="no limit" /><//>
  <${Field} label="Budget, USD"><input name="max_budget" type="number" min="0" step="any" placeholder="none" /><//>
  <${Field} label="Budget period"><${Select} name="budget_duration" options=${[["1mo", "a month"], ["7d", "7 days"], ["1d", "a day"]]} /><//>
<//>`;

const Rotate = ({ row, done }) => html`<p>The gateway creates a new key and accepts the old one until the grace period ends.</p>
  <${RequestForm} action="Rotate key" path=${`${path("keys", row.tenant, row.id)}/rotate`} toBody=${filled} done=${done}>
    <${Field} label="Grace period" help="The old key stays valid for this time: 0s to 30d."><input name="grace"
      defaultValue="1h" required /><//>${expires}<//>`;

const Revoke = ({ row, done }) => html`<p>Requests with this key are rejected from now on. A revoked key cannot be restored.</p>
  <${RequestForm} danger action="Revoke key" method="DELETE" path=${path("keys", row.tenant, row.id)} done=${done} />`;

const raisePath = (row) => `${path("budgets", row.tenant)}${row.label ? path("labels", row.label) : row.key ? path("keys", row.key) : ""}/raise`;
const RaiseForm = ({ row, done }) => html`<p>The raise adds to the limit of ${money(row.max_budget)} for a time. 0 ends a raise.</p>
  <${RequestForm} action="Raise budget" path=${raisePath(row)}
    done=${done} toBody=${(fields) => filled({ ...fields, usd: Number(fields.usd), value: row.value ?? "" })}>
    <${Field} label="Amount, USD"><input name="usd" type="number" min="0" step="any" required defaultValue=${row.raise?.usd ?? ""} /><//>
    <${Field} label="For" help="Such as 7d. Empty: to the end of the period."><input name="for" placeholder="the period" /><//>
    <${Field} label="Reason" help="For the audit trail." wide><input name="reason" maxlength="500" /><//><//>`;

const Secret = ({ reply }) => html`<p><strong>Copy the key now. The gateway stores only its hash and cannot show it again.</strong></p>
  <${Copy} text=${reply.key} label="New key" />
  <p class="soft small">Tenant ${reply.tenant}, id ${reply.id}${reply.expires ? `, expires ${utc(reply.expires)}` : ""}${reply.replaced
    ? `. The old key is now ${reply.replaced.id}, valid until ${utc(reply.replaced.expires)}.`
    : "."}</p>`;

const TITLES = { create: () => "New key", rotate: (row) => `Rotate ${row.id} of ${row.tenant}`, revoke: (row) => `Revoke ${row.id} of ${row.tenant}?`,
  raise: (row) => `Raise the budget of ${row.label ? `${row.label} ${row.value} of ` : row.key ? `key ${row.key} of ` : ""}${row.tenant}`, secret: () => "The new key" };
const FORMS = { create: Create, rotate: Rotate, revoke: Revoke, raise: RaiseForm, secret: Secret };

export function Access({ search, parameters }) {
  const [dialog, open] = useState(null);
  const role = session.use()?.role;
  const tenant = parameters.get("tenant");
  const load = (route, more) => useData(() => api(route, more, { timeless: true, only: ["tenant"] }), search);
  const [keys, budgets] = [load("/keys", { limit: 500 }), load("/budgets", { limit: 500 })];
  const ofLabels = useData(() => (tenant ? path("budgets", tenant, "labels") : null), `labels ${search}`).data?.budgets ?? [];
  const audit = useData(() => (may("admin") ? api("/audit", { limit: 200 }, { timeless: true, only: ["tenant"] }) : null), `${search} ${role}`);
  const policies = useData(() => "/policies", "policies", { everyMs: 60_000 });
  const tenants = (policies.data?.data ?? []).map((one) => one.tenant);
  const changed = useRef(false);
  useEffect(() => { // the button of a revoked key is gone, and the focus with it
    if (changed.current && document.activeElement === document.body) document.getElementById("main").focus({ preventScroll: true });
    if (!dialog) changed.current = false;
  }, [keys.data]);
  const done = (reply) => {
    changed.current = true;
    for (const one of [keys, budgets, audit]) one.reload();
    open(["create", "rotate"].includes(dialog.kind) ? { kind: "secret", reply } : null);
  };
  const readOnly = role && !may("operator") ? ` Your role ${role} cannot change them: that needs the role operator.` : "";
  const more = (reply) => reply.next && html`<p class="soft small">Only the first 500 are shown. Select a tenant to see the others.</p>`;
  return html`
    <${Card} title="Keys" note="Keys of callers. Keys of policy files are changed in their file.${readOnly}" side=${may("operator")
      && html`<button type="button" class="primary" disabled=${!tenants.length} onClick=${() => open({ kind: "create" })}>New key</button>`}>
      <${Loaded} of=${keys}>${(reply) => html`<${Table} caption="Keys" columns=${keyColumns(open)} rows=${reply.keys}
        id=${(row) => `${row.tenant}/${row.id}`} search="Search keys" empty=${html`<${Empty}
        title="No keys yet.">${may("operator") ? 'Create one for a tenant with "New key".' : "An operator can create one for a tenant."}<//>`} />${more(reply)}`}<//><//>
    <${Card} title="Budgets" note="The bar is the spent and reserved part. The line in it is the elapsed part of the period.${readOnly}">
      <${Loaded} of=${budgets}>${(reply) => html`<${Table} caption="Budgets" columns=${budgetColumns(open)} rows=${[...reply.budgets, ...ofLabels]}
        id=${(row) => `${row.tenant}/${row.key ?? ""}/${row.label ?? ""}/${row.value ?? ""}`} sort=${["Used", true]} search="Search budgets"
        empty=${reply.unreadable?.length ? html`<${Empty} title="No budget can be read.">Wait until Redis answers.<//>` : html`<${Empty}
        title="No tenant and no key has a budget.">Set <code>budget</code> in a policy file, or give a new key a budget.<//>`} />${more(reply)}${unread(reply)}`}<//><//>
    <${Card} title="Audit trail" note="Actions of operators and of automatic rules, the newest first.">
      ${role && !may("admin") ? html`<${Empty} title="The audit trail needs the role admin.">Your role is ${role}.<//>` : html`<${Loaded} of=${audit}>${({ entries }) => html`<${Table} caption="Audit trail" columns=${AUDIT}
        rows=${entries} id=${(row) => row.id} search="Search the audit trail"
        empty=${html`<${Empty} title="No action has been recorded.">Creating, rotating and revoking keys and raising budgets appear here.<//>`} />`}<//>`}<//>
    ${dialog && html`<${Dialog} key=${dialog.kind} title=${TITLES[dialog.kind](dialog.row)} onClose=${() => open((now) => (now === dialog ? null : now))}>
      <${FORMS[dialog.kind]} ...${dialog} tenants=${tenants} tenant=${tenant} done=${done} /><//>`}`;
}
