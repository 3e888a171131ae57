// Keys, theme, and the part of the page's state that stands in its address.

import { $, el, say } from "./dom.js";

// -- the address: #request=ID&find=TEXT&level=warning ---------------------------------------------------------------------------

export const address = {
  request: "",
  find: "",
  level: "",
  set(changes, replaces = false) {
    Object.assign(this, changes);
    const parts = new URLSearchParams();
    for (const name of ["request", "find", "level"]) if (this[name] && this[name] !== "info") parts.set(name, this[name]);
    const wanted = parts.size ? `#${parts}` : location.pathname + location.search;
    history[replaces ? "replaceState" : "pushState"](null, "", wanted);
    told();
  },
};

let told = () => {};

function read() {
  const parts = new URLSearchParams(location.hash.slice(1));
  for (const name of ["request", "find", "level"]) address[name] = parts.get(name) ?? "";
  told();
}

export function onAddress(callback) {
  told = callback;
  addEventListener("hashchange", read);
  addEventListener("popstate", read);
  read();
}

// -- the theme ------------------------------------------------------------------------------------------------------------------

const THEMES = ["system", "light", "dark"];
let theme = "system";

export function bindTheme() {
  try {
    theme = localStorage.getItem("corral-theme") ?? "system";
  } catch {
    // a browser that keeps nothing follows the system
  }
  setTheme(theme);
  $("theme").addEventListener("click", nextTheme);
}

function nextTheme() {
  setTheme(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]);
}

function setTheme(wanted) {
  theme = THEMES.includes(wanted) ? wanted : "system";
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  $("theme").title = `Theme: ${theme} (t)`;
  say($("theme").querySelector(".hidden"), `Theme: ${theme}`);
  try {
    localStorage.setItem("corral-theme", theme);
  } catch {
    // as above
  }
}

// -- keys -----------------------------------------------------------------------------------------------------------------------

const SECTIONS = ["box", "waiting", "recent", "models", "events"];
const KEYS = [
  ["?", "these keys"],
  ["1 – 5", "go to replicas, waiting, last requests, models, events"],
  ["j  k", "next, previous: request or replica"],
  ["Enter", "the request in full"],
  ["d", "drain or resume the replica in focus"],
  ["/", "find among the last requests"],
  ["c", "ask a model"],
  ["p", "pause the picture"],
  ["t", "theme: system, light, dark"],
  ["Esc", "close"],
];

export function bindKeys(actions) {
  $("help").addEventListener("click", showKeys);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.target.matches("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (document.querySelector("dialog[open]")) return;
    const run = keyed(event, actions);
    if (run) {
      event.preventDefault();
      run();
    }
  });
}

function keyed(event, { pause, askSomething, openRequest }) {
  const { key } = event;
  if (key >= "1" && key <= "5") return () => focusOn($(SECTIONS[key - 1]));
  if (key === "?") return showKeys;
  if (key === "p") return pause;
  if (key === "t") return nextTheme;
  if (key === "c") return askSomething;
  if (key === "/") return () => $("find").focus();
  if (key === "j" || key === "ArrowDown") return step(1, key);
  if (key === "k" || key === "ArrowUp") return step(-1, key);
  if (key === "d") return press(document.activeElement?.closest(".card"));
  if (key === "Enter" && document.activeElement?.matches("tr.link")) return () => openRequest(document.activeElement.dataset.number);
  return null;
}

function press(card) {
  const button = card?.querySelector('[data-order="drain"], [data-order="resume"]');
  return button ? () => button.click() : null;
}

function focusOn(section) {
  section.focus({ preventScroll: true });
  section.scrollIntoView({ block: "start", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

// Between rows or cards, whichever has the focus; arrows only where one has it, else they scroll.
function step(by, key) {
  const inBox = document.activeElement?.closest("#box");
  const list = [...(inBox ? document.querySelectorAll(".card") : document.querySelectorAll("#recent-rows tr"))];
  const now = list.findIndex((node) => node.contains(document.activeElement));
  if (key.startsWith("Arrow") && now < 0) return null;
  const next = list[now < 0 ? 0 : Math.min(list.length - 1, Math.max(0, now + by))];
  return next ? () => next.focus() : null;
}

function showKeys() {
  const dialog = $("keys");
  const rows = KEYS.map(([key, what]) => el("div", {}, el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)));
  const close = el("button", { type: "button", class: "main", onclick: () => dialog.close() }, "Close");
  dialog.replaceChildren(el("h2", { id: "keys-title" }, "Keys"), el("dl", { class: "keys" }, ...rows), el("p", { class: "dim" }, "The picture: a dot on the left is a request that waits, one in a box a request that a replica works on; its ring fills as far as was predicted."), el("div", { class: "buttons" }, close));
  dialog.showModal();
}
