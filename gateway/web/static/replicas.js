// The replicas with their GPUs: bars, a line of the last minute, what is in memory, and the operator's buttons.

import { act } from "./actions.js";
import { openLog } from "./logs.js";
import { $, attr, colour, el, gib, keyed, number, plural, say, seconds, short, svg } from "./dom.js";

const KEPT = 120;
const history = new Map(); // by GPU: its last readings of utilisation

export function remember(snapshot) {
  for (const { uuid, sample, condition } of snapshot.gpus) {
    const line = history.get(uuid) ?? [];
    line.push(condition === "ok" && sample ? sample.utilisation_ratio : null);
    if (line.length > KEPT) line.shift();
    history.set(uuid, line);
  }
  for (const uuid of [...history.keys()]) {
    if (!snapshot.gpus.some((gpu) => gpu.uuid === uuid)) history.delete(uuid);
  }
}

export function showReplicas(snapshot) {
  const gpus = new Map(snapshot.gpus.map((gpu) => [gpu.uuid, gpu]));
  const used = new Set(snapshot.replicas.flatMap((replica) => replica.gpus));
  const free = snapshot.gpus.filter((gpu) => !used.has(gpu.uuid));
  const cards = [
    ...snapshot.replicas.map((replica) => ({ key: `r ${replica.id}`, replica, gpus: replica.gpus.map((uuid) => gpus.get(uuid)).filter(Boolean) })),
    ...free.map((gpu) => ({ key: `g ${gpu.uuid}`, replica: null, gpus: [gpu] })),
  ];
  keyed($("replicas"), cards, (card) => card.key, makeCard, updateCard);
  const usable = snapshot.replicas.filter((replica) => standing(replica).level === "ok").length;
  say($("box-text"), `${usable} of ${plural(snapshot.replicas.length, "replica")} can serve · ${plural(snapshot.gpus.length, "GPU")}`);
  $("advice").hidden = !snapshot.advice.length;
  keyed($("advice"), snapshot.advice, (text) => text, () => el("p"), say);
}

// One word for how a replica stands, and whether that is well.
export function standing({ health, enabled, held, process }) {
  if (!enabled) return { word: "drained", level: "off" };
  if (held) return { word: process ? process.state : "held", level: process && process.state === "failed" ? "bad" : "warn" };
  if (health === "up") return { word: "up", level: "ok" };
  if (health === "down") return { word: "down", level: "bad" };
  return health === "ejected" ? { word: "ejected", level: "warn" } : { word: "not probed yet", level: "off" };
}

// Why it stands so, in the gateway's words.
export function why({ health, enabled, held, reason, changing }) {
  const said = [];
  if (!enabled) said.push("drained by the operator: it gets no new requests");
  if (held) said.push(held);
  if (changing) said.push(changing);
  if (health !== "up" || !said.length) said.push(reason);
  return said.join(" · ");
}

// -- one card -------------------------------------------------------------------------------------------------------------

function makeCard({ replica }) {
  const node = el("article", { class: "card", tabindex: "-1" });
  if (!replica) {
    node.parts = { gpus: el("div", { class: "gpus" }) };
    node.append(el("header", {}, el("span", { class: "led", "aria-hidden": "true" }), el("h3", {}, "no replica"), el("span", { class: "push" })), node.parts.gpus);
    return node;
  }
  const p = (node.parts = {
    led: el("span", { class: "led", "aria-hidden": "true" }),
    name: el("h3", {}, replica.id),
    word: el("span", { class: "word" }),
    buttons: el("span", { class: "actions" }),
    why: el("p", { class: "why dim" }),
    gpus: el("div", { class: "gpus" }),
    memory: el("ul", { class: "memory", "aria-label": `Models in the memory of ${replica.id}` }),
    facts: el("p", { class: "facts dim" }),
  });
  node.append(el("header", {}, p.led, p.name, p.word, el("span", { class: "push" }), p.buttons), p.why, p.gpus, p.memory, p.facts);
  return node;
}

function updateCard(node, { replica, gpus }) {
  keyed(node.parts.gpus, gpus, (gpu) => gpu.uuid, makeGpu, updateGpu);
  if (!replica) return;
  const p = node.parts;
  const { word, level } = standing(replica);
  attr(node, "data-level", level);
  attr(node, "aria-label", `Replica ${replica.id}, ${word}`);
  attr(node, "data-replica", replica.id);
  say(p.word, word);
  say(p.why, why(replica));
  showButtons(p.buttons, replica);
  showMemory(p.memory, replica);
  say(p.facts, facts(replica).join(" · "));
}

function facts({ in_flight, slots, weight, version, sample_age_s, process }) {
  const said = [`${number(in_flight)} in flight`, slots ? `${plural(slots, "slot")} per model` : "slots not known yet", `weight ${number(weight, 2)}`];
  if (version) said.push(`Ollama ${version}`);
  if (sample_age_s !== null && sample_age_s > 5) said.push(`read ${seconds(sample_age_s)} ago`);
  if (process) {
    said.push(`process ${process.state} for ${seconds(process.for_s)}${process.pid ? `, pid ${process.pid}` : ""}`);
    if (process.restarts) said.push(plural(process.restarts, "restart"));
    if (process.next_start_in_s !== null) said.push(`next start in ${seconds(process.next_start_in_s)}`);
  }
  return said;
}

function showButtons(parent, replica) {
  const orders = [replica.enabled ? "drain" : "resume"];
  if (replica.process) {
    const rests = ["stopped", "failed"].includes(replica.process.state);
    orders.push("restart", rests ? "start" : "stop", "log");
  }
  parent.replica = replica;
  keyed(
    parent,
    orders,
    (order) => order,
    (order) => {
      const run = () => (order === "log" ? openLog(parent.replica.id) : act(order, parent.replica.id, parent.replica.in_flight));
      return el("button", { type: "button", class: "quiet", "data-order": order, "aria-label": `${order} ${replica.id}`, onclick: run }, order[0].toUpperCase() + order.slice(1));
    },
    () => {},
  );
}

