// Components that all pages share: tables, states, dialogs, forms.
import { useEffect, useId, useRef, useState } from "./vendor/hooks.js";
import htm from "./vendor/htm.js";
import { h } from "./vendor/preact.js";
import { ask } from "./api.js";
import { column as formatterOf, whole } from "./format.js";
import { go } from "./state.js";

/** Preact inserts all values as text: names of tenants and models are untrusted. */
export const html = htm.bind(h);

/** A link inside the dashboard. The browser opens it in another tab as usual. */
export function Link({ href, children, ...rest }) {
  const follow = (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    go(href);
    scrollTo(0, 0);
  };
  return html`<a href=${href} onClick=${follow} ...${rest}>${children}</a>`;
}

export const Badge = ({ kind = "", children }) => html`<span class="badge ${kind}">${children}</span>`;

/** A section with a title, an optional note and controls beside the title. */
export function Card({ title, note, side, children, id }) {
  const own = useId();
  return html`<section class="card stack" aria-labelledby=${own} id=${id}>
    <div class="row apart"><h2 id=${own}>${title}</h2>${side}</div>
    ${note && html`<p class="soft small">${note}</p>`}
    ${children}
  </section>`;
}

/** The empty state of a page's part: the reason, and the next step. */
export const Empty = ({ title, children }) => html`<div class="empty"><p><strong>${title}</strong></p><p class="soft">${children}</p></div>`;
export const Loading = () => html`<p class="soft loading">Loading...</p>`;

/** Show `children(data)` once there is data, else the state of the request. */
export function Loaded({ of, children }) {
  if (of.data) return children(of.data);
  return of.error ? html`<${Empty} title="This part cannot be shown.">${of.error.message}<//>` : html`<${Loading} />`;
}

/** Buttons of which one is selected. `options` are pairs of value and title. */
export const Segments = ({ label, options, value, onChange }) => html`<div class="segments" role="group" aria-label=${label}>
  ${options.map(([one, title]) => html`<button type="button" key=${one} aria-pressed=${String(one === value)}
    onClick=${() => onChange(one)}>${title}</button>`)}
</div>`;

export const Field = ({ label, help, children, wide }) => html`<label
  class="field ${wide ? "wide" : ""}"><span>${label}</span>${children}${help && html`<small class="soft">${help}</small>`}</label>`;

export const Select = ({ options, ...rest }) => html`<select ...${rest}>
  ${options.map(([value, title = value]) => html`<option key=${value} value=${value}>${title}</option>`)}
</select>`;

export const Facts = ({ items }) => html`<dl class="facts">
  ${items.filter(([, value]) => (value ?? "") !== "").map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}
</dl>`;

/** A modal dialog. Escape and its button close it. A click beside it does not: it would lose a typed form or a new key. */
export function Dialog({ title, onClose, children }) {
  const dialog = useRef(null);
  const id = useId();
  useEffect(() => {
    const shown = dialog.current;
    shown.showModal();
    shown.querySelector("input, select, textarea")?.focus();
    return () => shown.close(); // returns the focus
  }, []);
  const close = () => dialog.current.close();
  return html`<dialog ref=${dialog} aria-labelledby=${id} onClose=${onClose}>
    <div class="stack">
      <div class="row apart"><h2 id=${id}>${title}</h2><button type="button" onClick=${close}>Close</button></div>
      ${children}
    </div>
  </dialog>`;
}

/**
 * A form that sends a request. `toBody` turns its fields into the body; `done` gets the reply. Errors appear in the form.
 */
export function RequestForm({ action, path, method = "POST", toBody = () => undefined, done, children, danger = false }) {
  const [problem, setProblem] = useState("");
  const [busy, setBusy] = useState(false);
  const send = async (event) => {
    event.preventDefault();
    const fields = Object.fromEntries(new FormData(event.currentTarget));
    setBusy(true);
    setProblem("");
    try {
      const reply = await ask(typeof path === "function" ? path(fields) : path, { method, body: toBody(fields) });
      done(await reply.json());
    } catch (error) {
      setProblem(error.message);
    }
    setBusy(false);
  };
  return html`<form class="stack" onSubmit=${send}>
    <div class="fields">${children}</div>
    <p class="bad" role="alert">${problem}</p>
    <button class=${danger ? "primary danger" : "primary"} disabled=${busy}>${action}</button>
  </form>`;
}

