// A table with sorting and search.
import { h } from "./dom.js";

/**
 * Create a table in `box`. `columns`: {key, title, value(row) to sort by, show(row) as text or node, number: right aligned, wrap: may be long}.
 * The first column is the row's header. Screen readers read `caption`. Call `rows(list)` to show rows.
 */
export function table(box, { caption, columns, sort, descending = true, search = null, empty = "Nothing yet.", maxRows = 500, find = (row) => columns.map((one) => one.value(row)).join(" ") }) {
  let all = [];
  let by = sort;
  let down = descending;
  let searchText = "";
  const body = h("tbody");
  const heads = columns.map((column) => h("th", { scope: "col", class: column.number ? "num" : null },
    h("button", { type: "button", onclick: () => order(column) }, column.title)));
  const none = h("p", { class: "soft", hidden: true });
  const note = h("p", { class: "soft small", hidden: true });
  const grid = h("table", {}, h("caption", { class: "visually-hidden" }, caption), h("thead", {}, h("tr", {}, heads)), body);
  const frame = h("div", { class: "table-box", tabindex: "0", role: "region", "aria-label": caption }, grid);
  if (search) {
    const input = h("input", { type: "search", placeholder: search, "aria-label": search, autocomplete: "off", oninput: () => { searchText = input.value.trim().toLowerCase(); draw(); } });
    box.append(h("div", { class: "row" }, input));
  }
  const waiting = h("p", { class: "soft small", hidden: true }, "Updates are paused while a row of this table has the focus.");
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
    if (missing) return missing; // unknown values are last in both directions
    const result = typeof a === "string" ? a.localeCompare(b) : a - b;
    return down ? -result : result;
  }

  function draw() {
    columns.forEach((column, index) => {
      if (column.key === by) heads[index].setAttribute("aria-sort", down ? "descending" : "ascending");
      else heads[index].removeAttribute("aria-sort");
    });
    const matching = all.filter((row) => !searchText || find(row).toLowerCase().includes(searchText)).sort(compare);
    body.replaceChildren(...matching.slice(0, maxRows).map((row) => h("tr", {}, columns.map((column, index) =>
      h(index ? "td" : "th", { scope: index ? null : "row", class: column.number ? "num" : column.wrap ? "wrap" : null }, column.show(row))))));
    frame.hidden = matching.length === 0;
    none.hidden = matching.length > 0;
    none.textContent = all.length ? `No row matches "${searchText}".` : empty;
    note.hidden = matching.length <= maxRows;
    note.textContent = `Showing ${maxRows} of ${matching.length} rows. Search to see the others.`;
  }

  // A redraw would remove the focus from a row: updates wait until the focus leaves the table.
  let updateWaits = false;
  body.addEventListener("focusout", () => queueMicrotask(() => {
    if (updateWaits && !body.contains(document.activeElement)) {
      updateWaits = false;
      waiting.hidden = true;
      draw();
    }
  }));

  draw();
  return {
    rows(list) {
      all = list;
      updateWaits = body.contains(document.activeElement);
      waiting.hidden = !updateWaits;
      if (!updateWaits) draw();
    },
  };
}
