// One of the three answers: its words as they come, whose they are, and what they took and cost.
import { h } from "./dom.js";
import { fetchJson, Refused } from "./fetching.js";
import { duration, money, savedKind, savedText, share, tokens } from "./format.js";
import { chosenLength } from "./play-length.js";
import { begin } from "./play-stream.js";

const TITLES = { teacher: "Teacher alone", student: "Student alone", guided: "Guided" };
const STATES = { idle: "", waiting: "waiting", writing: "writing", done: "done", stopped: "stopped", failed: "failed", none: "not on this route" };
const ENGINE_FAILED = 500;

/** Why an answer went without guidance, in words; what is not here is shown as the receipt has it. */
const UNGUIDED = {
  teacher_late: "the teacher was too late for this route's deadline",
  teacher_circuit_open: "the teacher rests after failures",
  teacher_unreachable: "the teacher cannot be reached",
  teacher_failed: "the teacher failed",
  teacher_overloaded: "the teacher is overloaded",
  teacher_timeout: "the teacher did not answer in time",
  queue_full: "too many requests of this tenant wait for the teacher",
  guidance_empty: "the teacher wrote nothing to open with",
  guidance_boilerplate: "the teacher wrote nothing but what the projection skips",
  student_started_anew: "the student began the answer anew",
  auto_short: "so short an answer needs none",
  auto_rule: "a rule of the policy's says that such a question needs none",
  auto_model: "the policy's model takes the student alone to be worth most",
  student_confident: "the student was sure of its first token",
  student_not_probed: "it is not known yet how the student continues an answer",
};

const SHARED = {
  cache: "The same opening had been asked for before, and was kept",
  flight: "Another request was asking for the same opening, and paid for it",
};

let numbered = 0;

export class Column {
  /** `copy(mode, kind)` is what the buttons below it do. */
  constructor(mode, copy) {
    this.mode = mode;
    this.title = TITLES[mode];
    this.receipt = null;
    this._tip = `tip-${(numbered += 1)}`;
    const id = `column-${mode}`;
    this.engines = h("span", { class: "engines soft small" });
    this.stateLine = h("span", { class: "state" });
    this.answer = h("div", { class: "answer", "aria-labelledby": id, role: "group" });
    this.legend = h("p", { class: "legend", hidden: true }, "Underlined, up to the mark: the teacher's words");
    this.note = h("p", { class: "note", hidden: true });
    this.problem = h("p", { class: "problem", hidden: true });
    this.figures = h("dl", { class: "figures" });
    this.buttons = [["curl", "curl"], ["python", "Python"]].map(([kind, name]) =>
      h("button", { type: "button", "aria-label": `Copy as ${name}: ${this.title}`, onclick: () => copy(mode, kind) }, `Copy as ${name}`));
    this.element = h("article", { class: "column card", "data-mode": mode, "data-state": "idle", "aria-labelledby": id },
      h("header", {}, h("div", {}, h("h2", { id }, this.title), this.engines), this.stateLine),
      h("div", { class: "said" }, this.answer, this.legend, this.problem, this.note), this.figures, h("div", { class: "row copying" }, this.buttons));
    this._figures(null);
  }

  /** Another route was chosen: who will answer here, and whether anybody can. */
  choose(route) {
    this.possible = Boolean(route?.modes.includes(this.mode));
    const students = route?.students.join(", ") ?? "";
    this.engines.textContent = !route ? "" : { teacher: route.teacher ?? "", student: students, guided: `${route.teacher ?? "?"} opens, ${students || "?"} finishes` }[this.mode];
    for (const button of this.buttons) button.disabled = !this.possible;
    this.clear();
  }

  clear() {
    this._turn = {}; // what still comes of an earlier run is of another one
    this.receipt = null;
    this._opening = this._words = this._seam = this._tipNode = null;
    for (const line of [this.note, this.problem, this.legend]) line.hidden = true;
    this._figures(null);
    this._state(this.possible ? "idle" : "none");
    const empty = this.possible
      ? { teacher: "The teacher writes all of it.", student: "The student writes all of it.", guided: "The teacher writes the first words, the student the rest." }[this.mode]
      : { teacher: "This route names no teacher.", student: "This route names no student.", guided: "This route does not name both a teacher and a student." }[this.mode];
    this.answer.removeAttribute("aria-busy");
    this.answer.replaceChildren(h("p", { class: "empty" }, empty));
  }