/** Text to copy: a key or a policy. Where the browser allows no access to the clipboard, the text is selected. */
export function Copy({ text, label, rows = 1 }) {
  const [state, setState] = useState("");
  const field = useRef(null);
  const copy = async () => {
    field.current.select();
    try {
      await navigator.clipboard.writeText(text);
      setState("Copied.");
    } catch {
      setState("Press Ctrl+C to copy: this browser gives pages without HTTPS no access to the clipboard.");
    }
  };
  return html`<div class="copy">
    <textarea ref=${field} class="code" readonly rows=${rows} aria-label=${label} value=${text}></textarea>
    <div class="row"><button type="button" onClick=${copy}>Copy</button><span role="status" class="soft small">${state}</span></div>
  </div>`;
}

const compare = (a, b) => {
  const missing = (value) => value === null || value === undefined || Number.isNaN(value);
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  return typeof a === "string" ? a.localeCompare(b) : a - b;
};

/**
 * A table with sorting and search, and cards instead of rows on a phone.
 * `columns`: {title, value(row) to sort by, unit of numbers, show(row, format) as text or node}. The first is the row's header.
 * Numbers of a column share unit and decimals. `nested(row)` returns more rows, shown below it.
 */
export function Table({ caption, columns, rows, id, sort = null, search = null, empty, nested = () => [], maxRows = 500 }) {
  const [order, setOrder] = useState(sort);
  const [text, setText] = useState("");
  const valueOf = ({ value }, row) => value(row);
  const matches = (row) => columns.some((one) => String(valueOf(one, row) ?? "").toLowerCase().includes(text.toLowerCase()));
  let shown = text ? rows.filter((row) => [row, ...nested(row)].some(matches)) : [...rows];
  if (order) {
    const [title, down] = order;
    const by = columns.find((one) => one.title === title);
    const known = (row) => ![null, undefined].includes(valueOf(by, row));
    shown.sort((a, b) => compare(valueOf(by, a), valueOf(by, b)) * (down && known(a) && known(b) ? -1 : 1));
  }
  const count = shown.length;
  shown = shown.slice(0, maxRows);
  const all = shown.flatMap((row) => [[row, false], ...nested(row).map((one) => [one, true])]);
  const formats = columns.map((one) => formatterOf(one.unit, one.unit ? all.map(([row]) => valueOf(one, row)) : []));
  const cell = (one, index, row) => {
    const shownAs = one.show ? one.show(row, formats[index]) : one.unit ? formats[index](valueOf(one, row)) : valueOf(one, row) || "-";
    const kind = `${one.unit && one.unit !== "time" ? "num" : one.wide ? "wrap" : ""}${shownAs === "-" ? " missing" : ""}`;
    if (!index) return html`<th scope="row" role="rowheader">${shownAs}</th>`;
    return html`<td role="cell" class=${kind} data-label=${one.title}><div>${shownAs}</div></td>`;
  };
  const turn = (one) => setOrder([one.title, order?.[0] === one.title ? !order[1] : Boolean(one.unit)]);
  const sorted = (one) => (order?.[0] === one.title ? (order[1] ? "descending" : "ascending") : undefined);
  return html`
    ${search && (rows.length > 5 || text) && html`<input type="search" class="search" placeholder=${search} aria-label=${search}
      value=${text} onInput=${(event) => setText(event.target.value)} />`}
    ${rows.length > 0 && count === 0 && html`<p class="soft">No row matches "${text}".</p>`}
    ${rows.length === 0 && empty}
    ${count > 0 && html`<div class="table-box" tabindex="0" role="region" aria-label="Table: ${caption}"><table role="table">
      <caption class="visually-hidden">${caption}</caption>
      <thead role="rowgroup"><tr role="row">${columns.map((one) => html`<th scope="col" role="columnheader" key=${one.title}
        class=${one.unit && one.unit !== "time" ? "num" : ""} aria-sort=${sorted(one)}>
        ${one.plain ? html`<span class="visually-hidden">${one.title}</span>` : html`<button type="button"
          onClick=${() => turn(one)}>${one.title}</button>`}
      </th>`)}</tr></thead>
      <tbody role="rowgroup">${all.map(([row, isNested]) => html`<tr role="row" key=${id(row)}
        class=${isNested ? "nested" : ""}>${columns.map((one, index) => cell(one, index, row))}</tr>`)}</tbody>
    </table></div>`}
    ${count > maxRows && html`<p class="soft small">Showing ${whole(maxRows)} of ${whole(count)} rows. Search to see the others.</p>`}
  `;
}
