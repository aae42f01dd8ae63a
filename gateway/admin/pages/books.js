// Whether the books are kept: the archive of receipts, and sums that lag behind.
import { fetchJson } from "./fetching.js";
import { seconds, whole } from "./format.js";
import { say } from "./status.js";

const LATE_S = 30;

const sum = (counts) => Object.values(counts ?? {}).reduce((all, one) => all + one, 0);

function archiveLine(archive) {
  if (!archive) return "There is no archive: receipts go after receipts.ttl.";
  const state = archive.up === null ? "not heard of yet" : archive.up ? "up" : "down";
  return `Archive: ${archive.where}, ${state}, ${whole(archive.waiting)} receipts wait for it.`;
}

/** Look at readiness, and say in `note`, and where it is bad in the status line, how the books are kept. */
export function books(note) {
  return async () => {
    const { archive, ledger } = await fetchJson("/readyz", { also: [503] });
    const down = archive?.up === false;
    say(down ? `The archive is down${archive.error ? ` (${archive.error})` : ""}: ${whole(archive.waiting)} receipts wait for it, and requests go on.` : "", "bad", "archive");
    const late = ledger?.lag_s > LATE_S;
    say(late ? `Sums lag by ${seconds(ledger.lag_s)}.` : "", "warn", "lag");
    const lost = sum(ledger?.lost);
    say(lost ? `${whole(lost)} receipts went before they were counted or archived: receipts.max_buffered was too small.` : "", "bad", "lost");
    note.textContent = archiveLine(archive);
  };
}
