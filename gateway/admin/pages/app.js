// The dashboard: navigation, time range and filter, and the selected page.
import { useEffect, useRef, useState } from "./vendor/hooks.js";
import { render } from "./vendor/preact.js";
import { ask, fetchJson, paused, problems, report, session, updatedAt, useData } from "./api.js";
import { timeOfDay } from "./format.js";
import { Access } from "./access.js";
import { Configuration } from "./configuration.js";
import { Overview } from "./overview.js";
import { Playground } from "./playground.js";
import { Quality } from "./quality.js";
import { Receipt } from "./receipt.js";
import { Reliability } from "./reliability.js";
import { Requests } from "./requests.js";
import { Spend } from "./spend.js";
import { api, FILTERS, labelFilter, link, period, RANGES, rfc3339, setParameters, useUrl } from "./state.js";
import { Badge, Card, Field, html, Link, Segments, Select } from "./ui.js";

/** Pages: path, title, component, and the parts of the range and filter that apply. */
const PAGES = [
  ["/dashboard", "Overview", Overview, ["range", ...FILTERS]],
  ["/dashboard/spend", "Spend", Spend, ["range", ...FILTERS, "label"]],
  ["/dashboard/quality", "Quality", Quality, ["range", "tenant", "route"]],
  ["/dashboard/reliability", "Reliability", Reliability, ["range", ...FILTERS]],
  ["/dashboard/requests", "Requests", Requests, ["range", ...FILTERS, "label"]],
  ["/dashboard/access", "Keys and budgets", Access, ["tenant"]],
  ["/dashboard/configuration", "Configuration", Configuration, []],
  ["/playground", "Playground", Playground, []],
];
const THEMES = { auto: ["system", "\u25d0"], light: ["light", "\u2600"], dark: ["dark", "\u263e"] };

