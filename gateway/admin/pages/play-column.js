// One of the three answers: its streamed text with the teacher's part, its times and its cost.
import { useEffect, useId, useRef, useState } from "./vendor/hooks.js";
import { fetchJson, RequestError } from "./api.js";
import { duration, money, saved, savedKind, share, short } from "./format.js";
import { start } from "./play-stream.js";
import { html } from "./ui.js";

export const TITLES = { teacher: "Teacher alone", student: "Student alone", guided: "Guided" };
const STATES = { idle: "", waiting: "waiting", writing: "writing", done: "done", stopped: "stopped", failed: "failed", none: "not available on this route" };
const EMPTY = {
  teacher: "The teacher writes the whole answer.",
  student: "The student writes the whole answer.",
  guided: "The teacher starts the answer, the student finishes it.",
};
const NONE = { teacher: "This route has no teacher.", student: "This route has no student.", guided: "This route needs a teacher and a student." };
const ENGINE_FAILED = 500;
/** Descriptions of reasons for an answer without guidance. Other reasons are shown as in the receipt. */
const UNGUIDED = {
  teacher_late: "the teacher missed the deadline of this route",
  teacher_circuit_open: "the teacher's circuit breaker is open after failures",
  teacher_unreachable: "the teacher cannot be reached",
  teacher_failed: "the teacher failed",
  teacher_overloaded: "the teacher is overloaded",
  teacher_timeout: "the teacher did not answer in time",
  teacher_no_permit: "Redis does not answer, and this process has no free permit for the teacher",
  queue_full: "too many requests of this tenant are waiting for the teacher",
  guidance_empty: "the teacher returned no text",
  guidance_boilerplate: "the projection skipped all of the teacher's text",
  student_started_anew: "the student started the answer again",
  student_not_probed: "the student's way of continuing an answer is not known yet",
};
const SHARED = { cache: "The guidance came from the cache", flight: "An identical request paid for the guidance" };

export const IDLE = { state: "idle", hidden: "", guidance: "", words: "", receipt: null, problem: "", note: "" };
export const isTruncated = (receipt) => receipt?.finish_reason === "length";

function add(run, chunk) {
  const text = chunk.choices.map((choice) => choice.delta?.content ?? "").join("");
  const guidance = chunk.x_gkt?.opening ?? "";
  return text ? { ...run, state: "writing", guidance: run.guidance + guidance, words: run.words + text.slice(guidance.length) } : run;
}

/** Send the request and pass each change of the answer to `update`. Errors are part of the answer and never thrown. */
export async function answer(mode, { sampling, system, guidance, ...rest }, signal, update) {
  let run = { ...IDLE, state: "waiting", since: performance.now() };
  const set = (next) => update((run = { ...run, ...next }));
  set({});
  let id = null;
  try {
    const body = { ...rest, ...sampling, ...(system ? { system } : {}), ...(mode === "guided" ? { guidance } : {}), mode };
    const stream = await start(body, signal);
    id = stream.id;
    let problem = null;
    for await (const [name, data] of stream.events) {
      if (name === "chunk") set(add(run, data));
      else if (name === "guidance") set({ hidden: data.text }); // only the student sees it
      else if (name === "error") problem = data.message;
      else set({ receipt: data, note: remarks(mode, data, sampling) });
    }
    problem ??= run.receipt ? "" : "The stream ended early.";
    set({ state: problem ? "failed" : "done", problem });
  } catch (error) {
    if (signal.aborted) set({ state: "stopped", note: id ? "" : 'Stopped before the first token. The receipt with the cost has the key "playground".' });
    else set({ state: "failed", problem: error instanceof RequestError ? error.message : "The connection was lost." });
    id ??= error.status >= ENGINE_FAILED ? error.id : null;
    if (id) {
      try { // The gateway replies when the receipt is written.
        const receipt = await fetchJson(`/playground/receipts/${encodeURIComponent(rest.tenant)}/${id}`);
        set({ receipt, note: remarks(mode, receipt, sampling) });
      } catch (missing) {
        set({ note: missing.message });
      }
    }
  }
  return run;
}

