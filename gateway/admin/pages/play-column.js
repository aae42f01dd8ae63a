// One of the three answers: its streamed text with the teacher's part, its times and its cost.
import { h } from "./dom.js";
import { fetchJson, RequestError } from "./fetching.js";
import { duration, money, savedKind, savedText, share, tokens } from "./format.js";
import { start } from "./play-stream.js";

const TITLES = { teacher: "Teacher alone", student: "Student alone", guided: "Guided" };
const STATES = { idle: "", waiting: "waiting", writing: "writing", done: "done", stopped: "stopped", failed: "failed", none: "not available on this route" };
const ENGINE_FAILED = 500;

/** Descriptions of reasons for an answer without guidance. Other reasons are shown as in the receipt. */
const UNGUIDED = {
  teacher_late: "the teacher missed the deadline of this route",
  teacher_circuit_open: "the teacher's circuit breaker is open after failures",
  teacher_unreachable: "the teacher cannot be reached",
  teacher_failed: "the teacher failed",
  teacher_overloaded: "the teacher is overloaded",
  teacher_timeout: "the teacher did not answer in time",
  queue_full: "too many requests of this tenant are waiting for the teacher",
  guidance_empty: "the teacher returned no text",
  guidance_boilerplate: "the projection skipped all of the teacher's text",
  student_started_anew: "the student started the answer again",
  student_not_probed: "the student's way of continuing an answer is not known yet",
};

const SHARED = {
  cache: "The guidance came from the cache",
  flight: "An identical request paid for the guidance",
};

let tipCount = 0;

export class Column {
  /** The buttons of the column call `copy(mode, kind)`. */
  constructor(mode, copy) {
    this.mode = mode;
    this.title = TITLES[mode];
    this.receipt = null;
    this._tip = `tip-${(tipCount += 1)}`;
    const id = `column-${mode}`;
    this.engines = h("span", { class: "engines soft small" });
    this.stateLine = h("span", { class: "state" });
    this.answer = h("div", { class: "answer", "aria-labelledby": id, role: "group" });
    this.legend = h("p", { class: "legend", hidden: true }, "Underlined, up to the mark: the teacher's text");
    this.note = h("p", { class: "note", hidden: true });
    this.problem = h("p", { class: "problem", hidden: true });
    this.figures = h("dl", { class: "figures" });
    this.buttons = [["curl", "curl"], ["python", "Python"]].map(([kind, name]) =>
      h("button", { type: "button", "aria-label": `Copy as ${name}: ${this.title}`, onclick: () => copy(mode, kind) }, `Copy as ${name}`));
    this.element = h("article", { class: "column card", "data-mode": mode, "data-state": "idle", "aria-labelledby": id },
      h("header", {}, h("div", {}, h("h2", { id }, this.title), this.engines), this.stateLine),
      h("div", { class: "content" }, this.answer, this.legend, this.problem, this.note), this.figures, h("div", { class: "row copying" }, this.buttons));
    this._figures(null);
  }

  /** Show the models of another route, and clear the answer. */
  choose(route) {
    this.possible = Boolean(route?.modes.includes(this.mode));
    const students = route?.students.join(", ") ?? "";
    this.engines.textContent = !route ? "" : { teacher: route.teacher ?? "", student: students, guided: `${route.teacher ?? "?"} starts, ${students || "?"} finishes` }[this.mode];
    for (const button of this.buttons) button.disabled = !this.possible;
    this.clear();
  }

  clear() {
    this._run = {}; // events of an earlier run are ignored
    this.receipt = null;
    this._guidance = this._words = this._seam = this._tipNode = null;
    for (const line of [this.note, this.problem, this.legend]) line.hidden = true;
    this._figures(null);
    this._state(this.possible ? "idle" : "none");
    const empty = this.possible
      ? { teacher: "The teacher writes the whole answer.", student: "The student writes the whole answer.", guided: "The teacher starts the answer, the student finishes it." }[this.mode]
      : { teacher: "This route has no teacher.", student: "This route has no student.", guided: "This route needs a teacher and a student." }[this.mode];
    this.answer.removeAttribute("aria-busy");
    this.answer.replaceChildren(h("p", { class: "empty" }, empty));
  }

  /** Send the request and show the answer. Errors are shown in the column and never thrown. */
  async run(settings, signal) {
    this.clear();
    const run = this._run;
    const current = () => run === this._run;
    this.answer.replaceChildren();
    this.answer.setAttribute("aria-busy", "true");
    this._state("waiting");
    const ticking = this._clock(performance.now(), current);
    let id = null;
    try {
      const { sampling, system, ...rest } = settings;
      const body = { ...rest, ...sampling, ...(system ? { system } : {}), mode: this.mode };
      if (this.mode !== "guided") delete body.guidance;
      const stream = await start(body, signal);
      id = stream.id;
      let problem = null;
      for await (const [name, data] of stream.events) {
        if (!current()) return;
        if (name === "chunk") this._show(data);
        else if (name === "error") problem = data.message;
        else this._showReceipt(data);
      }
      if (!current()) return;
      if (problem) this._fail(problem);
      else if (this.receipt) this._state("done");
      else this._fail("The stream ended early.");
    } catch (error) {
      clearInterval(ticking);
      if (current()) await this._onError(error, id, settings.tenant, signal, current);
    } finally {
      clearInterval(ticking);
      if (current()) {
        this._state(this.element.dataset.state); // without the clock
        this.answer.removeAttribute("aria-busy");
      }
    }
  }

