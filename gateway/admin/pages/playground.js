// The playground: a form, three answers and their comparison. The fragment of the URL has the settings, without the question.
import { useEffect, useMemo, useRef, useState } from "./vendor/hooks.js";
import { may, report, session, useData } from "./api.js";
import { duration, money, share } from "./format.js";
import { answer, Column, IDLE, isTruncated, spoken, TITLES } from "./play-column.js";
import { asCaller, curl, policy, python } from "./play-snippets.js";
import { Dialog, Field, html, Loaded, Select } from "./ui.js";

const MODES = Object.keys(TITLES);
const TOAST_MS = 8_000;
const SLIDER_MAX = 200;
const PROJECTIONS = {
  cutoff: "The first tokens of the teacher's answer.",
  concise: "The first tokens of a brief answer.",
  hint: "A brief hint. The student writes the whole answer.",
  primed: "The first tokens, after a few good example answers in the teacher's prompt only.",
};
const PLACEMENTS = {
  prefix: "The answer starts with it, and the student continues.",
  context: "In the student's prompt, with an introduction. Callers do not see it.",
  input: "At the end of the student's prompt, unchanged.",
};
const EXAMPLES = [
  ["Arithmetic", "A baker sells 24 rolls in the morning and half as many in the afternoon. Each roll costs 3 dollars. How much money does the baker take in?"],
  ["Why", "Why is the sky blue?"],
  ["Code", "Write a Python function that checks whether a word is a palindrome, and explain it in two sentences."],
  ["List", "List five things to check before a long bicycle tour, each with one reason."],
  ["Letter", "Write a short, friendly note that moves our meeting from Tuesday to Thursday at ten."],
];
/** Numbers of the form: title, smallest and largest value, step, placeholder. */
const SAMPLING = {
  temperature: ["Temperature", 0, 2, "any", "engine's"],
  max_tokens: ["Max tokens", 1, 2_147_483_647, 1, "engine's"],
  seed: ["Seed", 0, Number.MAX_SAFE_INTEGER, 1, "none"],
};
const GUIDANCE = ["tokens", "projection", "placement"];
const SHORT = { tokens: "length", max_tokens: "max tokens" };

const tenantOf = (options, values) => options.tenants.find((one) => one.tenant === values.tenant);
const routeOf = (options, values) => tenantOf(options, values)?.routes.find((one) => one.model === values.model);

function inRange(name, text, options) {
  const [, least, most, step] = name === "tokens" ? [null, 1, options.max_guidance_tokens, 1] : SAMPLING[name];
  const value = Number(text);
  return text !== "" && value >= least && value <= most && (step === "any" || Number.isInteger(value));
}

/** Return the settings of a route, changed by the fragment of the URL, and the values there that are not valid. */
function readUrl(options) {
  const parameters = new URLSearchParams(location.hash.slice(1));
  const invalid = [];
  const choose = (name, allowed, otherwise) => {
    const value = parameters.get(name);
    if (value !== null && !allowed.includes(value)) invalid.push(`${name} ${value}`);
    return allowed.includes(value) ? value : otherwise;
  };
  const tenants = options.tenants.map((one) => one.tenant);
  const tenant = choose("tenant", tenants, tenants[0]);
  const models = tenantOf(options, { tenant })?.routes.map((one) => one.model) ?? [];
  const model = choose("model", models, models[0]);
  const own = ofRoute(routeOf(options, { tenant, model }));
  const values = {
    ...own, tenant, model,
    projection: choose("projection", options.projections.map((one) => one.name), own.projection),
    placement: choose("placement", options.placements, own.placement),
  };
  for (const name of ["tokens", ...Object.keys(SAMPLING)]) {
    const text = parameters.get(name);
    if (text !== null && !inRange(name, text, options)) invalid.push(`${name} ${text}`);
    else if (text !== null) values[name] = text;
  }
  return { values, invalid };
}

const ofRoute = (route) => ({
  tokens: String(route?.guidance.tokens ?? ""), projection: route?.guidance.projection, placement: route?.guidance.placement,
  ...Object.fromEntries(Object.keys(SAMPLING).map((name) => [name, ""])),
});
const changedOf = (values, route) => [...GUIDANCE, ...Object.keys(SAMPLING)].filter((name) => String(values[name] ?? "") !== String(ofRoute(route)[name] ?? ""));

