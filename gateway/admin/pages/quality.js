// The table of quality: how far guided answers, and the student's own, agree with the teacher's.
import { h } from "./dom.js";
import { money, share, whole } from "./format.js";
import { table } from "./table.js";

const LENGTHS = { 16: "to 16", 32: "17 to 32", 64: "33 to 64", 128: "65 to 128", more: "over 128", all: "all" };
const ORDER = ["16", "32", "64", "128", "more", "all"];

function points(value) {
  if (value === null || value === undefined) return "-";
  const size = (100 * Math.abs(value)).toFixed(1);
  return `${value < 0 && Number(size) ? "\u2212" : value > 0 && Number(size) ? "+" : ""}${size}`;
}

/** Format the difference. It has a color only if its interval excludes zero. */
function difference(row) {
  const kind = row.low > 0 ? "good" : row.high < 0 ? "bad" : null;
  return h("span", { class: row.low === null ? null : kind }, points(row.difference));
}

const interval = (row) => (row.low === null ? "too few" : `${points(row.low)} to ${points(row.high)}`);

/** Describe a switch: its scope, and who switched it off. */
function scope(off) {
  const name = off.tenant === null ? "everything" : off.route === null ? off.tenant : `${off.route} of ${off.tenant}`;
  return `${name} (by ${off.by === "quality" ? "quality.min_agreement" : off.actor || "an operator"})`;
}

/** Create the table in `box`, and show its period in `note`. Return a function that shows a reply of GET /quality. */
export function quality(box, note) {
  const view = table(box, {
    caption: "Table of quality", sort: "route", descending: false, search: "Search quality",
    empty: "No answers have been compared yet. To compare samples, give a guided route a `quality` rule.",
    find: (row) => `${row.tenant} ${row.route} ${row.compare}`,
    columns: [
      { key: "route", title: "Route", value: (row) => `${row.route} ${row.tenant} ${ORDER.indexOf(row.length)}`, show: (row) => row.route },
      { key: "tenant", title: "Tenant", value: (row) => row.tenant, show: (row) => row.tenant },
      { key: "length", title: "Teacher's tokens", value: (row) => ORDER.indexOf(row.length), show: (row) => LENGTHS[row.length] ?? row.length },
      { key: "compare", title: "Comparison", value: (row) => row.compare, show: (row) => row.compare },
      { key: "samples", title: "Compared", number: true, value: (row) => row.samples, show: (row) => whole(row.samples) },
      { key: "guided", title: "Guided", number: true, value: (row) => row.guided_teacher, show: (row) => share(row.guided_teacher) },
      { key: "student", title: "Student alone", number: true, value: (row) => row.student_teacher, show: (row) => share(row.student_teacher) },
      { key: "difference", title: "Difference, points", number: true, value: (row) => row.difference, show: difference },
      { key: "interval", title: "95 % interval", number: true, value: (row) => row.low, show: interval },
    ],
  });
  return ({ rows, since, until, spent_today: spent, guidance_off: off }) => {
    const usd = spent.reduce((all, one) => all + Number(one.usd), 0);
    const switches = off.length ? ` Guidance is switched off: ${off.map(scope).join("; ")}.` : "";
    note.textContent = `Days from ${since} to ${until} (UTC). Comparisons cost ${money(usd)} today.${switches}`;
    view.rows(rows);
  };
}
