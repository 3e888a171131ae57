// The page's heart: takes what the stream tells, keeps the last of it, and has the parts show it.

import { restartAll } from "./actions.js";
import { $, attr, clock, el, keyed, median, number, say, seconds } from "./dom.js";
import { ended, forget, showFlow } from "./flow.js";
import { askModels, showModels } from "./models.js";
import { openPlayground } from "./playground.js";
import { remember, showReplicas } from "./replicas.js";
import { showDetails, showRecent, showWaiting } from "./requests.js";
import { Stream } from "./stream.js";
import { address, bindKeys, bindTheme, onAddress } from "./controls.js";

const KEPT = 500;
const MINUTE_S = 60;

const state = { snapshot: null, requests: [], lines: [], isPaused: false, isDirty: false, shown: null, chosen: null };

// -- what comes in ----------------------------------------------------------------------------------------------------------

function told(kind, data) {
  if (kind === "begin") {
    Object.assign(state, { requests: [], lines: [], shown: null });
    forget();
  } else if (kind === "snapshot") {
    state.snapshot = data;
    remember(data);
  } else if (kind === "request") {
    state.requests.push(data);
    if (state.requests.length > KEPT) state.requests.shift();
    if (state.shown !== null && !state.isPaused) ended(data);
  } else if (kind === "log") {
    state.lines.push(data);
    if (state.lines.length > KEPT) state.lines.shift();
  }
  render();
}

// At most once a frame, and not at all while nobody looks.
function render() {
  if (state.isDirty || document.hidden) return;
  state.isDirty = true;
  requestAnimationFrame(() => {
    state.isDirty = false;
    if (state.snapshot && !state.isPaused) show();
  });
}

function show() {
  const { snapshot, requests, lines } = state;
  document.documentElement.toggleAttribute("data-many", snapshot.replicas.length > 6);
  showFigures(snapshot, requests);
  showFlow(snapshot);
  showReplicas(snapshot);
  showWaiting(snapshot);
  showRecent(requests, address.find, openRequest);
  showModels(snapshot);
  showLines(lines);
  state.shown = snapshot;
  openFromAddress();
  askModels(render);
}

// -- the line at the top ------------------------------------------------------------------------------------------------------

function showFigures(snapshot, requests) {
  const { in_flight, queued, oldest_wait_s } = snapshot.requests;
  const newest = requests.length ? Math.max(...requests.slice(-20).map((one) => one.at + one.total_s)) : 0;
  const now = Math.max(newest, Date.now() / 1000);
  const lately = requests.filter((one) => now - one.at - one.total_s < MINUTE_S);
  const span = Math.min(MINUTE_S, Math.max(5, lately.length ? now - lately[0].at : MINUTE_S));
  const tokens = lately.reduce((sum, one) => sum + (one.figures?.output_tokens ?? 0), 0);
  const watts = snapshot.gpus.map((gpu) => (gpu.condition === "ok" ? gpu.sample?.power_watts : null)).filter((value) => value !== null && value !== undefined);
  say($("fig-running"), number(in_flight));
  say($("fig-waiting"), number(queued));
  say($("fig-oldest"), seconds(oldest_wait_s));
  say($("fig-first"), seconds(median(lately.map((one) => one.first_byte_s).filter((value) => value !== null))));
  say($("fig-tokens"), lately.length ? number(tokens / span) : "–");
  say($("fig-rate"), number((lately.length * 60) / span));
  say($("fig-power"), watts.length ? `${number(watts.reduce((sum, each) => sum + each, 0))} W` : "–");
  say($("version"), snapshot.version);
  say($("policy"), `Corral ${snapshot.version} · policy ${snapshot.policy}`);
  const processes = snapshot.replicas.filter((replica) => replica.process);
  $("restart-all").hidden = !processes.length;
  document.title = queued ? `(${queued}) Corral` : "Corral";
}

