// Before the first paint, so that no page flashes in the wrong colours; hence no module.
"use strict";
{
  let chosen = null;
  try {
    chosen = localStorage.getItem("gkt-theme");
  } catch {
    // A browser that keeps nothing follows the system.
  }
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
}