/** The comparison of the guided answer with the others. */
function Comparison({ runs }) {
  const [teacher, student, guided] = MODES.map((mode) => (runs[mode].state === "done" ? runs[mode].receipt : null));
  const less = teacher && 1 - Number(guided.cost_usd) / Number(teacher.cost_usd);
  const truncated = MODES.filter((mode) => isTruncated(runs[mode].receipt)).map((mode) => TITLES[mode].toLowerCase());
  return html`Guided cost <strong>${money(guided.cost_usd)}</strong> and took <strong>${duration(guided.timings.total_ms)}</strong>, the first token after ${duration(guided.timings.first_token_ms)}.
    ${teacher && html` The teacher alone cost ${money(teacher.cost_usd)} and took ${duration(teacher.timings.total_ms)}${Number.isFinite(less)
      ? html`: guided is <strong>${share(Math.abs(less))} ${less >= 0 ? "cheaper" : "more expensive"}</strong> here` : ""}.`}
    ${guided.teacher?.shared && " The guidance was free, because it was shared with another request."}
    ${student && ` The student alone cost ${money(student.cost_usd)} and took ${duration(student.timings.total_ms)}.`}
    ${truncated.length > 0 && html` <strong class="warn">Truncated: ${truncated.join(", ")}.</strong> Costs of truncated answers do not compare.`}
    <span class="soft"> The answers were generated at the same time on shared engines.</span>`;
}

