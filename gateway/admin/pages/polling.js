// Asking again and again while somebody looks.
import { say } from "./status.js";
import { timeOfDay } from "./format.js";

let paused = false;
let left = false;
document.addEventListener("leaving", () => { left = true; });

export const isPaused = () => paused;
export function setPaused(yes) {
  paused = yes;
  document.dispatchEvent(new Event("pausechange"));
}

/**
 * Call `look` every `everyMs` while the page is visible and not paused, never twice at a time. What fails is said in
 * the status line under `about`, and is tried again; with `what`, how old that is by then. Returns a function that looks
 * at once.
 */
export function poll(look, everyMs, { about, what = "" }) {
  let timer = null;
  let running = false;
  let again = false;
  let lastGood = null;
  let failures = 0;

  async function turn() {
    clearTimeout(timer);
    if (running) {
      again = true;
      return;
    }
    running = true;
    try {
      await look();
      lastGood = Date.now();
      failures = 0;
      say("", "warn", about);
      say("", "warn", `${about}, age`);
    } catch (error) {
      failures += 1;
      if (!left) {
        say(error.message, "bad", about);
        say(what && lastGood ? `${what} are of ${timeOfDay(lastGood)}.` : "", "bad", `${about}, age`);
      }
    }
    running = false;
    if (!again || left) {
      plan(Math.min(30_000, everyMs * 2 ** Math.min(failures, 4)));
      return;
    }
    again = false;
    turn(); // paused or not: somebody chose another thing meanwhile, and sees that it is chosen
  }

  function plan(inMs) {
    clearTimeout(timer);
    if (!left && !paused && document.visibilityState === "visible") timer = setTimeout(turn, inMs);
  }

  document.addEventListener("visibilitychange", () => plan(0));
  document.addEventListener("pausechange", () => plan(0));
  document.addEventListener("leaving", () => clearTimeout(timer));
  turn();
  return turn;
}
