// A table that can be sorted and searched.
import { h } from "./dom.js";

/**
 * A table under `box`. `columns`: {key, title, value(row) to sort by, show(row) as text or node, number: right aligned, wrap: may be long}.
 * The first column names the row. `caption` is read out. Call `rows(list)` with what it shows.
 */
export function table(box, { caption, columns, sort, descending = true, search = null, empty = "Nothing yet.", most = 500, find = (row) => columns.map((one) => one.value(row)).join(" ") }) {
  let all = [];
  let by = sort;
  let down = descending;
  let wanted = "";
  const body = h("tbody");
  const heads = columns.map((column) => h("th", { scope: "col", class: column.number ? "num" : null },
    h("button", { type: "button", onclick: () => order(column) }, column.title)));
  const none = h("p", { class: "soft", hidden: true });
  const note = h("p", { class: "soft small", hidden: true });
  const grid = h("table", {}, h("caption", { class: "visually-hidden" }, caption), h("thead", {}, h("tr", {}, heads)), body);
  const frame = h("div", { class: "table-box", tabindex: "0", role: "region", "aria-label": caption }, grid);
  if (search) {
    const input = h("input", { type: "search", placeholder: search, "aria-label": search, autocomplete: "off", oninput: () => { wanted = input.value.trim().toLowerCase(); draw(); } });
    box.append(h("div", { class: "row" }, input));
  }
  const waiting = h("p", { class: "soft small", hidden: true }, "New figures wait until the focus leaves this table.");
  box.append(frame, none, note, waiting);

  function order(column) {
    down = by === column.key ? !down : Boolean(column.number);
    by = column.key;
    draw();
  }

  function compare(one, other) {
    const column = columns.find((each) => each.key === by);
    const [a, b] = [column.value(one), column.value(other)];
    const missing = (a === null || a === undefined) - (b === null || b === undefined);
    if (missing) return missing; // what is not known stands last, either way
    const result = typeof a === "string" ? a.localeCompare(b) : a - b;
    return down ? -result : result;
  }

  function draw() {
    columns.forEach((column, index) => {
      if (column.key === by) heads[index].setAttribute("aria-sort", down ? "descending" : "ascending");
      else heads[index].removeAttribute("aria-sort");
    });
    const found = all.filter((row) => !wanted || find(row).toLowerCase().includes(wanted)).sort(compare);
    body.replaceChildren(...found.slice(0, most).map((row) => h("tr", {}, columns.map((column, index) =>
      h(index ? "td" : "th", { scope: index ? null : "row", class: column.number ? "num" : column.wrap ? "wrap" : null }, column.show(row))))));
    frame.hidden = found.length === 0;
    none.hidden = found.length > 0;
    none.textContent = all.length ? `Nothing matches "${wanted}".` : empty;
    note.hidden = found.length <= most;
    note.textContent = `The first ${most} of ${found.length}. Search to see the others.`;
  }

  // Who has the focus on a row must not lose it to a redraw: new figures wait until it leaves.
  let waits = false;
  body.addEventListener("focusout", () => queueMicrotask(() => {
    if (waits && !body.contains(document.activeElement)) {
      waits = false;
      waiting.hidden = true;
      draw();
    }
  }));

  draw();
  return {
    rows(list) {
      all = list;
      waits = body.contains(document.activeElement);
      waiting.hidden = !waits;
      if (!waits) draw();
    },
  };
}
