// Where an axis of time is marked: at round times, as many as there is room for.

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
export const DAY = 24 * HOUR;
const STEPS = [
  ...[1, 2, 5, 10, 15, 30].map((one) => one * MINUTE),
  ...[1, 2, 3, 6, 12].map((one) => one * HOUR),
  ...[1, 2, 7, 14, 28, 91, 364].map((one) => one * DAY),
];
const MONDAY = 4 * DAY; // 5 January 1970: weeks begin there

/**
 * Of times that follow each other evenly the places of the round ones, at most `most`, and how far apart those are. Round
 * is what is so on the clocks of whoever looks, or, with `utc`, on those of UTC.
 */
export function roundPlaces(times, most, { utc = false } = {}) {
  const apart = times.length > 1 ? times[1] - times[0] : MINUTE;
  const clocks = times.map((at) => (utc ? at : at - new Date(at).getTimezoneOffset() * MINUTE) - MONDAY);
  let [places, step] = [[], DAY];
  for (step of STEPS.filter((one) => one >= apart)) {
    places = [...clocks.keys()].filter((place) => ((clocks[place] % step) + step) % step < apart);
    if (places.length <= most) break;
  }
  return { places, step };
}
