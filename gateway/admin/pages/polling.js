// Poll the gateway while the page is visible.
import { say } from "./status.js";
import { timeOfDay } from "./format.js";

let paused = false;
let leaving = false;
document.addEventListener("leaving", () => { leaving = true; });

export const isPaused = () => paused;
export function setPaused(yes) {
  paused = yes;
  document.dispatchEvent(new Event("pausechange"));
}

/**
 * Call `refresh` every `everyMs` while the page is visible and not paused, never twice at a time. An error is shown in the
 * status line under `about`, and the call is retried. With `what` the line also shows the time of the last success.
 * Return a function that calls `refresh` at once.
 */
export function poll(refresh, everyMs, { about, what = "" }) {
  let timer = null;
  let running = false;
  let again = false;
  let lastSuccess = null;
  let failures = 0;

  async function run() {
    clearTimeout(timer);
    if (running) {
      again = true;
      return;
    }
    running = true;
    try {
      await refresh();
      lastSuccess = Date.now();
      failures = 0;
      say("", "warn", about);
      say("", "warn", `${about}, age`);
    } catch (error) {
      failures += 1;
      if (!leaving) {
        say(error.message, "bad", about);
        say(what && lastSuccess ? `${what} last updated at ${timeOfDay(lastSuccess)}.` : "", "bad", `${about}, age`);
      }
    }
    running = false;
    if (!again || leaving) {
      plan(Math.min(30_000, everyMs * 2 ** Math.min(failures, 4)));
      return;
    }
    again = false;
    run(); // also while paused: the user chose something else meanwhile
  }

  function plan(inMs) {
    clearTimeout(timer);
    if (!leaving && !paused && document.visibilityState === "visible") timer = setTimeout(run, inMs);
  }

  document.addEventListener("visibilitychange", () => plan(0));
  document.addEventListener("pausechange", () => plan(0));
  document.addEventListener("leaving", () => clearTimeout(timer));
  run();
  return run;
}
