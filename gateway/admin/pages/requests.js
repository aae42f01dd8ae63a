// The list of requests with filters. Shadows and quality samples are nested below their request.
import { useEffect, useState } from "./vendor/hooks.js";
import { useData } from "./api.js";
import { saved, savedKind, whole } from "./format.js";
import { api, FILTERS, go, labelParameter, link, setParameters } from "./state.js";
import { Badge, Card, Empty, Field, html, Link, Loaded, Select, Table } from "./ui.js";

const OWN = ["status", "unguided", "min_cost", "max_cost", "before"];
/** Return the path of the list, or of one request. It keeps the filters of the list. */
export function pathOf(id = null) {
  const parameters = new URLSearchParams(location.search);
  const own = Object.fromEntries(OWN.map((name) => [name, parameters.get(name)]));
  return link(`/dashboard/requests${id === null ? "" : `/${encodeURIComponent(id)}`}`, own);
}

/** The short form of an id: its time and last digits; of a shadow its role. The link has the whole id. */
const brief = (id) => /-(shadow.*|edge)$/.exec(id)?.[1] ?? id.replace(/^req_(.{8}).*(.{4})$/, "$1\u2026$2");
const usd = (title, value, show) => ({ title, unit: "usd", value, show });

/** The columns of a list of receipts. */
export const RECEIPTS = [
  { title: "Request", value: (row) => row.id, show: (row) => html`<${Link} href=${pathOf(row.id)}
    title=${row.id}><code>${brief(row.id)}</code><//>` },
  { title: "Received, UTC", unit: "time", value: (row) => row.created * 1000 },
  { title: "Tenant, key", value: (row) => `${row.tenant}, ${row.key}` },
  { title: "Route", value: (row) => row.route },
  { title: "Mode", value: (row) => `${row.mode} ${row.unguided ?? ""}`, show: (row) => html`${row.mode}${row.unguided && html`<small
    class="warn below">${row.unguided}</small>`}` },
  { title: "Status", value: (row) => row.status, show: (row) => (row.status === "ok" ? "ok" : html`<${Badge} kind="bad">${row.status}<//>`) },
  { title: "Total", unit: "ms", value: (row) => row.timings.total_ms ?? null },
  usd("Cost", (row) => Number(row.cost_usd)),
  usd("Saved", (row) => (row.savings_usd === undefined ? null : Number(row.savings_usd)), (row, format) => html`<span
    class=${savedKind(row)}>${saved(row, format)}</span>`),
];

/** A field for an amount. It keeps its text and the focus while the list changes. */
function Amount({ label, value, onChange }) {
  const [text, setText] = useState(value);
  useEffect(() => setText(value), [value]);
  return html`<${Field} label=${label}><input type="number" min="0" step="any" inputmode="decimal" placeholder="any"
    value=${text} onInput=${(event) => setText(event.target.value)} onChange=${onChange} /><//>`;
}

/** The filters. The statuses and reasons are those of the selected range, with their number of requests. */
function Filters({ parameters, search }) {
  const shared = search.replace(/&?(before|status|unguided|m.._cost)=[^&]*/g, "");
  const { errors = {}, disconnected, unguided = {} } = useData(() => api("/usage"), shared, { everyMs: 60_000 }).data?.total ?? {};
  const statuses = disconnected ? { ...errors, client_gone: disconnected } : errors;
  const options = (name, counts, more) => {
    const all = [["", "Any"], ...more, ...Object.entries(counts).map(([one, count]) => [one, `${one} (${whole(count)})`])];
    const selected = parameters.get(name) ?? "";
    return all.some(([one]) => one === selected) ? all : [...all, [selected, selected]];
  };
  const change = (name) => (event) => setParameters({ [name]: event.target.value });
  const find = (event) => {
    event.preventDefault();
    const id = event.target.elements.id.value.trim();
    if (id) go(pathOf(id));
  };
  const amount = (name, label) => html`<${Amount} label=${label} value=${parameters.get(name) ?? ""} onChange=${change(name)} />`;
  return html`<div class="fields">
    <${Field} label="Status"><${Select} options=${options("status", statuses, [["ok", "ok"], ["error", "all errors"]])}
      value=${parameters.get("status") ?? ""} onChange=${change("status")} /><//>
    <${Field} label="Guidance"><${Select} options=${options("unguided", unguided, [["any", "without, any reason"]])}
      value=${parameters.get("unguided") ?? ""} onChange=${change("unguided")} /><//>
    ${amount("min_cost", "Cost from, USD")}${amount("max_cost", "Cost to, USD")}
    <form onSubmit=${find}><${Field} label="Find by id"><input type="search" name="id"
      placeholder="req_..." autocomplete="off" spellcheck="false" /><//></form>
  </div>`;
}

export function Requests({ search, parameters }) {
  const own = Object.fromEntries(OWN.map((name) => [name, parameters.get(name)]));
  const page = useData(() => api("/receipts", { ...own, ...labelParameter() }), search, { everyMs: own.before ? 3_600_000 : 10_000 });
  const filters = [...OWN, ...FILTERS, "label"];
  const filtered = filters.some((name) => parameters.get(name));
  const clear = () => setParameters(Object.fromEntries(filters.map((name) => [name, ""])));
  const empty = html`<${Empty} title=${filtered ? "No request matches." : "No requests in this period."}>
    ${filtered ? html`Widen the range or <button type="button" class="link" onClick=${clear}>clear these filters</button>.`
      : html`Send a request with an API key, or try the <${Link} href=${link("/playground")}>playground<//>.`}<//>`;
  const older = (next) => go(`${location.pathname}?${new URLSearchParams({ ...Object.fromEntries(parameters), before: next })}`);
  const note = html`Receipts of all requests in the range, the newest first, for as long as <code>usage.keep</code>.${" "}
    The gateway stores no texts, so there is no archive of them to search.`;
  return html`<${Card} title="Requests" note=${note}>
    <${Filters} parameters=${parameters} search=${search} />
    <${Loaded} of=${page}>${({ data, next }) => html`
      <${Table} caption="Requests" columns=${RECEIPTS} rows=${data} id=${(row) => row.id} nested=${(row) => row.shadows ?? []}
        empty=${next ? html`<p class="soft">No match so far. Search older requests.</p>` : empty} />
      <div class="row">
        ${own.before && html`<button type="button" onClick=${() => setParameters({ before: "" })}>Newest</button>`}
        ${next && html`<button type="button" onClick=${() => older(next)}>Older requests</button>`}
      </div>`}<//>
  <//>`;
}
