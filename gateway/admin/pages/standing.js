// The tables of engines and policies, with their state and errors.
import { h, byId } from "./dom.js";
import { fetchJson } from "./fetching.js";
import { moment, seconds, whole } from "./format.js";
import { table } from "./table.js";

const BREAKER = { closed: ["closed", "good"], half_open: ["half-open", "warn"], open: ["open", "bad"] };

const badge = (text, kind) => h("span", { class: `badge ${kind}` }, text);

function state(engine) {
  if (engine.up === null) return badge("not probed yet", "warn");
  return engine.up ? badge("up", "good") : badge("down", "bad");
}

export function engines(box, note) {
  let queues = {};
  let last = [];
  const view = table(box, {
    caption: "Table of engines", sort: "name", descending: false, empty: "No engine is configured.",
    columns: [
      { key: "name", title: "Engine", value: (row) => row.name, show: (row) => row.name },
      { key: "up", title: "State", value: (row) => String(row.up), show: state },
      { key: "breaker", title: "Circuit breaker", value: (row) => row.breaker, show: (row) => badge(...(BREAKER[row.breaker] ?? [row.breaker, "warn"])) },
      { key: "flight", title: "In flight", number: true, value: (row) => row.in_flight, show: (row) => whole(row.in_flight) },
      { key: "fleet", title: "Permits (fleet)", number: true, value: (row) => queues[row.name]?.in_flight ?? null, show: (row) => (queues[row.name] ? `${whole(queues[row.name].in_flight)} of ${whole(queues[row.name].cap)}` : "-") },
      { key: "waiting", title: "Waiting", number: true, value: (row) => queues[row.name]?.waiting ?? null, show: (row) => (queues[row.name] ? whole(queues[row.name].waiting) : "-") },
      { key: "oldest", title: "Oldest wait", number: true, value: (row) => queues[row.name]?.oldest_wait_s ?? null, show: (row) => seconds(queues[row.name]?.oldest_wait_s) },
      { key: "detail", title: "Details", wrap: true, value: (row) => row.detail, show: (row) => [row.detail, ...row.warnings].join("; ") },
    ],
  });
  return {
    show(overview) {
      last = overview.engines;
      note.textContent = `State, circuit breaker and calls in flight are of worker ${overview.worker} (${overview.process}). Permits and waiting calls are of the fleet.`;
      view.rows(last);
    },
    async refresh() {
      queues = (await fetchJson("/queue")).teachers;
      view.rows(last);
    },
  };
}

export function policies(box) {
  let shownVersion = null;
  const view = table(box, {
    caption: "Table of policies", sort: "tenant", descending: false, search: "Search policies", empty: "No policy is loaded.",
    find: (row) => `${row.tenant} ${row.routes.map((one) => one.model).join(" ")}`,
    columns: [
      { key: "tenant", title: "Tenant", value: (row) => row.tenant, show: (row) => row.tenant },
      { key: "routes", title: "Routes", wrap: true, value: (row) => row.routes.length, show: (row) => row.routes.map((one) => `${one.model} (${one.mode})`).join(", ") },
      { key: "keys", title: "Keys in the file", number: true, value: (row) => row.keys, show: (row) => whole(row.keys) },
      { key: "budget", title: "Own budget", value: (row) => String(row.budget), show: (row) => (row.budget ? "yes" : "no") },
    ],
  });
  return async ({ policies: loaded, config }) => {
    const line = byId("policies-state");
    const summary = `${whole(loaded.files)} ${loaded.files === 1 ? "file" : "files"}, loaded ${moment(loaded.loaded_at)}`;
    line.replaceChildren(loaded.stale ? badge(`The policy folder has an error. The policies loaded before stay in use: ${summary}.`, "bad") : badge(`Policies of the folder are in use: ${summary}.`, "good"));
    if (config.error.length) line.append(" ", badge("config.yaml has an error. The settings loaded before stay in use.", "bad"));
    if (config.restart.length) line.append(" ", badge("Settings in config.yaml have changed. Restart the gateway to apply them.", "warn"));
    const errors = [...loaded.error, ...config.error, ...config.restart];
    const list = byId("policies-errors");
    list.hidden = errors.length === 0;
    list.replaceChildren(...errors.map((one) => h("li", {}, one)));
    const version = `${loaded.version} ${loaded.loaded_at}`;
    if (version !== shownVersion) {
      view.rows((await fetchJson("/policies")).data);
      shownVersion = version;
    }
  };
}
