// The header of every page: navigation, color scheme, logout.
import { h, byId } from "./dom.js";
import { ask } from "./fetching.js";
import { say } from "./status.js";

const PAGES = [
  ["dashboard", "Dashboard"],
  ["playground", "Playground"],
];
const THEMES = ["auto", "light", "dark"];
const THEME_NAMES = { auto: "system", light: "light", dark: "dark" };
const THEME_SIGNS = { auto: "\u25d0", light: "\u2600", dark: "\u263e" };

function storedTheme() {
  try {
    return localStorage.getItem("gkt-theme") ?? "auto";
  } catch {
    return "auto";
  }
}

function themeButton() {
  const show = (theme) => {
    button.textContent = THEME_SIGNS[theme] ?? THEME_SIGNS.auto;
    button.setAttribute("aria-label", `Colors: ${THEME_NAMES[theme] ?? THEME_NAMES.auto}. Change color scheme`);
    button.title = button.getAttribute("aria-label");
  };
  const next = () => {
    const theme = THEMES[(THEMES.indexOf(storedTheme()) + 1) % THEMES.length];
    try {
      localStorage.setItem("gkt-theme", theme);
    } catch {
      say("This browser does not store settings. The colors apply to this page only.", "info", "theme");
    }
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    show(theme);
    document.dispatchEvent(new Event("themechange"));
  };
  const button = h("button", { type: "button", class: "quiet", id: "theme", onclick: next });
  show(storedTheme());
  return button;
}

async function logOut() {
  document.dispatchEvent(new Event("leaving")); // a running request would renew the session
  try {
    await ask("/session", { method: "DELETE" });
    location.assign("/login?why=left");
  } catch (error) {
    say(`You are still logged in: ${error.message}`, "bad", "logout");
  }
}

/** Create the header of the page `name`. */
export function openPage(name) {
  byId("bar").append(
    h("a", { class: "brand", href: "/dashboard", "aria-label": "GKT Gateway" }, h("img", { src: "/static/icon.svg", alt: "" }), h("span", {}, "GKT Gateway")),
    h("nav", { "aria-label": "Pages" }, PAGES.map(([path, title]) =>
      h("a", { href: `/${path}`, "aria-current": path === name ? "page" : null }, title))),
    h("div", { class: "bar-end" }, themeButton(), h("button", { type: "button", class: "quiet", id: "logout", onclick: logOut }, "Log out")),
  );
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("themechange")));
}
