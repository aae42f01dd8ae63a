// The form of the playground. The URL contains its settings, without the question.
import { byId, h } from "./dom.js";
import { say } from "./status.js";

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
const OWN = { temperature: "", max_tokens: "", seed: "" };
const SAMPLING = Object.keys(OWN);
const GUIDANCE = ["tokens", "projection", "placement"];

export class Form {
  /** Call `chosen` with the route whenever another one is chosen. */
  constructor(options, chosen) {
    this.options = options;
    this._chosen = chosen;
    this.form = byId("form");
    fill("tenant", options.tenants.map((one) => one.tenant));
    fill("projection", options.projections.map((one) => one.name));
    fill("placement", options.placements);
    byId("tokens").max = options.max_guidance_tokens;
    byId("examples").append(...EXAMPLES.map(([name, text]) =>
      h("button", { type: "button", title: text, onclick: () => this._example(text) }, name)));
    this._fold(matchMedia("(min-width: 64rem)"));
    this._listen();
    this._read(new URLSearchParams(location.hash.slice(1)));
  }

  get tenant() {
    return this.options.tenants.find((one) => one.tenant === byId("tenant").value);
  }

  get route() {
    return this.tenant?.routes.find((one) => one.model === byId("model").value);
  }

  /** The request without its mode. `guidance` contains only changes to the route's settings. */
  get settings() {
    const guidance = {};
    for (const name of GUIDANCE) if (this._value(name) !== this.route.guidance[name]) guidance[name] = this._value(name);
    const sampling = {};
    for (const name of SAMPLING) if (byId(name).value !== "") sampling[name] = Number(byId(name).value);
    const system = byId("system").value.trim() ? byId("system").value : "";
    return { tenant: this.tenant.tenant, model: this.route.model, prompt: byId("prompt").value, system, guidance, sampling };
  }

  /** Return whether the form is valid. If not, the browser shows the problem at the field. */
  ready() {
    const prompt = byId("prompt");
    prompt.setCustomValidity(prompt.value.trim() ? "" : "Enter a question.");
    const invalid = [...this.form.elements].find((one) => one.willValidate && !one.checkValidity());
    if (!invalid) return true;
    byId("settings").open ||= byId("settings").contains(invalid);
    invalid.focus();
    invalid.reportValidity();
    return false;
  }

  /** Open the settings on a wide screen, and close them on a narrow one. */
  _fold(wide) {
    const fold = () => { byId("settings").open = wide.matches; };
    wide.addEventListener("change", fold);
    fold();
  }

  _value(name) {
    const text = byId(name).value;
    return name === "tokens" ? Number(text) : text;
  }

  _set(name, value) {
    byId(name).value = value;
    if (name === "tokens") this._slide();
  }

  _listen() {
    byId("tenant").addEventListener("change", () => { this._routes(); this._reset(); });
    byId("model").addEventListener("change", () => this._reset());
    byId("slider").addEventListener("input", () => { byId("tokens").value = byId("slider").value; this._write(); });
    byId("tokens").addEventListener("input", () => { this._slide(); this._write(); });
    byId("projection").addEventListener("change", () => {
      byId("placement").value = this.options.projections.find((one) => one.name === byId("projection").value).placement;
      this._write();
    });
    for (const name of ["placement", ...SAMPLING]) byId(name).addEventListener("input", () => this._write());
    byId("prompt").addEventListener("input", () => byId("prompt").setCustomValidity(""));
    byId("reset").addEventListener("click", () => this._reset());
    addEventListener("hashchange", () => this._read(new URLSearchParams(location.hash.slice(1))));
  }

  _example(text) {
    byId("prompt").value = text;
    byId("prompt").setCustomValidity("");
    byId("prompt").focus();
  }

  _slide() {
    const tokens = Number(byId("tokens").value) || 1;
    byId("slider").max = Math.max(SLIDER_MAX, Math.min(tokens, this.options.max_guidance_tokens));
    byId("slider").value = tokens;
  }

  _routes() {
    fill("model", this.tenant.routes.map((one) => one.model));
  }

  /** Reset all settings to the route's. */
  _reset() {
    this._put({ ...this.route?.guidance, ...OWN });
    this._write();
    this._chosen(this.route);
  }

  _put(values) {
    for (const [name, value] of Object.entries(values)) this._set(name, value);
  }

  /** Read settings from the URL. Invalid settings are ignored and listed in the status line. */
  _read(parameters) {
    const invalid = [];
    const choose = (name) => {
      const value = parameters.get(name);
      const select = byId(name);
      if (value === null) return;
      if ([...select.options].some((one) => one.value === value)) select.value = value;
      else invalid.push(`${name} ${value}`);
    };
    choose("tenant");
    this._routes();
    choose("model");
    this._put({ ...this.route?.guidance, ...OWN });
    choose("projection");
    choose("placement");
    for (const name of ["tokens", ...SAMPLING]) {
      const value = parameters.get(name);
      if (value === null) continue;
      const before = byId(name).value;
      this._set(name, value);
      if (byId(name).value === "" || !byId(name).validity.valid) {
        this._set(name, before);
        invalid.push(`${name} ${value}`);
      }
    }
    const untouched = location.hash === "";
    say(invalid.length ? `These settings of the URL are not available or not valid: ${invalid.join(", ")}.` : "", "warn", "address");
    this._write({ updateUrl: !untouched });
    this._chosen(this.route);
  }

  /** Write the settings to the URL, and show which ones differ from the route's. */
  _write({ updateUrl = true } = {}) {
    const parameters = new URLSearchParams({ tenant: byId("tenant").value, model: byId("model").value });
    const changed = [];
    for (const name of GUIDANCE) {
      if (!this.route || String(this._value(name)) === String(this.route.guidance[name])) continue;
      parameters.set(name, byId(name).value);
      changed.push({ tokens: "length" }[name] ?? name);
    }
    for (const name of SAMPLING) {
      if (byId(name).value === "") continue;
      parameters.set(name, byId(name).value);
      changed.push({ max_tokens: "max tokens" }[name] ?? name);
    }
    if (updateUrl) history.replaceState(null, "", `#${parameters}`);
    byId("changed").textContent = changed.length ? `Changed: ${changed.join(", ")}` : "Settings of the route";
    byId("settings-in-short").textContent = `${this.tenant?.tenant ?? ""} / ${this.route?.model ?? ""}, ${byId("tokens").value} tokens`;
    byId("reset").disabled = changed.length === 0;
    byId("projection-help").textContent = PROJECTIONS[byId("projection").value] ?? "See the file in policies/projections.";
    byId("placement-help").textContent = PLACEMENTS[byId("placement").value] ?? "";
    byId("max_tokens").placeholder = this.route?.default_max_tokens ?? "engine's";
  }
}

function fill(id, names) {
  byId(id).replaceChildren(...names.map((name) => h("option", { value: name }, name)));
}