  /** Ask, and show what comes. Never raises: what goes wrong stands in the column. */
  async run(wish, signal) {
    this.clear();
    const turn = this._turn;
    const current = () => turn === this._turn;
    this.answer.replaceChildren();
    this.answer.setAttribute("aria-busy", "true");
    this._state("waiting");
    const ticking = this._clock(performance.now(), current);
    let id = null;
    try {
      const { sampling, system, ...rest } = wish;
      const body = { ...rest, ...sampling, ...(system ? { system } : {}), mode: this.mode };
      if (this.mode !== "guided") delete body.guidance;
      const run = await begin(body, signal);
      id = run.id;
      let wrong = null;
      for await (const [name, data] of run.events) {
        if (!current()) return;
        if (name === "chunk") this._show(data);
        else if (name === "error") wrong = data.message;
        else this._settle(data);
      }
      if (!current()) return;
      if (wrong) this._fail(wrong);
      else if (this.receipt) this._state("done");
      else this._fail("The stream broke off before its end.");
    } catch (error) {
      clearInterval(ticking);
      if (current()) await this._broke(error, id, wish.tenant, signal, current);
    } finally {
      clearInterval(ticking);
      if (current()) {
        this._state(this.element.dataset.state); // without the clock
        this.answer.removeAttribute("aria-busy");
      }
    }
  }

  /** In one sentence, for who does not see it. */
  get spoken() {
    const state = this.element.dataset.state;
    if (state !== "done") return `${this.title}: ${STATES[state]}.`;
    return `${this.title}: done after ${duration(this.receipt.timings.total_ms)}, ${money(this.receipt.cost_usd)}.`;
  }

  async _broke(error, id, tenant, signal, current) {
    if (signal.aborted) {
      this._state("stopped");
      if (!id) this._note("Stopped before the first word. What it cost stands in its receipt, under the key playground.");
    } else {
      this._fail(error instanceof Refused ? error.message : "The connection broke off.");
      id ??= error.status >= ENGINE_FAILED ? error.id : null;
    }
    if (!id) return;
    try {
      // It waits there until the receipt is written.
      const receipt = await fetchJson(`/playground/receipts/${encodeURIComponent(tenant)}/${id}`);
      if (current()) this._settle(receipt);
    } catch (missing) {
      if (current()) this._note(missing.message);
    }
  }

  _show(chunk) {
    const text = chunk.choices.map((choice) => choice.delta?.content ?? "").join("");
    if (!text) return;
    if (this.element.dataset.state === "waiting") this._state("writing");
    const opening = chunk.x_gkt?.opening ?? "";
    if (opening) {
      if (!this._opening) {
        this._opening = h("mark");
        this.answer.append(h("span", { class: "visually-hidden" }, "The teacher: "), this._opening);
        this.legend.hidden = false;
      }
      this._opening.append(opening);
    }
    const rest = text.slice(opening.length);
    if (!rest) return;
    if (this._opening && !this._seam) this._addSeam();
    this._words ??= this.answer.appendChild(h("span", { class: "words" }));
    this._words.append(rest);
  }

  _addSeam() {
    const show = () => {
      this._tipNode.hidden = false;
      this._tipNode.style.top = `${this._seam.offsetTop + this._seam.offsetHeight + 6}px`;
    };
    const hide = () => { this._tipNode.hidden = true; };
    this._tipNode = h("span", { class: "tip", id: this._tip, role: "tooltip", hidden: true },
      "The seam. Up to here the teacher wrote; the student read that as the beginning of its own answer, and goes on.");
    this._seam = h("button", { type: "button", class: "seam", "aria-label": "The seam: the student goes on from here", "aria-describedby": this._tip,
      onmouseenter: show, onmouseleave: hide, onfocus: show, onblur: hide, onclick: show,
      onkeydown: (event) => { if (event.key === "Escape") hide(); } }, "\u203a");
    this.answer.append(this._seam, this._tipNode, h("span", { class: "visually-hidden" }, "The student: "));
  }

