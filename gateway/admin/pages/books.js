// The state of the usage workers, which write receipts to the usage database.
import { fetchJson } from "./fetching.js";
import { seconds, whole } from "./format.js";
import { say } from "./status.js";

const LATE_S = 30;

function databaseLine(usage) {
  const state = usage.up === null ? "state unknown" : usage.up ? "up" : "down";
  return `Usage database: ${usage.where}, ${state}, ${whole(usage.waiting)} receipts are waiting to be written.`;
}

/** Return a function that reads /readyz, shows the usage database in `note`, and its problems in the status line. */
export function books(note) {
  return async () => {
    const { usage } = await fetchJson("/readyz", { also: [503] });
    const down = usage.up === false;
    say(down ? `The usage database cannot be written${usage.error ? ` (${usage.error})` : ""}: ${whole(usage.waiting)} receipts are waiting. Requests are still answered.` : "", "bad", "database");
    const late = usage.lag_s > LATE_S;
    say(late ? `Usage is delayed by ${seconds(usage.lag_s)}.` : "", "warn", "lag");
    note.textContent = databaseLine(usage);
  };
}
