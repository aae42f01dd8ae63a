// The playground: a form, three answers and their comparison.
import { byId, h } from "./dom.js";
import { fetchJson } from "./fetching.js";
import { duration, money, share } from "./format.js";
import { Column } from "./play-column.js";
import { Form } from "./play-form.js";
import { asCaller, curl, python } from "./play-snippets.js";
import { openPage } from "./shell.js";
import { say } from "./status.js";

const TOAST_MS = 8_000;

openPage("playground");
const options = await fetchJson("/playground/options").catch((error) => {
  say(error.message, "bad", "options");
  throw error;
});

let running = null; // the AbortController of the current run
let toast = 0;
const columns = ["teacher", "student", "guided"].map((mode) => new Column(mode, copy));
byId("columns").append(...columns.map((column) => column.element));
const form = new Form(options, chosen);

function chosen(route) {
  running?.abort();
  for (const column of columns) column.choose(route);
  byId("summary").hidden = true;
  byId("run").disabled = !route || running !== null;
  say(route ? "" : "This tenant has no route for chat completions.", "warn", "route");
  say(route?.conditional ? `${route.model} has several routes. The first one whose conditions match the question answers it.` : "", "info", "conditional");
  const unavailable = route ? options.engines.filter((one) => [route.teacher, ...route.students].includes(one.name) && (one.up === false || one.rests)) : [];
  say(unavailable.length ? `Unavailable now: ${unavailable.map((one) => one.name).join(", ")}.` : "", "warn", "engines");
}

async function run() {
  if (running || !form.route || !form.ready()) return;
  const stop = new AbortController();
  running = stop;
  byId("run").disabled = true;
  byId("stop").disabled = false;
  byId("summary").hidden = true;
  announce("Three answers are being generated.");
  const settings = form.settings;
  await Promise.all(columns.filter((column) => column.possible).map(async (column) => {
    await column.run(settings, stop.signal);
    if (!stop.signal.aborted) announce(column.spoken);
  }));
  running = null;
  const hadFocus = document.activeElement === byId("stop");
  byId("run").disabled = !form.route;
  byId("stop").disabled = true;
  if (hadFocus) byId("run").focus();
  if (stop.signal.aborted) announce("Stopped.");
  else compare();
}

/** Compare the guided answer with the teacher's and the student's. The answers differ in length. */
function compare() {
  const [teacher, student, guided] = columns.map((column) => (column.element.dataset.state === "done" ? column.receipt : null));
  const line = byId("summary");
  line.hidden = !guided || !(teacher || student);
  if (line.hidden) return;
  const strong = (text) => h("strong", {}, text);
  const parts = ["Guided cost ", strong(money(guided.cost_usd)), " and took ", strong(duration(guided.timings.total_ms)), `, the first token after ${duration(guided.timings.first_token_ms)}. `];
  if (teacher) {
    const less = 1 - Number(guided.cost_usd) / Number(teacher.cost_usd);
    parts.push(`The teacher alone cost ${money(teacher.cost_usd)} and took ${duration(teacher.timings.total_ms)}`);
    if (Number.isFinite(less)) parts.push(": guided is ", strong(`${share(Math.abs(less))} ${less >= 0 ? "cheaper" : "more expensive"}`), " here");
    parts.push(". ");
  }
  if (guided.teacher?.shared) parts.push("The guidance was free, because it was shared with another request. ");
  if (student) parts.push(`The student alone cost ${money(student.cost_usd)} and took ${duration(student.timings.total_ms)}. `);
  parts.push(h("span", { class: "soft" }, "The answers were generated at the same time on shared engines."));
  line.replaceChildren(...parts);
  announce(line.textContent);
}

async function copy(mode, kind) {
  if (!form.ready()) return;
  const request = asCaller(mode, form.settings, form.route);
  const text = { curl, python }[kind](request, options.base_url);
  const notes = request.notes.length ? ` Note: ${request.notes.join("; ")}.` : "";
  try {
    await navigator.clipboard.writeText(text);
    showToast(`Copied as ${kind === "curl" ? "curl" : "Python"}; replace YOUR_KEY by a key of the tenant.${notes}`);
  } catch {
    byId("by-hand-text").value = text;
    byId("by-hand").showModal();
    byId("by-hand-text").select();
    if (notes) showToast(notes.trim());
  }
}

function showToast(text) {
  const line = byId("copied");
  line.textContent = text;
  line.hidden = false;
  clearTimeout(toast);
  toast = setTimeout(() => { line.hidden = true; }, TOAST_MS);
}

function announce(text) {
  byId("live").textContent = text;
}

byId("form").addEventListener("submit", (event) => { event.preventDefault(); run(); });
byId("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(); }
});
byId("stop").addEventListener("click", () => running?.abort());
addEventListener("pagehide", () => running?.abort());
document.addEventListener("leaving", () => running?.abort());
