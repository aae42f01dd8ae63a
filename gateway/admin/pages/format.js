// Format figures and times as text. An unknown value is a dash, never a zero. All times are in UTC.

const UNKNOWN = "-";
const grouped = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en-GB", { notation: "compact", maximumSignificantDigits: 3 });

const known = (value) => value !== null && value !== undefined && value !== "" && Number.isFinite(Number(value));
const fixed = (value, digits) =>
  Number(value).toLocaleString("en-GB", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "\u2212");
const largest = (values) => Math.max(0, ...values.filter(known).map((value) => Math.abs(Number(value))));

export const sum = (counts) => Object.values(counts ?? {}).reduce((all, one) => all + one, 0);
export const whole = (value) => (known(value) ? grouped.format(value).replace("-", "\u2212") : UNKNOWN);

/** Format counts: all digits below 10,000, then 12.3k, 4.56m. */
export const short = (value) =>
  !known(value) ? UNKNOWN : Math.abs(value) < 10_000 ? whole(value) : compact.format(value).toLowerCase();

/** Format a count with its noun: 1 request, 2 requests. */
export const counted = (value, noun) => `${whole(value)} ${noun}${Number(value) === 1 ? "" : "s"}`;

/** Return the decimals of USD amounts: two from $0.10 on, else three significant digits of the largest amount. */
function usdDigits(values) {
  const top = largest(values);
  return top >= 0.1 || top === 0 ? 2 : Math.min(12, 2 - Math.floor(Math.log10(top)));
}

function usd(value, digits) {
  if (!known(value)) return UNKNOWN;
  const size = Math.abs(Number(value));
  const least = 10 ** -digits;
  const text = size > 0 && size < least / 2 ? `<$${fixed(least, digits)}` : `$${fixed(size, digits)}`;
  return Number(value) < 0 ? `\u2212${text}` : text;
}

/** Format one amount in USD. Amounts in a column or a sentence share decimals: see `column`. */
export const money = (value) =>
  known(value) && Math.abs(value) >= 1_000_000 ? `$${short(value)}` : usd(value, usdDigits([value]));

/** Format milliseconds as 0.42 ms, 38 ms, 1.24 s, 2 min 5 s. */
export function duration(ms) {
  if (!known(ms)) return UNKNOWN;
  const value = Number(ms);
  if (value === 0) return "0 ms";
  if (value < 10) return `${value.toFixed(value < 1 ? 2 : 1)} ms`;
  if (value < 999.5) return `${Math.round(value)} ms`;
  if (value < 59_950) return `${(value / 1000).toPrecision(3)} s`;
  const seconds = Math.round(value / 1000);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.floor(minutes / 1440)} d ${Math.round((minutes % 1440) / 60)} h`;
}

/** Format a part of 1 as a percentage with one decimal. */
export function share(part, of = 1) {
  if (!known(part) || !known(of) || Number(of) === 0) return UNKNOWN;
  const percent = (100 * part) / of;
  return percent > 0 && percent < 0.05 ? "<0.1 %" : `${fixed(percent, 1)} %`;
}

/** Format a difference of shares in percentage points, with its sign. */
export const points = (value) => (!known(value) ? UNKNOWN : `${value > 0 ? "+" : ""}${fixed(100 * value, 1)}`);

/** Return a formatter for all values of a column or axis: they share decimals and unit. */
export function column(unit, values) {
  if (unit === "usd") {
    const digits = usdDigits(values);
    return (value) => usd(value, digits);
  }
  if (unit === "ms") {
    const top = largest(values);
    if (top >= 10_000) return (value) => (known(value) ? `${fixed(value / 1000, 1)} s` : UNKNOWN);
    return (value) => (known(value) ? `${fixed(value, top < 10 ? 2 : 0)} ms` : UNKNOWN);
  }
  if (unit === "mean") return (value) => (known(value) ? fixed(value, 1) : UNKNOWN);
  const show = { share, points, time: moment, short }[unit] ?? whole;
  return (value) => show(value); // a caller such as map passes more arguments
}

/** Format savings: "about 0" if their error is at least as large. */
export const saved = (of, show = money) => (of.savings_about_zero ? "about 0" : show(of.savings_usd));
/** Return the CSS class of savings: a color only if they are larger than their error. */
export const savedKind = (of) =>
  of.savings_about_zero || !Number(of.savings_usd) ? "" : Number(of.savings_usd) < 0 ? "bad" : "good";

const parts = (options) => new Intl.DateTimeFormat("en-GB", { timeZone: "UTC", ...options });
const [DAY, CLOCK, SECONDS] = [
  parts({ day: "numeric", month: "short" }),
  parts({ hour: "2-digit", minute: "2-digit" }),
  parts({ hour: "2-digit", minute: "2-digit", second: "2-digit" }),
];
const [YEAR, MONTH] = [parts({ year: "numeric" }), parts({ month: "long" })];
const text = (format) => (when) => (known(new Date(when ?? NaN).getTime()) ? format.format(new Date(when)) : UNKNOWN);

export const [day, minuteOfDay, timeOfDay, monthOf] = [text(DAY), text(CLOCK), text(SECONDS), text(MONTH)];
/** Format a time in UTC without the zone, for columns whose title has it. The year appears if it is another one. */
export function moment(when) {
  if (when === null || when === undefined) return UNKNOWN;
  const year = YEAR.format(new Date(when));
  return `${day(when)}${year === YEAR.format(new Date()) ? "" : ` ${year}`}, ${timeOfDay(when)}`;
}
/** Format a time in UTC to the minute, for ends of periods. */
export const toMinute = (when) => (when === null || when === undefined ? UNKNOWN : `${day(when)}, ${minuteOfDay(when)}`);
export const utc = (when) => (when === null || when === undefined ? UNKNOWN : `${moment(when)} UTC`);
