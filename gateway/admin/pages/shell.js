// The frame of every page: navigation, colors, logout.
import { h, byId } from "./dom.js";
import { ask } from "./fetching.js";
import { say } from "./status.js";

const PAGES = [
  ["dashboard", "Dashboard"],
  ["playground", "Playground"],
];
const THEMES = ["auto", "light", "dark"];
const THEME_WORDS = { auto: "as the system", light: "light", dark: "dark" };
const THEME_SIGNS = { auto: "\u25d0", light: "\u2600", dark: "\u263e" };

function kept() {
  try {
    return localStorage.getItem("gkt-theme") ?? "auto";
  } catch {
    return "auto";
  }
}

function themeButton() {
  const show = (theme) => {
    button.textContent = THEME_SIGNS[theme] ?? THEME_SIGNS.auto;
    button.setAttribute("aria-label", `Colours: ${THEME_WORDS[theme] ?? THEME_WORDS.auto}. Change them`);
    button.title = button.getAttribute("aria-label");
  };
  const next = () => {
    const theme = THEMES[(THEMES.indexOf(kept()) + 1) % THEMES.length];
    try {
      localStorage.setItem("gkt-theme", theme);
    } catch {
      say("This browser keeps no settings, so the colours hold for this page only.", "info", "theme");
    }
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    show(theme);
    document.dispatchEvent(new Event("themechange"));
  };
  const button = h("button", { type: "button", class: "quiet", id: "theme", onclick: next });
  show(kept());
  return button;
}

async function logOut() {
  document.dispatchEvent(new Event("leaving")); // what still asks would renew the session
  try {
    await ask("/session", { method: "DELETE" });
    location.assign("/login?why=left");
  } catch (error) {
    say(`You are still logged in: ${error.message}`, "bad", "logout");
  }
}

/** Draw the bar of the page `name`. */
export function openPage(name) {
  byId("bar").append(
    h("a", { class: "brand", href: "/dashboard", "aria-label": "GKT Gateway" }, h("img", { src: "/static/icon.svg", alt: "" }), h("span", {}, "GKT Gateway")),
    h("nav", { "aria-label": "Pages" }, PAGES.map(([path, title]) =>
      h("a", { href: `/${path}`, "aria-current": path === name ? "page" : null }, title))),
    h("div", { class: "bar-end" }, themeButton(), h("button", { type: "button", class: "quiet", id: "logout", onclick: logOut }, "Log out")),
  );
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("themechange")));
}
