// The table of usage, grouped by tenant, by route, or by models.
import { h } from "./dom.js";
import { duration, money, savedKind, savedText, share, tokens, whole } from "./format.js";
import { table } from "./table.js";

const VIEWS = [
  ["tenant", "Tenants", [["tenant", "Tenant"]]],
  ["route", "Routes", [["route", "Route"]]],
  ["teacher,student", "Models", [["teacher", "Teacher"], ["student", "Student"]]],
];

const count = (counts) => Object.values(counts ?? {}).reduce((all, one) => all + one, 0);
const written = (row) => row.tokens.teacher.output + row.tokens.student.output;

function figure(key, title, value, show = whole) {
  return { key, title, number: true, value, show: (row) => show(value(row)) };
}

const signed = (row) => h("span", { class: savedKind(row) || null }, savedText(row));
const unavailable = (row) => row.savings_classes?.teacher_unavailable?.requests ?? 0;

const FIGURES = [
  figure("requests", "Requests", (row) => row.requests, tokens),
  figure("errors", "Errors", (row) => count(row.errors)),
  figure("written", "Tokens written", written, tokens),
  figure("teacher", "Teacher's share", (row) => row.teacher_token_share, (value) => share(value)),
  figure("cost", "Cost", (row) => Number(row.cost_usd), money),
  figure("baseline", "Teacher alone", (row) => Number(row.baseline_usd), money),
  { key: "saved", title: "Saved", number: true, value: (row) => Number(row.savings_usd), show: signed },
  figure("part", "Saved, %", (row) => (Number(row.baseline_usd) && !row.savings_about_zero ? Number(row.savings_usd) / Number(row.baseline_usd) : null), (value) => share(value)),
  { key: "unavailable", title: "Teacher unavailable", number: true, value: unavailable, show: (row) => h("span", { class: unavailable(row) ? "bad" : null }, whole(unavailable(row))) },
  figure("measuring", "Measuring", (row) => Number(row.measuring_usd), money),
  figure("first", "First token p95", (row) => row.latency_ms.first_token?.p95 ?? null, duration),
  figure("handover", "Hand-over p95", (row) => row.latency_ms.handover?.p95 ?? null, duration),
  figure("total", "Total p95", (row) => row.latency_ms.total?.p95 ?? null, duration),
];

/** Create the buttons in `choice` and the tables in `box`. Call `changed` when another view is chosen. */
export function usage(choice, box, changed) {
  let by = "tenant";
  const tables = new Map(VIEWS.map(([name, title, names]) => {
    const part = h("div", { class: "stack", hidden: name !== by });
    box.append(part);
    const columns = [...names.map(([key, head]) => ({ key, title: head, value: (row) => row[key] || "none", show: (row) => row[key] || "none" })), ...FIGURES];
    const find = (row) => names.map(([key]) => row[key]).join(" ");
    return [name, { part, view: table(part, { caption: `Usage by ${title.toLowerCase()}`, columns, sort: "cost", find, search: `Search ${title.toLowerCase()}`, empty: "No requests in this period." }) }];
  }));
  const buttons = VIEWS.map(([name, title]) => h("button", { type: "button", "aria-pressed": String(name === by), onclick: () => choose(name) }, title));
  choice.append(...buttons);

  function choose(name) {
    by = name;
    VIEWS.forEach(([one], index) => {
      buttons[index].setAttribute("aria-pressed", String(one === by));
      tables.get(one).part.hidden = one !== by;
    });
    changed();
  }

  return { by: () => by, rows: (name, rows) => tables.get(name).view.rows(rows) };
}
