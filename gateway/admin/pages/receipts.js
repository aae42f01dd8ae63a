// The table of the latest receipts, and the dialog of one receipt with its stages.
import { h, byId } from "./dom.js";
import { fetchJson } from "./fetching.js";
import { duration, moment, money, savedKind, savedText, timeOfDay, whole } from "./format.js";
import { stages } from "./stages.js";
import { table } from "./table.js";

const roleText = (share) => (share ? `${share.model}: ${whole(share.input_tokens)} read, ${whole(share.output_tokens)} written${share.estimated ? " (estimated)" : ""}${share.shared ? `, shared (${share.shared})` : ""}` : "-");

function waterfall(receipt) {
  const { total_ms: total, first_token_ms: first } = receipt.timings;
  const percent = (ms) => `${(100 * ms) / (total || 1)}%`;
  const lane = (from, took, token) => {
    const bar = h("i");
    bar.style.left = percent(from);
    bar.style.width = percent(took);
    bar.style.background = `var(${token})`;
    const all = h("span", { "aria-hidden": "true" }, bar);
    if (first !== undefined && first !== null) {
      const mark = h("b");
      mark.style.left = `calc(${percent(Math.min(first, total))} - 1px)`;
      all.append(mark);
    }
    return all;
  };
  const rows = stages(receipt).map(([title, from, took, token, real]) => h("tr", {}, h("th", { scope: "row" }, title),
    h("td", { class: "lane" }, lane(from, took, token)), h("td", { class: "num" }, duration(real))));
  return h("table", { class: "waterfall" }, h("caption", { class: "visually-hidden" }, "Stages of the request"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Stage"), h("th", { scope: "col" }, h("span", { class: "visually-hidden" }, "Time span")), h("th", { scope: "col", class: "num took" }, "Took"))),
    h("tbody", {}, rows));
}

function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.filter(([, value]) => value !== null && value !== undefined && value !== "").map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

/** Format the error of an estimate, if it is known. */
const errorText = (error) => (Number(error) ? ` \u00b1 ${money(error)}` : "");

function open(receipt) {
  const dialog = byId("dialog");
  const { total_ms: total, first_token_ms: first } = receipt.timings;
  dialog.replaceChildren(h("div", { class: "stack" },
    h("div", { class: "row apart" }, h("h2", { id: "dialog-title" }, "Receipt ", h("code", {}, receipt.id)), h("button", { type: "button", onclick: () => dialog.close() }, "Close")),
    h("p", {}, `${moment(receipt.created * 1000)}: ${duration(total)} in total`, first === undefined || first === null ? "." : `, the first token after ${duration(first)} (the vertical line).`),
    waterfall(receipt),
    facts([
      ["Tenant, key", `${receipt.tenant}, ${receipt.key}`],
      ["Route", receipt.route],
      ["Mode", receipt.unguided ? `${receipt.mode}, unguided: ${receipt.unguided}` : receipt.mode],
      ["Status", receipt.status],
      ["Cost", money(receipt.cost_usd)],
      [`${receipt.baseline_model} alone${receipt.baseline_estimated ? " (estimate)" : ""}`, money(receipt.baseline_usd) + errorText(receipt.baseline_error_usd)],
      ["Saved", receipt.savings_usd === undefined ? null : h("span", { class: savedKind(receipt) || null }, savedText(receipt))],
      ["Savings class", receipt.savings_class],
      ["Measured baseline", receipt.measured ? money(receipt.measured.baseline_usd) : null],
      ["Batch", receipt.batch ? `${receipt.batch.size} ${receipt.batch.size === 1 ? "call" : "calls"} (${receipt.batch.id})` : null],
      ["Teacher", roleText(receipt.teacher)],
      ["Student", roleText(receipt.student)],
      ["Failed calls", receipt.attempts?.length ? receipt.attempts.map((one) => `${one.engine}: ${one.error}`).join("; ") : null],
      ["Shadow of", receipt.shadow_of],
      ["Guidance receipt", receipt.edge_of],
    ])));
  dialog.showModal();
}

const number = (key, title, value, show) => ({ key, title, number: true, value, show: (row) => show(value(row)) });

export function receipts(box) {
  byId("dialog").addEventListener("click", (event) => {
    if (event.target === event.currentTarget) event.currentTarget.close(); // a click on the backdrop
  });
  const view = table(box, {
    caption: "Table of receipts", sort: "at", search: "Search receipts", empty: "No request has been answered yet.",
    find: (row) => [row.id, row.tenant, row.key, row.route, row.mode, row.status, row.teacher?.model, row.student?.model, row.unguided].join(" "),
    columns: [
      { key: "id", title: "Receipt", value: (row) => row.id, show: (row) => h("button", { type: "button", class: "link", "aria-haspopup": "dialog", onclick: () => open(row) }, row.id) },
      { key: "at", title: "Received", number: true, value: (row) => row.created, show: (row) => timeOfDay(row.created * 1000) },
      { key: "tenant", title: "Tenant", value: (row) => row.tenant, show: (row) => row.tenant },
      { key: "route", title: "Route", value: (row) => row.route, show: (row) => row.route },
      { key: "mode", title: "Mode", value: (row) => row.mode, show: (row) => (row.unguided ? `${row.mode} (${row.unguided})` : row.mode) },
      { key: "status", title: "Status", value: (row) => row.status, show: (row) => h("span", { class: row.status === "ok" ? null : "bad" }, row.status) },
      number("first", "First token", (row) => row.timings.first_token_ms ?? null, duration),
      number("total", "Total", (row) => row.timings.total_ms, duration),
      number("cost", "Cost", (row) => Number(row.cost_usd), money),
      { key: "saved", title: "Saved", number: true, value: (row) => Number(row.savings_usd), show: (row) => h("span", { class: savedKind(row) === "bad" ? "bad" : null }, savedText(row)) },
    ],
  });
  return async () => view.rows((await fetchJson("/receipts?limit=50")).data);
}