function ThemeButton() {
  const stored = () => { try { return localStorage.getItem("gkt-theme") ?? "auto"; } catch { return "auto"; } };
  const [theme, setTheme] = useState(stored);
  const next = () => {
    const names = Object.keys(THEMES);
    const chosen = names[(names.indexOf(theme) + 1) % names.length];
    try { localStorage.setItem("gkt-theme", chosen); } catch { /* The colors apply to this page only. */ }
    if (chosen === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = chosen;
    setTheme(chosen);
    document.dispatchEvent(new Event("themechange"));
  };
  const [name, sign] = THEMES[theme] ?? THEMES.auto;
  const label = `Colors: ${name}. Change color scheme`;
  return html`<button type="button" class="quiet" aria-label=${label} title=${label} onClick=${next}>${sign}</button>`;
}

/** Move the focus to the content. The URL's fragment stays, because it has the settings of the playground. */
function skip(event) {
  event.preventDefault();
  document.getElementById("main").focus();
}

async function logOut() {
  document.dispatchEvent(new Event("leaving")); // a running request would renew the session
  try {
    const reply = await ask("/session", { method: "DELETE" });
    // With 200, the browser also logs out at the identity provider, which returns to the login page.
    location.assign(reply.status === 200 ? (await reply.json()).logout_url : "/login?why=left");
  } catch (error) {
    report("logout", `You are still logged in: ${error.message}`);
  }
}

function Custom({ range, close }) {
  const [problem, setProblem] = useState("");
  const field = (ms) => rfc3339(ms).slice(0, 16);
  const apply = (event) => {
    event.preventDefault();
    const [from, to] = ["from", "to"].map((name) => Date.parse(`${event.target.elements[name].value}Z`));
    const wrong = Number.isNaN(from) || Number.isNaN(to) ? "Enter a date and a time in both fields."
      : from >= to ? "'From' must be earlier than 'To'." : from > Date.now() ? "'From' is in the future." : "";
    setProblem(wrong);
    if (wrong) return;
    setParameters({ range: "custom", since: rfc3339(from), until: rfc3339(to) });
    close();
  };
  return html`<form class="fields custom" novalidate onSubmit=${apply}>
    <${Field} label="From, UTC"><input type="datetime-local" name="from" required defaultValue=${field(range.since)} /><//>
    <${Field} label="To, UTC"><input type="datetime-local" name="to" required defaultValue=${field(range.until)} /><//>
    <button class="primary">Show</button>
    <p class="bad small" role="alert">${problem}</p>
  </form>`;
}

/** Choose a label, then one of its values in the range. */
function LabelFilter({ policies }) {
  const [name, value] = labelFilter();
  const names = [...new Set([...policies.flatMap((one) => one.labels ?? []), ...(name ? [name] : [])])].sort();
  const found = useData(() => (name ? api("/usage", { by: `label:${name}` }) : null), `label ${name} ${location.search}`, { everyMs: 60_000 });
  if (!names.length) return null;
  const values = (found.data?.rows ?? []).map((row) => row[`label:${name}`]);
  const options = [...new Set([...values, ...(value ? [value] : [])])].map((one) => [one, one]);
  return html`<${Select} aria-label="Label" class=${name ? "set" : ""} options=${[["", "All labels"], ...names.map((one) => [one, one])]} value=${name}
      onChange=${(event) => setParameters({ label: event.target.value })} />
    ${name && html`<${Select} aria-label="Value of ${name}" class=${value ? "set" : ""} options=${[["", `Any ${name}`], ...options]} value=${value}
      onChange=${(event) => setParameters({ label: event.target.value ? `${name}=${event.target.value}` : name })} />`}`;
}

/** The one range and filter of all pages. Parts that do not apply to the page are hidden, and stay in the URL. */
function FilterBar({ parts, parameters }) {
  const [custom, setCustom] = useState(false);
  const policies = useData(() => "/policies", "policies", { everyMs: 60_000 }).data?.data ?? [];
  const tenant = parameters.get("tenant");
  const keys = useData(() => (tenant ? `/keys?limit=500&tenant=${encodeURIComponent(tenant)}` : null), `keys ${tenant}`, { everyMs: 60_000 });
  const range = period();
  const routes = new Set(policies.filter((one) => !tenant || one.tenant === tenant).flatMap((one) => one.routes.map((route) => route.model)));
  const names = { tenant: policies.map((one) => one.tenant), route: [...routes].sort(), key: (keys.data?.keys ?? []).map((one) => one.id) };
  const choose = (name) => {
    if (name === "custom") return setCustom(!custom);
    setCustom(false);
    return setParameters({ range: name, since: "", until: "" });
  };
  const filter = (name, value) => setParameters({ [name]: value, ...(name === "tenant" ? { key: "", route: "" } : {}) });
  const options = (name) => {
    const selected = parameters.get(name);
    const all = [["", `All ${name}s`], ...names[name].map((one) => [one, one])];
    return selected && !names[name].includes(selected) ? [...all, [selected, selected]] : all; // such as a deleted key
  };
  return html`<div class="filters">
    ${parts.includes("range") && html`<${Segments} label="Time range" options=${[...RANGES.map(([one, title]) => [one, title]), ["custom", "Custom"]]}
      value=${custom ? "custom" : range.name} onChange=${choose} />`}
    ${FILTERS.filter((one) => parts.includes(one) && (one !== "key" || tenant || parameters.get("key"))).map((name) => html`<${Select} key=${name}
      aria-label=${name[0].toUpperCase() + name.slice(1)}
      class=${parameters.get(name) ? "set" : ""} options=${options(name)} value=${parameters.get(name) ?? ""} onChange=${(event) => filter(name, event.target.value)} />`)}
    ${parts.includes("label") && html`<${LabelFilter} policies=${policies.filter((one) => !tenant || one.tenant === tenant)} />`}
    ${[...FILTERS, "label"].some((one) => parameters.get(one)) && html`<button type="button" class="quiet"
      onClick=${() => setParameters({ tenant: "", route: "", key: "", label: "" })}>Clear</button>`}
    ${parts.includes("range") && range.problem && !custom && html`<p class="status wide" data-kind="warn" role="status">${range.problem}</p>`}
    ${custom && html`<${Custom} range=${range} close=${() => setCustom(false)} />`}
  </div>`;
}

function Status() {
  const messages = [...new Set(problems.use().values())];
  return html`<p id="status" class="status" data-kind="bad" role="status" hidden=${messages.length === 0}>${messages.join(" ")}</p>`;
}

function Pulse() {
  const [still, at] = [paused.use(), updatedAt.use()];
  const turn = () => {
    paused.set(!still);
    document.dispatchEvent(new Event("pausechange"));
  };
  return html`<div class="row pulse"><span class="soft small">${still ? "Paused" : at ? `Updated ${timeOfDay(at)} UTC` : ""}</span>
    <button type="button" class="quiet small" aria-pressed=${String(still)} onClick=${turn}>Pause</button></div>`;
}

function Person() {
  const { who, role } = session.use() ?? {};
  return who && html`<p class="person small" title="Logged in as ${who}"><span class="visually-hidden">Logged in as </span><span>${who}</span>${who !== role
    && html` <${Badge}>${role}<//>`}</p>`;
}
const NotFound = () => html`<${Card} title="There is no such page"><p>The address is wrong, or of another version.
  <${Link} href=${link("/dashboard")}>Open the overview<//>, or choose a page from the navigation.</p><//>`;

const decoded = (text) => { try { return decodeURIComponent(text); } catch { return text; } };

function App() {
  const { path: address, parameters, search } = useUrl();
  const path = address.replace(/\/+$/, "");
  const [root, id] = /^(\/dashboard\/requests)\/(.+)$/.exec(path)?.slice(1) ?? [path, null];
  const [, title, Page, parts] = PAGES.find(([one]) => one === root) ?? ["", "Page not found", NotFound, []];
  useEffect(() => {
    document.title = `${title} - GKT Gateway`;
    document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" }); // on a phone
  }, [title]);
  const first = useRef(true);
  useEffect(() => { // a link or button that is gone leaves the focus nowhere
    if (!first.current && document.activeElement === document.body) document.getElementById("main").focus({ preventScroll: true });
    first.current = false;
  }, [path, search]);
  useEffect(() => {
    fetchJson("/session").then((reply) => session.set(reply), (error) => report("session", `Your role is unknown: ${error.message}`));
  }, []);
  useEffect(() => {
    const change = () => document.dispatchEvent(new Event("themechange"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", change);
  }, []);
  return html`
    <a class="skip" href="#main" onClick=${skip}>Skip to content</a>
    <header class="side">
      <${Link} class="brand" href=${link("/dashboard")}><img src="/static/icon.svg" alt="" /><span>GKT Gateway</span><//>
      <nav aria-label="Pages">
        ${PAGES.map(([one, label]) => html`<${Link} key=${one} href=${link(one)} aria-current=${label === title ? "page" : undefined}>${label}<//>`)}
      </nav>
      <div class="side-end"><${Person} /><${ThemeButton} /><button type="button" class="quiet" onClick=${logOut}>Log out</button></div>
    </header>
    <main id="main" tabindex="-1" class="stack">
      <div class="row apart"><h1>${title}</h1><${Pulse} /></div>
      ${parts.length > 0 && id === null && html`<${FilterBar} parts=${parts} parameters=${parameters} />`}
      <${Status} />
      ${id === null ? html`<${Page} key=${title} parameters=${parameters} search=${search} />` : html`<${Receipt} key=${id}
        id=${decoded(id)} />`}
    </main>`;
}

render(html`<${App} />`, document.getElementById("app"));
