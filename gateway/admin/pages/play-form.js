// The form: what it offers, what it says, and the part of that which stands in the address.
import { byId, h } from "./dom.js";
import { say } from "./status.js";

const SLIDER_MOST = 200;
const PROJECTIONS = {
  cutoff: "The first tokens of the teacher's answer.",
  concise: "The first tokens of a brief answer.",
  hint: "A brief hint; the answer is the student's.",
  primed: "The first tokens, after the teacher alone has seen a few good answers.",
};
const PLACEMENTS = {
  prefix: "The answer opens with it, and the student goes on.",
  context: "In the student's prompt, introduced; callers do not see it.",
  input: "At the end of the student's prompt, as it is.",
};
const EXAMPLES = [
  ["Arithmetic", "A baker sells 24 rolls in the morning and half as many in the afternoon. Each roll costs 3 dollars. How much money does the baker take in?"],
  ["Why", "Why is the sky blue?"],
  ["Code", "Write a Python function that tells whether a word is a palindrome, and explain it in two sentences."],
  ["List", "List five things to check before a long bicycle tour, each with one reason."],
  ["Letter", "Write a short, friendly note that moves our meeting from Tuesday to Thursday at ten."],
];
const OWN = { temperature: "", max_tokens: "", seed: "" };
const SAMPLING = Object.keys(OWN);
const GUIDANCE = ["tokens", "projection", "placement"];

export class Form {
  /** `changed` is called with the route whenever another one is chosen. */
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

  /** What is asked for, without the mode. Of the guidance only what the route has otherwise. */
  get wish() {
    const guidance = {};
    for (const name of GUIDANCE) if (this._value(name) !== this.route.guidance[name]) guidance[name] = this._value(name);
    const sampling = {};
    for (const name of SAMPLING) if (byId(name).value !== "") sampling[name] = Number(byId(name).value);
    const system = byId("system").value.trim() ? byId("system").value : "";
    return { tenant: this.tenant.tenant, model: this.route.model, prompt: byId("prompt").value, system, guidance, sampling };
  }

  /** Whether it can be sent; if not, the browser says why at the field. */
  ready() {
    const prompt = byId("prompt");
    prompt.setCustomValidity(prompt.value.trim() ? "" : "Ask something first.");
    const wrong = [...this.form.elements].find((one) => one.willValidate && !one.checkValidity());
    if (!wrong) return true;
    byId("settings").open ||= byId("settings").contains(wrong);
    wrong.focus();
    wrong.reportValidity();
    return false;
  }

  /** Where there is room the settings stand beside the question; else they are folded away. */
  _fold(room) {
    const fold = () => { byId("settings").open = room.matches; };
    room.addEventListener("change", fold);
    fold();
  }

  _value(name) {
    const said = this._said(name);
    return name === "tokens" && said !== "auto" ? Number(said) : said;
  }

  /** As it stands in the form and in the address. */
  _said(name) {
    return name === "tokens" && byId("auto").checked ? "auto" : byId(name).value;
  }

  _set(name, value) {
    if (name === "tokens") this._length(value);
    else byId(name).value = value;
  }

  /** A number; or auto, where the route has it. */
  _length(wanted) {
    const own = this.route?.auto;
    const number = wanted === "auto" ? (own?.default ?? "") : wanted;
    byId("auto-choice").hidden = !own;
    byId("auto").checked = wanted === "auto" && Boolean(own);
    byId("tokens").value = number;
    this._slide();
  }

  _listen() {
    byId("tenant").addEventListener("change", () => { this._routes(); this._own(); });
    byId("model").addEventListener("change", () => this._own());
    byId("slider").addEventListener("input", () => { byId("tokens").value = byId("slider").value; this._write(); });
    byId("tokens").addEventListener("input", () => { this._slide(); this._write(); });
    byId("auto").addEventListener("change", () => { this._slide(); this._write(); });
    byId("projection").addEventListener("change", () => {
      byId("placement").value = this.options.projections.find((one) => one.name === byId("projection").value).placement;
      this._write();
    });
    for (const name of ["placement", ...SAMPLING]) byId(name).addEventListener("input", () => this._write());
    byId("prompt").addEventListener("input", () => byId("prompt").setCustomValidity(""));
    byId("reset").addEventListener("click", () => this._own());
    addEventListener("hashchange", () => this._read(new URLSearchParams(location.hash.slice(1))));
  }