  /** Return a sentence for screen readers. */
  get spoken() {
    const state = this.element.dataset.state;
    if (state !== "done") return `${this.title}: ${STATES[state]}.`;
    return `${this.title}: done after ${duration(this.receipt.timings.total_ms)}, ${money(this.receipt.cost_usd)}.`;
  }

  async _onError(error, id, tenant, signal, current) {
    if (signal.aborted) {
      this._state("stopped");
      if (!id) this._note("Stopped before the first token. The receipt with the cost has the key `playground`.");
    } else {
      this._fail(error instanceof RequestError ? error.message : "The connection was lost.");
      id ??= error.status >= ENGINE_FAILED ? error.id : null;
    }
    if (!id) return;
    try {
      // The gateway replies when the receipt is written.
      const receipt = await fetchJson(`/playground/receipts/${encodeURIComponent(tenant)}/${id}`);
      if (current()) this._showReceipt(receipt);
    } catch (missing) {
      if (current()) this._note(missing.message);
    }
  }

  _show(chunk) {
    const text = chunk.choices.map((choice) => choice.delta?.content ?? "").join("");
    if (!text) return;
    if (this.element.dataset.state === "waiting") this._state("writing");
    const guidance = chunk.x_gkt?.opening ?? "";
    if (guidance) {
      if (!this._guidance) {
        this._guidance = h("mark");
        this.answer.append(h("span", { class: "visually-hidden" }, "The teacher: "), this._guidance);
        this.legend.hidden = false;
      }
      this._guidance.append(guidance);
    }
    const rest = text.slice(guidance.length);
    if (!rest) return;
    if (this._guidance && !this._seam) this._addSeam();
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
      "The seam. The text before it is the teacher's. The student read it as the beginning of its own answer and continues it.");
    this._seam = h("button", { type: "button", class: "seam", "aria-label": "The seam: the student continues here", "aria-describedby": this._tip,
      onmouseenter: show, onmouseleave: hide, onfocus: show, onblur: hide, onclick: show,
      onkeydown: (event) => { if (event.key === "Escape") hide(); } }, "\u203a");
    this.answer.append(this._seam, this._tipNode, h("span", { class: "visually-hidden" }, "The student: "));
  }

  _showReceipt(receipt) {
    this.receipt = receipt;
    this._figures(receipt);
    const kept = receipt.guidance?.kept_tokens;
    if (this._tipNode && kept !== undefined) {
      this._tipNode.textContent = `The seam. The teacher, ${receipt.teacher.model}, wrote ${kept} ${kept === 1 ? "token" : "tokens"} before it. The student, ${receipt.student?.model ?? "-"}, read them as the beginning of its own answer and continues it.`;
    }
    this._note(remarks(this.mode, receipt).join(" "));
  }

  _figures(receipt) {
    const timings = receipt?.timings ?? {};
    const both = (part) => `${tokens(part.input_tokens)} in, ${tokens(part.output_tokens)} out`;
    const saved = receipt ? Number(receipt.savings_usd) : 0;
    const shares = [["teacher", receipt?.teacher], ["student", receipt?.student], ["warm-up", receipt?.warmup]];
    const counts = receipt ? tokens(shares.reduce((sum, [, part]) => sum + (part?.output_tokens ?? 0), 0)) : "-";
    const roles = shares.filter(([, part]) => part).map(([role, part]) => h("small", {}, `${role}: ${both(part)}${part.estimated ? " (estimate)" : ""}`));
    const estimate = receipt?.baseline_estimated ? " (estimate)" : "";
    this.figures.replaceChildren(
      figure("First token", duration(timings.first_token_ms)),
      ...(timings.handover_ms === undefined ? [] : [figure("Hand-over", duration(timings.handover_ms))]),
      figure("Total", duration(timings.total_ms)),
      figure("Tokens written", counts, roles),
      figure("Cost", money(receipt?.cost_usd), receipt ? [h("small", {}, `${receipt.baseline_model} alone: ${money(receipt.baseline_usd)}${estimate}`)] : []),
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
  const texts = [];
  if (receipt.unguided) texts.push(`Without guidance: ${UNGUIDED[receipt.unguided] ?? receipt.unguided}.`);
  else if (receipt.mode === "teacher_complete") texts.push("The teacher's guidance was the whole answer. The student was not called.");
  else if (receipt.mode !== mode) texts.push(`Answered in mode ${receipt.mode}: a budget has passed its soft limit.`);
  if (receipt.guidance && receipt.guidance.placement !== "prefix" && receipt.mode === "guided") texts.push("The guidance is in the student's prompt and not in the answer.");
  if (receipt.guidance?.cut_short) texts.push(`The guidance was cut short: ${UNGUIDED[receipt.guidance.cut_short] ?? receipt.guidance.cut_short}.`);
  if (receipt.teacher?.shared) texts.push(`${SHARED[receipt.teacher.shared]}. It is free for this request.`);
  if (receipt.attempts?.length) texts.push(`Earlier failed calls: ${counted(receipt.attempts.map((one) => `${one.engine} (${one.error})`))}.`);
  if (receipt.status === "client_gone") texts.push("The receipt has the status client_gone and includes the tokens written until then.");
  return texts;
}

/** Join names; a repeated name is listed once, with its count. */
function counted(names) {
  const times = new Map();
  for (const name of names) times.set(name, (times.get(name) ?? 0) + 1);
  return [...times].map(([name, count]) => (count > 1 ? `${name} (${count} times)` : name)).join(", ");
}
