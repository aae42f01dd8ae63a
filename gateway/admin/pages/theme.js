// This script runs before the first paint, so that no page flashes in the wrong colors. Modules would run later.
"use strict";
{
  let chosen = null;
  try {
    chosen = localStorage.getItem("gkt-theme");
  } catch {
    // Without local storage the page follows the system.
  }
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
}