  _example(text) {
    byId("prompt").value = text;
    byId("prompt").setCustomValidity("");
    byId("prompt").focus();
  }

  _slide() {
    const tokens = Number(byId("tokens").value) || 1;
    byId("slider").max = Math.max(SLIDER_MOST, Math.min(tokens, this.options.max_guidance_tokens));
    byId("slider").value = tokens;
    const auto = byId("auto").checked;
    for (const id of ["slider", "tokens"]) byId(id).disabled = auto;
    byId("length-says").textContent = auto ? `The policy chooses for each question, from ${this.route.auto.min} to ${this.route.auto.max}, or none.` : "";
  }

  _routes() {
    fill("model", this.tenant.routes.map((one) => one.model));
  }

  /** All as the route has it. */
  _own() {
    this._put({ ...this.route?.guidance, ...OWN });
    this._write();
    this._chosen(this.route);
  }

  _put({ tokens = byId("tokens").value, ...rest }) {
    this._length(tokens);
    for (const [name, value] of Object.entries(rest)) byId(name).value = value;
  }

  /** Out of the address: what cannot be is left out, and said. */
  _read(said) {
    const lost = [];
    const choose = (name) => {
      const wanted = said.get(name);
      const select = byId(name);
      if (wanted === null) return;
      if ([...select.options].some((one) => one.value === wanted)) select.value = wanted;
      else lost.push(`${name} ${wanted}`);
    };
    choose("tenant");
    this._routes();
    choose("model");
    this._put({ ...this.route?.guidance, ...OWN });
    choose("projection");
    choose("placement");
    for (const name of ["tokens", ...SAMPLING]) {
      const wanted = said.get(name);
      if (wanted === null) continue;
      const before = this._said(name);
      this._set(name, wanted);
      if (byId(name).value === "" || !byId(name).validity.valid) {
        this._set(name, before);
        lost.push(`${name} ${wanted}`);
      }
    }
    const untouched = location.hash === "";
    say(lost.length ? `The address asks for what there is not, or what cannot be: ${lost.join(", ")}.` : "", "warn", "address");
    this._write({ tell: !untouched });
    this._chosen(this.route);
  }

  /** Into the address, but for the question; and what has been changed, in words. */
  _write({ tell = true } = {}) {
    const said = new URLSearchParams({ tenant: byId("tenant").value, model: byId("model").value });
    const changed = [];
    for (const name of GUIDANCE) {
      if (!this.route || String(this._value(name)) === String(this.route.guidance[name])) continue;
      said.set(name, this._said(name));
      changed.push({ tokens: "length" }[name] ?? name);
    }
    for (const name of SAMPLING) {
      if (byId(name).value === "") continue;
      said.set(name, byId(name).value);
      changed.push({ max_tokens: "max tokens" }[name] ?? name);
    }
    if (tell) history.replaceState(null, "", `#${said}`);
    byId("changed").textContent = changed.length ? `Changed: ${changed.join(", ")}` : "As the route has it";
    byId("settings-in-short").textContent = `${this.tenant?.tenant ?? ""} / ${this.route?.model ?? ""}, ${byId("auto").checked ? "length auto" : `${byId("tokens").value} tokens`}`;
    byId("reset").disabled = changed.length === 0;
    byId("projection-says").textContent = PROJECTIONS[byId("projection").value] ?? "As its file in policies/projections says.";
    byId("placement-says").textContent = PLACEMENTS[byId("placement").value] ?? "";
    byId("max_tokens").placeholder = this.route?.default_max_tokens ?? "engine's";
  }
}

function fill(id, names) {
  byId(id).replaceChildren(...names.map((name) => h("option", { value: name }, name)));
}
