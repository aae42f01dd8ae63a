// The state of the usage workers, which write receipts to the usage database.
import { fetchJson } from "./fetching.js";
import { seconds, whole } from "./format.js";
import { say } from "./status.js";

const LATE_S = 30;

function databaseLine(usage) {
  const state = usage.up === null ? "state unknown" : usage.up ? "up" : "down";
  return `Usage database: ${usage.where}, ${state}, ${whole(usage.waiting)} receipts wait for it.`;
}

/** Read readiness, and show the state of the usage database in `note`, and problems in the status line. */
export function books(note) {
  return async () => {
    const { usage } = await fetchJson("/readyz", { also: [503] });
    const down = usage.up === false;
    say(down ? `The usage database is not written${usage.error ? ` (${usage.error})` : ""}: ${whole(usage.waiting)} receipts wait for it, and requests go on.` : "", "bad", "database");
    const late = usage.lag_s > LATE_S;
    say(late ? `Usage lags by ${seconds(usage.lag_s)}.` : "", "warn", "lag");
    note.textContent = databaseLine(usage);
  };
}
