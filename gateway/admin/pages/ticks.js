// Ticks of a time axis at round times.

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
export const DAY = 24 * HOUR;
const STEPS = [
  ...[1, 2, 5, 10, 15, 30].map((one) => one * MINUTE),
  ...[1, 2, 3, 6, 12].map((one) => one * HOUR),
  ...[1, 2, 7, 14, 28, 91, 364].map((one) => one * DAY),
];
const MONDAY = 4 * DAY; // 5 January 1970, the start of a week

/**
 * Return the indexes of the round times among evenly spaced `times` (ms), at most `maxTicks`, and their step in ms. Times
 * are round in the browser's time zone, or with `utc` in UTC.
 */
export function roundTicks(times, maxTicks, { utc = false } = {}) {
  const spacing = times.length > 1 ? times[1] - times[0] : MINUTE;
  const clocks = times.map((at) => (utc ? at : at - new Date(at).getTimezoneOffset() * MINUTE) - MONDAY);
  let [indexes, step] = [[], DAY];
  for (step of STEPS.filter((one) => one >= spacing)) {
    indexes = [...clocks.keys()].filter((index) => ((clocks[index] % step) + step) % step < spacing);
    if (indexes.length <= maxTicks) break;
  }
  return { indexes, step };
}