  _settle(receipt) {
    this.receipt = receipt;
    this._figures(receipt);
    const kept = receipt.guidance?.kept_tokens;
    if (this._tipNode && kept !== undefined) {
      this._tipNode.textContent = `The seam. The teacher, ${receipt.teacher.model}, wrote ${kept} ${kept === 1 ? "token" : "tokens"} up to here. The student, ${receipt.student?.model ?? "-"}, read them as the beginning of its own answer, and goes on.`;
    }
    this._note(remarks(this.mode, receipt).join(" "));
  }

  _figures(receipt) {
    const timings = receipt?.timings ?? {};
    const both = (part) => `${tokens(part.input_tokens)} in, ${tokens(part.output_tokens)} out`;
    const saved = receipt ? Number(receipt.savings_usd) : 0;
    const shares = [["teacher", receipt?.teacher], ["student", receipt?.student], ["probe", receipt?.probe]];
    const counts = receipt ? tokens(shares.reduce((sum, [, part]) => sum + (part?.output_tokens ?? 0), 0)) : "-";
    const roles = shares.filter(([, part]) => part).map(([role, part]) => h("small", {}, `${role}: ${both(part)}${part.estimated ? " (estimate)" : ""}`));
    const estimate = receipt?.baseline_estimated ? " (estimate)" : "";
    const length = chosenLength(receipt);
    this.figures.replaceChildren(
      figure("First token", duration(timings.first_token_ms)),
      figure("Total", duration(timings.total_ms)),
      figure("Tokens written", counts, roles),
      figure("Cost", money(receipt?.cost_usd), receipt ? [h("small", {}, `${receipt.baseline_model} alone: ${money(receipt.baseline_usd)}${estimate}`)] : []),
      ...(length ? [figure("Length of the guidance", length.value, length.more.map((line) => h("small", {}, line)), { wide: true })] : []),
      figure(receipt ? `Saved against ${receipt.baseline_model} alone` : "Saved", receipt ? savedText(receipt) : "-",
        saved ? [h("small", {}, receipt.savings_about_zero ? `${money(saved)} \u00b1 ${money(receipt.baseline_error_usd)}` : share(saved, receipt.baseline_usd))] : [],
        { wide: true, sign: { good: "gain", bad: "loss" }[receipt ? savedKind(receipt) : ""] ?? null }),
    );
  }

  _state(state) {
    this.element.dataset.state = state;
    this.stateLine.textContent = STATES[state];
  }

  _clock(since, current) {
    return setInterval(() => {
      if (current()) this.stateLine.textContent = `${STATES[this.element.dataset.state]}, ${((performance.now() - since) / 1000).toFixed(1)} s`;
    }, 100);
  }

  _fail(message) {
    this._state("failed");
    this.problem.textContent = message;
    this.problem.hidden = false;
  }

  _note(text) {
    this.note.textContent = text;
    this.note.hidden = !text;
  }
}

function figure(name, value, more = [], { wide = false, sign = null } = {}) {
  return h("div", { class: wide ? "wide" : null }, h("dt", {}, name), h("dd", { class: sign }, value, more));
}

function remarks(mode, receipt) {
  const said = [];
  if (receipt.unguided) said.push(`Without guidance: ${UNGUIDED[receipt.unguided] ?? receipt.unguided}.`);
  else if (receipt.mode === "teacher_complete") said.push("The teacher's opening was the whole answer: the student was not asked.");
  else if (receipt.mode !== mode) said.push(`Answered in mode ${receipt.mode}: a budget wanted it cheaper.`);
  if (receipt.guidance && receipt.guidance.placement !== "prefix" && receipt.mode === "guided") said.push("The teacher's words stand in the student's prompt, and not in the answer.");
  if (receipt.guidance?.cut_short) said.push(`The teacher was cut short: ${UNGUIDED[receipt.guidance.cut_short] ?? receipt.guidance.cut_short}.`);
  if (receipt.teacher?.shared) said.push(`${SHARED[receipt.teacher.shared]}: here it cost nothing.`);
  if (receipt.attempts?.length) said.push(`Failed calls before it: ${counted(receipt.attempts.map((one) => `${one.engine} (${one.error})`))}.`);
  if (receipt.status === "client_gone") said.push("The receipt says client_gone, and counts what was written until then.");
  return said;
}

/** What comes more than once is said once, with how often. */
function counted(names) {
  const times = new Map();
  for (const name of names) times.set(name, (times.get(name) ?? 0) + 1);
  return [...times].map(([name, often]) => (often > 1 ? `${often} times ${name}` : name)).join(", ");
}