function showMemory(parent, { loaded, loading, leaving, in_flight_by_model, slots }) {
  const models = [...new Set([...(loaded ?? []), ...(loading ? [loading] : [])])].sort();
  keyed(
    parent,
    models.length ? models : [null],
    (model) => model ?? "",
    (model) => el("li", { class: model ? `chip ${colour(model)}` : "chip empty" }, el("i", { "aria-hidden": "true" }), el("span"), el("small")),
    (node, model) => {
      const [, name, note] = node.children;
      if (model === null) {
        say(name, loaded === null ? "what is in memory is not known" : "nothing in memory");
        return;
      }
      const state = model === loading ? "loading" : leaving.includes(model) ? "leaving" : "";
      attr(node, "data-state", state || null);
      attr(node, "title", model);
      say(name, short(model));
      say(note, state || (in_flight_by_model[model] ? `${in_flight_by_model[model]}${slots ? `/${slots}` : ""}` : ""));
    },
  );
}

// -- one GPU ----------------------------------------------------------------------------------------------------------------

const METERS = ["use", "memory", "temperature", "power"];

function makeGpu(gpu) {
  const node = el("section", { class: "gpu", "aria-label": `GPU ${gpu.gpu}` });
  const line = svg("path", { class: "line" });
  const area = svg("path", { class: "area" });
  const p = (node.parts = { name: el("h4"), badges: el("span", { class: "badges" }), line, area, meters: {}, note: el("p", { class: "note" }) });
  const spark = svg("svg", { class: "spark", viewBox: `0 0 ${KEPT - 1} 24`, preserveAspectRatio: "none", "aria-hidden": "true" }, area, line);
  const meters = el("div", { class: "meters" });
  for (const name of METERS) {
    const bar = el("i");
    const value = el("span", { class: "value" });
    const meter = el("div", { class: "bar", role: "meter", "aria-label": `${name} of GPU ${gpu.gpu}`, "aria-valuemin": "0", "aria-valuemax": "100" }, bar);
    p.meters[name] = { meter, bar, value };
    meters.append(el("span", { class: "label" }, name === "temperature" ? "temp" : name), meter, value);
  }
  node.append(el("header", {}, p.name, p.badges), spark, meters, p.note);
  return node;
}

function updateGpu(node, gpu) {
  const { parts: p } = node;
  say(p.name, `${gpu.gpu} · ${gpu.name.replace(/^NVIDIA (GeForce )?/, "")}`);
  attr(p.name, "title", `${gpu.name}, ${gpu.uuid}`);
  attr(node, "data-condition", gpu.condition);
  const badges = gpu.condition === "ok" ? (gpu.sample?.throttles ?? []) : [gpu.condition];
  keyed(p.badges, badges, (text) => text, (text) => el("span", { class: "badge" }, text), () => {});
  say(p.note, gpu.condition === "ok" ? "" : `${gpu.reason}${gpu.sample_age_s === null ? "" : `; last read ${seconds(gpu.sample_age_s)} ago`}${gpu.xid ? `; Xid ${gpu.xid}` : ""}`);
  showMeters(p.meters, gpu.sample ?? {});
  draw(p, history.get(gpu.uuid) ?? []);
}

function showMeters(meters, s) {
  const ratio = (part, whole) => (part === null || part === undefined || !whole ? null : part / whole);
  const known = (value, text) => (value === null || value === undefined ? "–" : text(value));
  const heat = ratio(s.temperature_celsius, s.slowdown_celsius ?? 90);
  const memory = ratio(s.memory_used_bytes, s.memory_total_bytes);
  show(meters.use, s.utilisation_ratio ?? null, known(s.utilisation_ratio, (v) => `${Math.round(v * 100)} %`));
  show(meters.memory, memory, known(s.memory_used_bytes, (v) => `${gib(v)}${s.memory_total_bytes ? ` / ${gib(s.memory_total_bytes)}` : ""} GiB`), memory > 0.98 ? "warn" : null);
  show(meters.temperature, heat, known(s.temperature_celsius, (v) => `${Math.round(v)} °C`), heat >= 0.98 ? "bad" : heat >= 0.92 ? "warn" : null);
  show(meters.power, ratio(s.power_watts, s.power_limit_watts), known(s.power_watts, (v) => `${Math.round(v)}${s.power_limit_watts ? ` / ${Math.round(s.power_limit_watts)}` : ""} W`));
}

function show({ meter, bar, value }, ratio, text, level = null) {
  const shown = ratio === null ? 0 : Math.min(1, Math.max(0, ratio));
  bar.style.transform = `scaleX(${shown.toFixed(3)})`;
  attr(meter, "aria-valuenow", ratio === null ? null : Math.round(shown * 100));
  attr(meter, "aria-valuetext", text);
  attr(meter, "data-level", level);
  say(value, text);
}

function draw({ line, area }, values) {
  const start = KEPT - values.length;
  let path = "";
  let first = null;
  let last = null;
  values.forEach((value, index) => {
    if (value === null || value === undefined) {
      last = null;
      return;
    }
    const x = start + index;
    first ??= x;
    path += `${last === null ? "M" : "L"}${x} ${(23 - value * 22).toFixed(1)}`;
    last = x;
  });
  attr(line, "d", path);
  // a gap in the readings is a gap in the line; then there is no area to paint either
  const whole = first !== null && path.lastIndexOf("M") === 0;
  attr(area, "d", whole ? `${path}L${KEPT - 1} 24L${first} 24Z` : "");
}