function showLines(lines) {
  const least = { info: 0, warning: 1, error: 2 }[address.level] ?? 0;
  const rank = (line) => ({ debug: 0, info: 0, warning: 1, error: 2, critical: 2 })[line.level] ?? 0;
  const shown = lines.filter((line) => rank(line) >= least).slice(-150).reverse();
  $("lines-none").hidden = shown.length > 0;
  keyed(
    $("lines"),
    shown,
    (line) => `${line.number} ${line.at}`,
    ({ at, level, text }) => el("li", { "data-level": level }, el("time", {}, clock(at)), el("span", { class: "hidden" }, level), el("span", { class: "text" }, ...words(text))),
    () => {},
  );
}

// `event key=value …`: the event stands out.
function words(text) {
  const space = text.indexOf(" ");
  return space < 0 ? [el("b", {}, text)] : [el("b", {}, text.slice(0, space)), text.slice(space)];
}

// -- whether it is true now ---------------------------------------------------------------------------------------------------

function showState() {
  const { snapshot } = state;
  const is = stream.state;
  const text = {
    live: () => (state.isPaused ? "paused" : snapshot.ready ? "live" : `not ready: ${snapshot.reason}`),
    connecting: () => "connecting…",
    silent: () => `stale: silent for ${seconds(stream.ageS)}`,
    broken: () => "stale: no connection",
  }[is]();
  document.documentElement.dataset.stream = is === "live" && !snapshot.ready ? "unready" : is === "live" && state.isPaused ? "paused" : is;
  say($("state-text"), text);
  const isStale = is === "broken" || is === "silent";
  const banner = $("banner");
  if (isStale) {
    const age = stream.ageS === null ? "Nothing was heard from the gateway yet" : `What you see is ${seconds(Math.max(1, stream.ageS))} old`;
    say(banner, `${age}: the stream is broken. ${stream.retryAt === null ? "Waiting…" : `Trying again in ${Math.ceil(stream.retryInS)} s.`}`);
  }
  if (banner.hidden !== !isStale) banner.hidden = !isStale;
}

// -- what a person does ---------------------------------------------------------------------------------------------------------

function openRequest(one) {
  state.chosen = one;
  address.set({ request: one.id });
}

function openFromAddress() {
  const dialog = $("details");
  if (!address.request) {
    if (dialog.open) dialog.close();
    dialog.of = null;
    return;
  }
  if (dialog.open && dialog.of === address.request) return;
  // a client may give several requests one id
  const { chosen } = state;
  const one = chosen?.id === address.request ? chosen : state.requests.findLast((each) => each.id === address.request);
  if (!one) return;
  dialog.of = one.id;
  showDetails(one, () => dialog.close());
}

function askSomething() {
  if (state.snapshot) openPlayground(state.snapshot);
}

function pause() {
  state.isPaused = !state.isPaused;
  attr($("pause"), "aria-pressed", state.isPaused);
  showState();
  render();
}

function bind() {
  $("pause").addEventListener("click", pause);
  $("find").addEventListener("input", (event) => address.set({ find: event.target.value }, true));
  $("level").addEventListener("change", (event) => address.set({ level: event.target.value }, true));
  $("restart-all").addEventListener("click", () => restartAll(state.snapshot.replicas.filter((replica) => replica.process).map((replica) => replica.id)));
  $("ask").addEventListener("click", askSomething);
  $("details").addEventListener("close", () => address.request && address.set({ request: "" }));
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  }
  document.addEventListener("visibilitychange", render);
  onAddress(() => {
    if ($("find").value !== address.find) $("find").value = address.find;
    $("level").value = address.level || "info";
    if (state.snapshot) {
      showRecent(state.requests, address.find, openRequest);
      showLines(state.lines);
      openFromAddress();
    }
  });
  bindTheme();
  bindKeys({ pause, askSomething, openRequest: (number) => openRequest(state.requests.find((one) => String(one.number) === number)) });
}

bind();
const stream = new Stream(told, showState);
showState();
