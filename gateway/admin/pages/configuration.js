// The effective configuration, read-only, with the results of the last edits of config.yaml and of the policies.
import { useData } from "./api.js";
import { utc, whole } from "./format.js";
import { setParameters } from "./state.js";
import { Badge, Card, Empty, Facts, html, Loaded, Segments, Table } from "./ui.js";

const text = ({ secret, value }) => (secret ? (value ?? "set, not shown") : value === null ? "none"
  : typeof value === "object" ? JSON.stringify(value) : String(value));
const origin = (row, file) => (row.from === "file" ? (row.line ? `${file}:${row.line}` : file) : row.from === "environment" ? row.variable : "default");

const settings = (file) => [
  { title: "Setting", value: (row) => row.name, show: (row) => html`<code>${row.name}</code>` },
  { title: "Value", wide: true, value: text, show: (row) => (row.secret || row.value === null ? html`<span
    class="soft">${text(row)}</span>` : html`<code>${text(row)}</code>`) },
  { title: "From", value: (row) => origin(row, file) },
];

const POLICIES = [
  { title: "Tenant", value: (row) => row.tenant },
  { title: "Routes", wide: true, value: (row) => row.routes.map((one) => `${one.model} (${one.mode})`).join(", ") },
  { title: "Keys in the file", unit: "count", value: (row) => row.keys },
  { title: "Own budget", value: (row) => (row.budget ? "yes" : "no") },
];

const RESULTS = { applied: ["applied", "good"], refused: ["refused", "bad"] };

/** The last edit: its time and result, with the issues of a refused one. */
function Reload({ of, since }) {
  if (!of) return html`<p><${Badge} kind="good">no edit since the start<//> In use since ${utc(since)}.</p>`;
  const [word, kind] = RESULTS[of.result] ?? [of.result, "warn"];
  return html`<p><${Badge} kind=${kind}>The last edit was ${word}<//> at ${utc(of.at)}${of.settings.length ? `: ${of.settings.join(", ")}` : ""}.
      ${of.result === "refused" ? ` The settings loaded at ${utc(since)} stay in use. Correct the file:` : ""}</p>
    ${of.issues.length > 0 && html`<ul class="errors">${of.issues.map((one) => html`<li key=${one}>${one}</li>`)}</ul>`}`;
}

export function Configuration({ parameters }) {
  const config = useData(() => "/config", "config", { everyMs: 10_000 });
  const policies = useData(() => "/policies", "policies", { everyMs: 30_000 });
  const all = parameters.get("settings") === "all";
  return html`<${Loaded} of=${config}>${(data) => html`
    <${Card} title="Last edits" note="Edits of both apply while the gateway runs.">
      <h3>${data.file ?? "config.yaml"}</h3><${Reload} of=${data.last_reload} since=${data.loaded_at} />
      <h3>Policies</h3><${Reload} of=${data.policies.last_reload} since=${data.policies.loaded_at} />
      <${Facts} items=${[
        ["Policy files", whole(data.policies.files)],
        ["Version of the policies", html`<code>${data.policies.version}</code>`],
        ["Version of the file", data.version && html`<code>${data.version}</code>`],
        ["Answering worker", data.worker],
      ]} />
    <//>
    <${Card} title="Settings in effect" note="Read-only. Secrets are not shown. Edit the file to change a setting."
      side=${html`<${Segments} label="Settings" options=${[["own", "Set by you"], ["all", "All"]]} value=${all ? "all" : "own"}
        onChange=${(one) => setParameters({ settings: one === "all" ? one : "" })} />`}>
      <${Table} caption="Settings in effect" columns=${settings(data.file)}
        rows=${data.settings.filter((one) => all || one.from !== "default")} id=${(row) => row.name} search="Search settings"
        empty=${html`<${Empty} title="All settings have their default.">Select "All" to see them.<//>`} maxRows=${1000} /><//>`}<//>
    <${Loaded} of=${policies}>${({ data }) => html`<${Card} title="Policies in use"><${Table} caption="Policies in use"
      columns=${POLICIES} rows=${data} id=${(row) => row.tenant} search="Search policies"
      empty=${html`<${Empty} title="No policy is loaded.">Add a policy file: gkt-gateway init writes an example.<//>`} /><//>`}<//>`;
}
