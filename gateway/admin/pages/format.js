// Figures as people read them. What is not known is a dash, never a zero.

const NOTHING = "-";
const count = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en-GB", { notation: "compact", maximumSignificantDigits: 3 });

const known = (value) => value !== null && value !== undefined && Number.isFinite(Number(value));

export const whole = (value) => (known(value) ? count.format(value) : NOTHING);

/** Tokens, requests: all digits below 10,000, then 12.3K, 4.56M. */
export const tokens = (value) => (!known(value) ? NOTHING : Math.abs(value) < 10_000 ? count.format(value) : short.format(value));

/** Money in USD, which comes as text. Small amounts keep two digits that say something; 0 is $0. */
export function money(value) {
  if (!known(value) || value === "") return NOTHING;
  const usd = Number(value);
  const size = Math.abs(usd);
  const sign = usd < 0 ? "\u2212" : "";
  if (size === 0) return "$0";
  if (size >= 1_000_000) return `${sign}$${short.format(size)}`;
  if (size >= 1) return `${sign}$${size.toLocaleString("en-GB", { minimumFractionDigits: 2, maximumFractionDigits: 2 })}`;
  const digits = Math.min(12, Math.max(3, 2 - Math.floor(Math.log10(size))));
  return `${sign}$${size.toFixed(digits).replace(/(\.\d\d)(\d*?)0+$/, "$1$2")}`;
}

/** Milliseconds as 0.42 ms, 38 ms, 1.24 s, 2 min 5 s. */
export function duration(ms) {
  if (!known(ms)) return NOTHING;
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

export const seconds = (s) => (known(s) ? duration(Number(s) * 1000) : NOTHING);

/** The savings of a receipt or a sum, as text. The gateway decides whether their error is as large: then "about 0". */
export const savedText = (of) => (of.savings_about_zero ? "about 0" : money(of.savings_usd));

/** The class that colors savings: green and red only where they are larger than their error. */
export const savedKind = (of) => (of.savings_about_zero || !Number(of.savings_usd) ? "" : Number(of.savings_usd) < 0 ? "bad" : "good");

/** A part of one, as a percentage. */
export function share(part, of = 1) {
  if (!known(part) || !known(of) || Number(of) === 0) return NOTHING;
  const percent = (100 * Number(part)) / Number(of);
  if (percent === 0) return "0 %";
  if (Math.abs(percent) < 0.1) return percent > 0 ? "<0.1 %" : ">\u22120.1 %";
  return `${percent.toFixed(Math.abs(percent) < 10 ? 1 : 0).replace("-", "\u2212")} %`;
}

/** Requests a second. */
export const rate = (perS) => (!known(perS) ? NOTHING : perS >= 100 ? count.format(perS) : Number(perS).toFixed(perS >= 10 ? 1 : 2));

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const clockS = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const date = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const dateUtc = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });
const full = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

/** A moment (RFC 3339 or Unix milliseconds), in the browser's time zone. */
export const moment = (when) => full.format(new Date(when));
export const timeOfDay = (when) => clockS.format(new Date(when));
export const minuteOfDay = (when) => clock.format(new Date(when));
export const day = (when) => date.format(new Date(when));
/** The day of UTC: sums by the day are of those. */
export const utcDay = (when) => dateUtc.format(new Date(when));
