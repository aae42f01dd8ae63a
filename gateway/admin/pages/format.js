// Format figures as text. An unknown value is a dash, never a zero.

const UNKNOWN = "-";
const count = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en-GB", { notation: "compact", maximumSignificantDigits: 3 });

const known = (value) => value !== null && value !== undefined && Number.isFinite(Number(value));

export const whole = (value) => (known(value) ? count.format(value) : UNKNOWN);

/** Format counts: all digits below 10,000, then 12.3K, 4.56M. */
export const tokens = (value) => (!known(value) ? UNKNOWN : Math.abs(value) < 10_000 ? count.format(value) : short.format(value));

/** Format USD, given as text. Small amounts keep two significant digits; 0 is $0. */
export function money(value) {
  if (!known(value) || value === "") return UNKNOWN;
  const usd = Number(value);
  const size = Math.abs(usd);
  const sign = usd < 0 ? "\u2212" : "";
  if (size === 0) return "$0";
  if (size >= 1_000_000) return `${sign}$${short.format(size)}`;
  if (size >= 1) return `${sign}$${size.toLocaleString("en-GB", { minimumFractionDigits: 2, maximumFractionDigits: 2 })}`;
  const digits = Math.min(12, Math.max(3, 2 - Math.floor(Math.log10(size))));
  return `${sign}$${size.toFixed(digits).replace(/(\.\d\d)(\d*?)0+$/, "$1$2")}`;
}

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

export const seconds = (s) => (known(s) ? duration(Number(s) * 1000) : UNKNOWN);

/** Format the savings of a receipt or a sum: "about 0" if the gateway reports an error as large as the savings. */
export const savedText = (of) => (of.savings_about_zero ? "about 0" : money(of.savings_usd));

/** Return the CSS class of savings: green or red only if they are larger than their error. */
export const savedKind = (of) => (of.savings_about_zero || !Number(of.savings_usd) ? "" : Number(of.savings_usd) < 0 ? "bad" : "good");

/** Format `part` of `of` as a percentage. */
export function share(part, of = 1) {
  if (!known(part) || !known(of) || Number(of) === 0) return UNKNOWN;
  const percent = (100 * Number(part)) / Number(of);
  if (percent === 0) return "0 %";
  if (Math.abs(percent) < 0.1) return percent > 0 ? "<0.1 %" : ">\u22120.1 %";
  return `${percent.toFixed(Math.abs(percent) < 10 ? 1 : 0).replace("-", "\u2212")} %`;
}

/** Format requests per second. */
export const rate = (perS) => (!known(perS) ? UNKNOWN : perS >= 100 ? count.format(perS) : Number(perS).toFixed(perS >= 10 ? 1 : 2));

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const clockS = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const date = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const dateUtc = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });
const full = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

/** Format a time (RFC 3339 or Unix milliseconds) in the browser's time zone. */
export const moment = (when) => full.format(new Date(when));
export const timeOfDay = (when) => clockS.format(new Date(when));
export const minuteOfDay = (when) => clock.format(new Date(when));
export const day = (when) => date.format(new Date(when));
/** Format the day in UTC, for sums by day. */
export const utcDay = (when) => dateUtc.format(new Date(when));
