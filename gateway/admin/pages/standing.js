// Engines and policies: what stands, and what is the matter with it.
import { h, byId } from "./dom.js";
import { fetchJson } from "./fetching.js";
import { moment, seconds, whole } from "./format.js";
import { table } from "./table.js";

const BREAKER = { closed: ["calls go through", "good"], half_open: ["one call is tried", "warn"], open: ["left alone", "bad"] };

const badge = (words, kind) => h("span", { class: `badge ${kind}` }, words);

function state(engine) {
  if (engine.up === null) return badge("not looked at yet", "warn");
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
      { key: "breaker", title: "Breaker", value: (row) => row.breaker, show: (row) => badge(...(BREAKER[row.breaker] ?? [row.breaker, "warn"])) },
      { key: "flight", title: "In flight", number: true, value: (row) => row.in_flight, show: (row) => whole(row.in_flight) },
      { key: "fleet", title: "Permits, fleet", number: true, value: (row) => queues[row.name]?.in_flight ?? null, show: (row) => (queues[row.name] ? `${whole(queues[row.name].in_flight)} of ${whole(queues[row.name].cap)}` : "-") },
      { key: "waiting", title: "Waiting", number: true, value: (row) => queues[row.name]?.waiting ?? null, show: (row) => (queues[row.name] ? whole(queues[row.name].waiting) : "-") },
      { key: "oldest", title: "Oldest wait", number: true, value: (row) => queues[row.name]?.oldest_wait_s ?? null, show: (row) => seconds(queues[row.name]?.oldest_wait_s) },
      { key: "detail", title: "Says", wrap: true, value: (row) => row.detail, show: (row) => [row.detail, ...row.warnings].join("; ") },
    ],
  });
  return {
    show(overview) {
      last = overview.engines;
      note.textContent = `State, breaker and calls in flight are those of worker ${overview.worker} (${overview.process}); permits are the fleet's.`;
      view.rows(last);
    },
    async look() {
      queues = (await fetchJson("/queue")).teachers;
      view.rows(last);
    },
  };
}

export function policies(box) {
  let held = null;
  const view = table(box, {
    caption: "Table of policies", sort: "tenant", descending: false, search: "Search policies", empty: "There is no policy.",
    find: (row) => `${row.tenant} ${row.routes.map((one) => one.model).join(" ")}`,
    columns: [
      { key: "tenant", title: "Tenant", value: (row) => row.tenant, show: (row) => row.tenant },
      { key: "routes", title: "Routes", wrap: true, value: (row) => row.routes.length, show: (row) => row.routes.map((one) => `${one.model} (${one.mode})`).join(", ") },
      { key: "keys", title: "Keys in the file", number: true, value: (row) => row.keys, show: (row) => whole(row.keys) },
      { key: "budget", title: "Budget of its own", value: (row) => String(row.budget), show: (row) => (row.budget ? "yes" : "no") },
    ],
  });
  return async ({ policies: edition, config }) => {
    const line = byId("policies-state");
    const of = `${whole(edition.files)} ${edition.files === 1 ? "file" : "files"}, loaded ${moment(edition.loaded_at)}`;
    line.replaceChildren(edition.stale ? badge(`The folder has a mistake; what was loaded before holds on: ${of}.`, "bad") : badge(`What stands in the folder holds: ${of}.`, "good"));
    if (config.changed) line.append(" ", badge("config.yaml has changed: it holds after a restart.", "warn"));
    const mistakes = [...edition.error, ...config.error];
    const list = byId("policies-mistakes");
    list.hidden = mistakes.length === 0;
    list.replaceChildren(...mistakes.map((one) => h("li", {}, one)));
    const now = `${edition.version} ${edition.loaded_at}`;
    if (now !== held) {
      view.rows((await fetchJson("/policies")).data);
      held = now;
    }
  };
}