function Settings({ options, values, route, change }) {
  const details = useRef(null);
  useEffect(() => { // open on a wide screen, closed on a narrow one
    const wide = matchMedia("(min-width: 64rem)");
    const fold = () => { details.current.open = wide.matches; };
    wide.addEventListener("change", fold);
    fold();
    return () => wide.removeEventListener("change", fold);
  }, []);
  const tokens = Number(values.tokens) || 1;
  const select = (name, names, more = {}) => html`<${Select} name=${name} options=${names.map((one) => [one])} value=${values[name]}
    onChange=${(event) => change({ [name]: event.target.value, ...more[event.target.value] })} />`;
  const defaults = Object.fromEntries(options.projections.map((one) => [one.name, { placement: one.placement }]));
  const changed = changedOf(values, route);
  return html`<details class="settings" id="settings" ref=${details}>
    <summary>Settings <span class="soft small">${values.tenant} / ${values.model}, ${values.tokens} tokens</span></summary>
    <div class="controls">
      <${Field} label="Tenant">${select("tenant", options.tenants.map((one) => one.tenant))}<//>
      <${Field} label="Route">${select("model", tenantOf(options, values)?.routes.map((one) => one.model) ?? [])}<//>
      <fieldset class="wide"><legend>Guidance</legend>
        <div class="field wide"><label for="tokens">Length, in the teacher's tokens</label><div class="length">
          <input type="range" id="slider" min="1" max=${Math.max(SLIDER_MAX, Math.min(tokens, options.max_guidance_tokens))}
            aria-label="Length slider" value=${tokens} onInput=${(event) => change({ tokens: event.target.value })} />
          <input type="number" id="tokens" name="tokens" min="1" max=${options.max_guidance_tokens} step="1" required
            inputmode="numeric" value=${values.tokens} onInput=${(event) => change({ tokens: event.target.value })} />
        </div></div>
        <${Field} label="Projection" help=${PROJECTIONS[values.projection] ?? "See the file in policies/projections."}>${select("projection", options.projections.map((one) => one.name), defaults)}<//>
        <${Field} label="Placement" help=${PLACEMENTS[values.placement]}>${select("placement", options.placements)}<//>
      </fieldset>
      <fieldset class="wide thirds"><legend>Sampling</legend>
        ${Object.entries(SAMPLING).map(([name, [label, least, most, step, placeholder]]) => html`<${Field} key=${name}
          label=${label}><input type="number" name=${name} min=${least} max=${most} step=${step} inputmode="decimal"
          placeholder=${(name === "max_tokens" && route?.default_max_tokens) || placeholder} value=${values[name]}
          onInput=${(event) => change({ [name]: event.target.value })} /><//>`)}
      </fieldset>
      <div class="row apart wide"><span class="soft small">${changed.length
        ? `Changed: ${changed.map((one) => SHORT[one] ?? one).join(", ")}` : "Settings of the route"}</span>
        <button type="button" disabled=${!changed.length} onClick=${() => change(ofRoute(route))}>Reset to the route's settings</button></div>
    </div>
  </details>`;
}

function Form({ options }) {
  const first = useMemo(() => readUrl(options), []);
  const [values, setValues] = useState(first.values);
  const [runs, setRuns] = useState({});
  const [running, setRunning] = useState(null); // the AbortController of the current run
  const [said, announce] = useState("");
  const [compared, setCompared] = useState(false);
  const [toast, setToast] = useState("");
  const [byHand, setByHand] = useState("");
  const [form, latest] = [useRef(null), useRef(null)];
  const role = session.use()?.role;
  const barred = Boolean(role) && !may("operator");
  const route = routeOf(options, values);
  const ofMode = (mode) => runs[mode] ?? IDLE;
  const engines = [route?.teacher, ...(route?.students ?? [])];
  const unavailable = options.engines.filter((one) => engines.includes(one.name) && (one.up === false || one.rests)).map((one) => one.name);

  const change = (changes) => setValues((before) => {
    const next = { ...before, ...changes };
    const tenant = tenantOf(options, next);
    if (changes.tenant) next.model = tenant.routes[0]?.model;
    const now = routeOf(options, next);
    if (changes.tenant || changes.model) Object.assign(next, ofRoute(now));
    const query = new URLSearchParams({ tenant: next.tenant, model: next.model ?? "" });
    for (const name of changedOf(next, now)) if (next[name] !== "") query.set(name, next[name]);
    history.replaceState(null, "", `#${query}`);
    return next;
  });
  useEffect(() => {
    const problem = (invalid) => report("url", invalid.length ? `These settings of the URL are not available or not valid: ${invalid.join(", ")}.` : "");
    problem(first.invalid);
    const read = () => {
      const { values: next, invalid } = readUrl(options);
      setValues(next);
      problem(invalid);
    };
    const stop = () => latest.current?.abort();
    addEventListener("hashchange", read);
    for (const [target, event] of [[window, "pagehide"], [document, "leaving"]]) target.addEventListener(event, stop);
    return () => {
      stop();
      report("url", "");
      report("engines", "");
      removeEventListener("hashchange", read);
      for (const [target, event] of [[window, "pagehide"], [document, "leaving"]]) target.removeEventListener(event, stop);
    };
  }, []);
  useEffect(() => { // another route: cancel and clear the answers
    latest.current?.abort();
    latest.current = null;
    setRuns({});
    setRunning(null);
    setCompared(false);
    report("engines", unavailable.length ? `Unavailable now: ${unavailable.join(", ")}.` : "");
  }, [values.tenant, values.model]);
  useEffect(() => {
    const timer = toast && setTimeout(() => setToast(""), TOAST_MS);
    return () => clearTimeout(timer);
  }, [toast]);

  /** Return whether the form is valid. If not, the browser shows the problem at the field. */
  function ready() {
    const fields = form.current.elements;
    fields.prompt.setCustomValidity(fields.prompt.value.trim() ? "" : "Enter a question.");
    const invalid = [...fields].find((one) => one.willValidate && !one.checkValidity());
    if (!invalid) return true;
    const settings = invalid.closest("details");
    if (settings) settings.open = true;
    invalid.focus();
    invalid.reportValidity();
    return false;
  }

  /** Return the request without its mode. `guidance` has only changes to the route's settings. */
  function settings() {
    const fields = form.current.elements;
    const typed = (name) => (name === "tokens" ? Number(values[name]) : values[name]);
    const guidance = Object.fromEntries(GUIDANCE.filter((name) => typed(name) !== route.guidance[name]).map((name) => [name, typed(name)]));
    const sampling = Object.fromEntries(Object.keys(SAMPLING).filter((name) => values[name] !== "").map((name) => [name, Number(values[name])]));
    return { tenant: values.tenant, model: values.model, prompt: fields.prompt.value, system: fields.system.value.trim() ? fields.system.value : "", guidance, sampling };
  }

  async function ask(event) {
    event?.preventDefault();
    if (running || barred || !route || !ready()) return;
    const stop = new AbortController();
    const current = () => latest.current === stop;
    latest.current = stop;
    setRunning(stop);
    setCompared(false);
    announce("Three answers are being generated.");
    const request = settings();
    const ended = await Promise.all(route.modes.map(async (mode) => {
      const run = await answer(mode, request, stop.signal, (next) => { if (current()) setRuns((before) => ({ ...before, [mode]: next })); });
      if (current() && !stop.signal.aborted) announce(spoken(mode, run));
      return [mode, run];
    }));
    if (!current()) return;
    setRunning(null);
    const done = Object.fromEntries(ended.filter(([, run]) => run.state === "done"));
    if (stop.signal.aborted) announce("Stopped.");
    else if (done.guided && (done.teacher || done.student)) {
      setCompared(true);
      announce(`Guided cost ${money(done.guided.receipt.cost_usd)}.`);
    }
  }

  async function copy(text, words) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      setByHand(text);
    }
    setToast(words);
  }

  function copyRequest(mode, kind) {
    if (!ready()) return;
    const request = asCaller(mode, settings(), route);
    const notes = request.notes.length ? ` Note: ${request.notes.join("; ")}.` : "";
    copy({ curl, python }[kind](request, options.base_url), `Copied as ${kind === "curl" ? "curl" : "Python"}; replace YOUR_KEY by a key of the tenant.${notes}`);
  }

  const example = (text) => {
    const { prompt } = form.current.elements;
    prompt.value = text;
    prompt.setCustomValidity("");
    prompt.focus();
  };
  const onKey = (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && ask(event);
  return html`
    ${barred && html`<p class="status" data-kind="warn">Questions cost money and need the role operator. Your role is ${role}. You can view and copy the settings.</p>`}
    ${!route && html`<p class="status" data-kind="warn">This tenant has no route for chat completions.</p>`}
    ${route?.conditional && html`<p class="status">${route.model} has several routes. The first one whose conditions match the question answers it.</p>`}
    <form id="form" class="card ask" novalidate ref=${form} onSubmit=${ask} onKeyDown=${onKey}>
      <div class="question">
        <label for="prompt">Question</label>
        <textarea id="prompt" name="prompt" rows="5" required spellcheck="false" placeholder="Enter a question"
          onInput=${(event) => event.target.setCustomValidity("")}></textarea>
        <div class="examples" role="group" aria-label="Examples">${EXAMPLES.map(([name, text]) => html`<button
          type="button" key=${name} title=${text} onClick=${() => example(text)}>${name}</button>`)}</div>
        <details><summary>System message</summary><textarea name="system" rows="2" spellcheck="false" placeholder="None"
          aria-label="System message"></textarea></details>
        <div class="row run">
          <button type="submit" class="primary" disabled=${barred || !route || running !== null} aria-keyshortcuts="Control+Enter">Ask all three</button>
          <button type="button" disabled=${running === null} onClick=${() => running?.abort()}>Stop</button>
          <button type="button" disabled=${!route} onClick=${() => ready() && copy(policy(values, route),
            "Copied as policy. Put the route into the tenant's policy file; it applies without a restart.")}>Copy as policy</button>
          <span class="soft small keys" aria-hidden="true">Ctrl + Enter sends</span>
        </div>
      </div>
      <${Settings} options=${options} values=${values} route=${route} change=${change} />
    </form>
    ${compared && html`<p id="summary" class="card summary"><${Comparison} runs=${Object.fromEntries(MODES.map((mode) => [mode, ofMode(mode)]))} /></p>`}
    <section class="columns" aria-label="Answers">${MODES.map((mode) => html`<${Column}
      key=${mode} mode=${mode} route=${route} run=${ofMode(mode)} copy=${(kind) => copyRequest(mode, kind)} />`)}</section>
    <p id="live" class="visually-hidden" role="status">${said}</p>
    <p id="copied" class="toast" role="status" hidden=${!toast}>${toast}</p>
    ${byHand && html`<${Dialog} title="Copy this" onClose=${() => setByHand("")}><p
      class="soft small">The browser did not allow this page to write to the clipboard. It requires HTTPS.</p>
      <textarea class="code" rows="14" readonly aria-label="Copy this" value=${byHand}></textarea><//>`}`;
}

export function Playground() {
  const options = useData(() => "/playground/options", "options", { everyMs: 3_600_000 });
  return html`<p class="soft">One question, three answers: the teacher's, the student's, and a guided answer that the teacher starts and the student finishes.</p>
    <${Loaded} of=${options}>${(data) => html`<${Form} options=${data} />`}<//>`;
}