/** Return a sentence on an answer for screen readers. */
export function spoken(mode, { state, receipt }) {
  if (state !== "done") return `${TITLES[mode]}: ${STATES[state]}.`;
  return `${TITLES[mode]}: ${isTruncated(receipt) ? "truncated" : "done"} after ${duration(receipt.timings.total_ms)}, ${money(receipt.cost_usd)}.`;
}

function Clock({ since }) {
  const [, tick] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => tick((count) => count + 1), 100);
    return () => clearInterval(timer);
  }, []);
  return `, ${((performance.now() - since) / 1000).toFixed(1)} s`;
}

/** The mark between the teacher's and the student's text. Its tooltip names the engines and tokens of the receipt. */
function Seam({ receipt }) {
  const [top, setTop] = useState(null);
  const [id, mark] = [useId(), useRef(null)];
  const show = () => setTop(mark.current.offsetTop + mark.current.offsetHeight + 6);
  const kept = receipt?.guidance?.kept_tokens;
  const text = kept === undefined
    ? "The seam. The text before it is the teacher's. The student read it as the beginning of its own answer and continues it."
    : `The seam. The teacher, ${receipt.teacher.model}, wrote ${kept} ${kept === 1 ? "token" : "tokens"} before it. The student, ${
      receipt.student?.model ?? "-"}, read them as the beginning of its own answer and continues it.`;
  return html`<button type="button" class="seam" ref=${mark} aria-label="The seam: the student continues here" aria-describedby=${id}
      onMouseEnter=${show} onFocus=${show} onClick=${show}
      onMouseLeave=${() => setTop(null)} onBlur=${() => setTop(null)} onKeyDown=${(event) => event.key === "Escape" && setTop(null)}>\u203a</button>
    <span class="tip" id=${id} role="tooltip" hidden=${top === null} style=${{ top: `${top ?? 0}px` }}>${text}</span>
    <span class="visually-hidden">The student: </span>`;
}

const Figure = ({ name, value, children, wide, kind }) => html`<div class=${wide ? "wide" : ""}><dt>${name}</dt><dd
  class=${kind}>${value}${children}</dd></div>`;

function Figures({ receipt }) {
  const timings = receipt?.timings ?? {};
  const roles = [["teacher", receipt?.teacher], ["student", receipt?.student], ["warm-up", receipt?.warmup]].filter(([, part]) => part);
  const estimate = receipt?.baseline_estimated ? " (estimate)" : "";
  return html`<dl class="figures">
    <${Figure} name="First token" value=${duration(timings.first_token_ms)} />
    ${timings.handover_ms !== undefined && html`<${Figure} name="Hand-over" value=${duration(timings.handover_ms)} />`}
    <${Figure} name="Total" value=${duration(timings.total_ms)} />
    <${Figure} name="Tokens written" value=${receipt ? short(roles.reduce((sum, [, part]) => sum + part.output_tokens, 0)) : "-"}>
      ${roles.map(([role, part]) => html`<small key=${role}>${`${role}: ${short(part.input_tokens)} in, ${short(part.output_tokens)} out${part.estimated ? " (estimate)" : ""}`}</small>`)}<//>
    <${Figure} name="Cost" value=${money(receipt?.cost_usd)}>${receipt && html`<small>${`${receipt.baseline_model} alone: ${money(receipt.baseline_usd)}${estimate}`}</small>`}<//>
    <${Figure} wide name=${receipt ? `Saved against ${receipt.baseline_model} alone` : "Saved"}
      value=${receipt ? saved(receipt) : "-"} kind=${receipt ? savedKind(receipt) : ""}>
      ${Number(receipt?.savings_usd) ? html`<small>${receipt.savings_about_zero
        ? `${money(receipt.savings_usd)} \u00b1 ${money(receipt.baseline_error_usd)}` : share(receipt.savings_usd, receipt.baseline_usd)}</small>` : ""}<//>
  </dl>`;
}

/** An answer. `copy(kind)` copies its request. */
export function Column({ mode, route, run, copy }) {
  const id = useId();
  const possible = Boolean(route?.modes.includes(mode));
  const students = route?.students.join(", ") || "?";
  const engines = route && { teacher: route.teacher ?? "", student: route.students.join(", "), guided: `${route.teacher ?? "?"} starts, ${students} finishes` }[mode];
  const state = possible ? run.state : "none";
  const running = state === "waiting" || state === "writing";
  return html`<article class="column card" data-mode=${mode} data-state=${state} aria-labelledby=${id}>
    <header><div><h2 id=${id}>${TITLES[mode]}</h2><span class="engines soft small">${engines}</span></div>
      <span class="state ${isTruncated(run.receipt) ? "truncated" : ""}">${STATES[state]}${state === "done" && isTruncated(run.receipt)
        ? ", truncated" : ""}${running && html`<${Clock} since=${run.since} />`}</span></header>
    <div class="content">
      <div class="answer" role="group" aria-labelledby=${id} aria-busy=${running ? "true" : undefined}>
        ${(state === "idle" || state === "none") && html`<p class="empty-answer">${possible ? EMPTY[mode] : NONE[mode]}</p>`}
        ${run.guidance && html`<span class="visually-hidden">The teacher: </span><mark>${run.guidance}</mark>`}
        ${run.guidance && run.words && html`<${Seam} receipt=${run.receipt} />`}
        ${run.words && html`<span class="words">${run.words}</span>`}
      </div>
      ${run.hidden && html`<p class="hidden-guidance"><span class="soft small">In the student's prompt, not in the answer:</span> <mark>${run.hidden}</mark></p>`}
      ${run.guidance && html`<p class="legend">Underlined, up to the mark: the teacher's text</p>`}
      ${run.problem && html`<p class="problem">${run.problem}</p>`}
      ${run.note && html`<p class="note">${run.note}</p>`}
    </div>
    <${Figures} receipt=${run.receipt} />
    <div class="row copying">${[["curl", "curl"], ["python", "Python"]].map(([kind, name]) => html`<button
      type="button" key=${kind} disabled=${!possible}
      aria-label="Copy as ${name}: ${TITLES[mode]}" onClick=${() => copy(kind)}>Copy as ${name}</button>`)}</div>
  </article>`;
}

function remarks(mode, receipt, sampling) {
  const texts = [];
  if (isTruncated(receipt)) {
    const limit = sampling.max_tokens ? `max tokens (${sampling.max_tokens})` : "the route's or the engine's limit of tokens";
    texts.push(`Truncated: the answer reached ${limit}. Raise "Max tokens" to compare whole answers.`);
  }
  if (receipt.unguided) texts.push(`Without guidance: ${UNGUIDED[receipt.unguided] ?? receipt.unguided}.`);
  else if (receipt.mode === "teacher_complete") texts.push("The teacher's guidance was the whole answer. The student was not called.");
  else if (receipt.mode !== mode) texts.push(`Answered in mode ${receipt.mode}: a budget has passed its soft limit.`);
  if (receipt.guidance && receipt.guidance.placement !== "prefix" && receipt.mode === "guided")
    texts.push("The guidance is in the student's prompt and not in the answer.");
  if (receipt.guidance?.cut_short) texts.push(`The guidance was cut short: ${UNGUIDED[receipt.guidance.cut_short] ?? receipt.guidance.cut_short}.`);
  if (receipt.teacher?.shared) texts.push(`${SHARED[receipt.teacher.shared]}. It is free for this request.`);
  const failed = (receipt.attempts ?? []).map((one) => `${one.engine} (${one.error})`);
  const times = (name) => failed.filter((one) => one === name).length;
  const names = [...new Set(failed)].map((one) => (times(one) > 1 ? `${one} (${times(one)} times)` : one));
  if (names.length) texts.push(`Earlier failed calls: ${names.join(", ")}.`);
  if (receipt.status === "client_gone") texts.push("The receipt has the status client_gone and includes the tokens written until then.");
  return texts.join(" ");
}
