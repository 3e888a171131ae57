// The picture: on the left who waits, by model; on the right the replicas with their slots; between them who goes where.
// Nothing in it is made up: each dot is one request of a snapshot or of the list of those that ended.

import { $, attr, colour, keyed, number, say, seconds, short, svg } from "./dom.js";

const LANES = 8;
const LINGER_MS = 45000; // a lane stays so long after its last request
const FLIGHTS = 48;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

const lanes = new Map(); // by model: when it was last seen, in order of first appearance
const seats = new Map(); // by replica and model: which request sits where
let places = new Map(); // by number of request: where its dot was
let running = new Set();
let layers = null;
let shape = null;
let flying = 0;
let last = null;

export function showFlow(snapshot) {
  last = snapshot;
  const root = $("flow");
  layers ??= prepare(root);
  noteLanes(snapshot);
  shape = measure(root, snapshot);
  attr(root, "viewBox", `0 0 ${shape.width} ${shape.height}`);
  attr(root, "height", shape.height);
  const names = [...lanes.keys()];
  const before = places;
  places = new Map();
  drawLinks(snapshot, names);
  drawLanes(snapshot, names);
  drawReplicas(snapshot);
  depart(snapshot, before);
  tell(snapshot, names);
}

// A request that ended: its dot leaves, and where it was too quick to be in a snapshot it goes all the way.
export function ended(one) {
  if (!layers || !shape || document.hidden) return;
  const lane = laneOf(one.model);
  const row = shape.rows.get(one.replica);
  const kind = one.outcome === "ok" ? colour(one.model) : "m-bad";
  if (!row) {
    if (one.outcome !== "ok" && lanes.has(one.model)) fly([[shape.gate, lane], [shape.gate + 30, lane + 26]], kind, 500);
    return;
  }
  const way = one.total_s - one.queue_s < 0.75 ? curve(lane, row.y) : [[shape.right, row.y]];
  fly([...way, [shape.width - 4, row.y]], kind, way.length > 1 ? 900 : 420);
}

export function forget() {
  lanes.clear();
  seats.clear();
  places = new Map();
  running = new Set();
}

addEventListener("resize", () => last && showFlow(last));

function prepare(root) {
  const made = {};
  for (const name of ["links", "lanes", "rows", "flights"]) {
    made[name] = svg("g", { class: name });
    root.append(made[name]);
  }
  made.hint = svg("text", { class: "hint", x: 12 });
  root.append(made.hint);
  return made;
}

// -- where things are ---------------------------------------------------------------------------------------------------------

function noteLanes({ requests, replicas }) {
  const now = performance.now();
  const seen = new Set([...requests.waiting, ...requests.running].filter((one) => one.model).map((one) => one.model));
  for (const { in_flight_by_model } of replicas) for (const model of Object.keys(in_flight_by_model)) seen.add(model);
  for (const model of seen) if (lanes.has(model) || lanes.size < LANES) lanes.set(model, now);
  for (const [model, at] of lanes) if (now - at > LINGER_MS) lanes.delete(model);
}

function measure(root, { replicas }) {
  const width = Math.max(320, Math.round(root.parentElement.clientWidth) - 2);
  const isNarrow = width < 640;
  const pitch = isNarrow ? 50 : replicas.length > 8 ? 34 : 44;
  const height = Math.max(replicas.length * pitch, Math.min(LANES, lanes.size) * (isNarrow ? 34 : 28), 120) + 16;
  const top = (height - replicas.length * pitch) / 2;
  const rows = new Map(replicas.map(({ id }, index) => [id, { y: top + (index + 0.5) * pitch, pitch }]));
  const gate = Math.round(width * (isNarrow ? 0.4 : 0.34));
  return { width, height, isNarrow, rows, gate, right: Math.round(width * (isNarrow ? 0.54 : 0.56)) };
}

function laneOf(model) {
  const names = [...lanes.keys()];
  const index = names.indexOf(model);
  const count = Math.max(1, names.length);
  return ((index < 0 ? count / 2 - 0.5 : index) + 0.5) * (shape.height / count);
}

function curve(from, to) {
  const [x0, x1] = [shape.gate, shape.right];
  const bend = (x1 - x0) * 0.5;
  return Array.from({ length: 13 }, (_, step) => {
    const t = step / 12;
    const [a, b, c, d] = [(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t ** 2, t ** 3];
    return [a * x0 + b * (x0 + bend) + c * (x1 - bend) + d * x1, (a + b) * from + (c + d) * to];
  });
}

// -- what stands still ----------------------------------------------------------------------------------------------------------

function drawLinks({ replicas }, names) {
  const links = [];
  for (const { id, loaded, in_flight_by_model } of replicas) {
    for (const model of names) {
      const count = in_flight_by_model[model] ?? 0;
      if (count || loaded?.includes(model)) links.push({ key: `${id} ${model}`, id, model, count });
    }
  }
  keyed(layers.links, links, (link) => link.key, () => svg("path"), (node, { id, model, count }) => {
    const [from, to] = [laneOf(model), shape.rows.get(id).y];
    const bend = (shape.right - shape.gate) * 0.5;
    attr(node, "class", `way ${colour(model)}${count ? " used" : ""}`);
    attr(node, "d", `M${shape.gate} ${from}C${shape.gate + bend} ${from} ${shape.right - bend} ${to} ${shape.right} ${to}`);
    attr(node, "stroke-width", count ? Math.min(7, 1.2 + count * 0.7).toFixed(1) : 1);
  });
}

function drawLanes({ requests }, names) {
  attr(layers.hint, "y", shape.height / 2 + 4);
  say(layers.hint, names.length ? "" : "Requests come in here.");
  keyed(layers.lanes, names, (model) => model, makeLane, (node, model) => {
    const y = laneOf(model);
    const [name, line, dots, more] = node.children;
    const queued = Object.entries(requests.queued_by_model).reduce((sum, [key, count]) => sum + (key === model || key.startsWith(`${model} `) ? count : 0), 0);
    const waiting = requests.waiting.filter((one) => one.model === model).sort((a, b) => a.position - b.position);
    const label = shape.isNarrow ? 84 : 150;
    const room = Math.floor((shape.gate - label - 34) / 11);
    attr(name, "y", y + 4);
    say(name, clipped(model, shape.isNarrow ? 11 : 21));
    attr(line, "d", `M${label} ${y}H${shape.gate}`);
    keyed(dots, waiting.slice(0, Math.max(0, room)), (one) => one.number, makeDot, (dot, one) => {
      const at = [shape.gate - 9 - (one.position - 1) * 11, y];
      at[0] = Math.max(label + 26, at[0]);
      place(dot, at);
      attr(dot, "data-rank", one.rank);
      places.set(one.number, at);
    });
    attr(more, "x", label + 2);
    attr(more, "y", y - 6);
    say(more, queued ? number(queued) : "");
  });
}

function makeLane(model) {
  const node = svg("g", { class: `lane ${colour(model)}` }, svg("text", { class: "name", x: 2 }), svg("path", { class: "rail" }), svg("g"), svg("text", { class: "count" }));
  node.append(svg("title", {}, model));
  return node;
}

function makeDot() {
  return svg("circle", { class: "dot", r: 4 });
}

function place(node, [x, y]) {
  node.style.transform = `translate(${x.toFixed(1)}px,${y.toFixed(1)}px)`;
}

function clipped(text, letters) {
  const name = short(text);
  return name.length > letters ? `${name.slice(0, letters - 1)}…` : name;
}

// -- the replicas and their slots -----------------------------------------------------------------------------------------------

function drawReplicas(snapshot) {
  keyed(layers.rows, snapshot.replicas, (replica) => replica.id, makeReplica, (node, replica) => {
    const { y, pitch } = shape.rows.get(replica.id);
    const [box, name, state, groups] = node.children;
    const isOut = !replica.enabled || replica.held || replica.health === "down";
    attr(node, "data-out", isOut ? "" : null);
    attr(box, "x", shape.right);
    attr(box, "y", y - pitch / 2 + 3);
    attr(box, "width", shape.width - shape.right - 12);
    attr(box, "height", pitch - 6);
    attr(name, "x", shape.right + 10);
    attr(name, "y", shape.isNarrow ? y - 6 : isOut ? y - 2 : y + 4);
    say(name, clipped(replica.id, shape.isNarrow ? 20 : 16));
    attr(state, "x", shape.isNarrow ? shape.width - 20 : shape.right + 10);
    attr(state, "y", shape.isNarrow ? y - 6 : y + 11);
    attr(state, "text-anchor", shape.isNarrow ? "end" : "start");
    say(state, isOut ? (!replica.enabled ? "drained" : replica.held ? "held" : "down") : "");
    drawSeats(groups, replica, snapshot.requests.running.filter((one) => one.replica === replica.id), y);
  });
}

function makeReplica() {
  return svg("g", { class: "replica" }, svg("rect", { rx: 6 }), svg("text", { class: "name" }), svg("text", { class: "state" }), svg("g"));
}

// One seat for each slot of each model in memory, taken or free; a request keeps its seat until it ends.
function seatsOf(replica, present) {
  const models = [...new Set([...(replica.loaded ?? []), ...Object.keys(replica.in_flight_by_model)])].sort();
  const found = [];
  for (const model of models) {
    const busy = replica.in_flight_by_model[model] ?? 0;
    const count = Math.max(busy, Math.min(replica.slots ?? busy, 16));
    const key = `${replica.id} ${model}`;
    const taken = seats.get(key) ?? [];
    const mine = new Map(present.filter((one) => one.model === model).map((one) => [one.number, one]));
    const kept = Array.from({ length: count }, (_, index) => (mine.has(taken[index]) ? taken[index] : undefined));
    for (const sequence of mine.keys()) {
      if (!kept.includes(sequence)) {
        const free = kept.indexOf(undefined);
        if (free >= 0) kept[free] = sequence;
      }
    }
    seats.set(key, kept);
    let unknown = busy - kept.filter((sequence) => sequence !== undefined).length; // beyond those that the snapshot lists
    kept.forEach((sequence, index) => {
      const one = sequence === undefined ? null : mine.get(sequence);
      const isTaken = one !== null || unknown-- > 0;
      found.push({ key: `${model} ${index}`, model, one, isTaken, isFirst: index === 0 });
    });
  }
  return found;
}

function drawSeats(parent, replica, present, y) {
  const all = seatsOf(replica, present);
  const start = shape.right + (shape.isNarrow ? 14 : 140);
  const groups = all.filter((seat) => seat.isFirst).length;
  const room = shape.width - 24 - start;
  const pitch = Math.min(16, Math.max(4, (room - groups * 12) / Math.max(1, all.length)));
  let x = start;
  keyed(parent, all, (seat) => seat.key, makeSeat, (node, seat) => {
    x += seat.isFirst && seat !== all[0] ? pitch + 10 : seat === all[0] ? 0 : pitch;
    const at = [x, shape.isNarrow ? y + 10 : y];
    const [disc, ring, title] = node.children;
    place(node, at);
    const isReading = seat.one && !seat.one.answering;
    attr(node, "class", `seat ${colour(seat.model)}${seat.isTaken ? " taken" : ""}${isReading ? " reading" : ""}`);
    attr(disc, "r", Math.min(4.5, pitch * 0.32).toFixed(1));
    attr(ring, "r", Math.min(6.5, pitch * 0.45).toFixed(1));
    const share = seat.one?.predicted_s ? Math.min(1, seat.one.for_s / seat.one.predicted_s) : 0;
    attr(ring, "stroke-dasharray", `${share.toFixed(3)} 1`);
    const about = seat.one ? `, request for ${seconds(seat.one.for_s)}${isReading ? ", no byte yet" : ""}` : seat.isTaken ? ", taken" : ", free";
    say(title, short(seat.model) + about);
    if (seat.one) places.set(seat.one.number, at);
  });
}

function makeSeat() {
  return svg("g", { class: "seat" }, svg("circle", { class: "disc" }), svg("circle", { class: "ring", pathLength: 1 }), svg("title"));
}

// -- what moves -----------------------------------------------------------------------------------------------------------------

// Those that were sent since the last snapshot fly from where they waited to their seat.
function depart({ requests }, before) {
  const now = new Set(requests.running.map((one) => one.number));
  const isFirst = !running.size && !before.size;
  for (const one of requests.running) {
    const seat = places.get(one.number);
    const row = shape.rows.get(one.replica);
    if (running.has(one.number) || isFirst || !seat || !row) continue;
    const from = before.get(one.number);
    fly([...(from ? [from] : []), ...curve(laneOf(one.model), row.y), seat], colour(one.model), 700);
  }
  running = now;
}

function fly(points, kind, ms) {
  if (calm.matches || flying >= FLIGHTS || document.hidden) return;
  const dot = svg("circle", { class: `dot flight ${kind}`, r: 4 });
  place(dot, points[0]);
  layers.flights.append(dot);
  flying += 1;
  const steps = points.map(([x, y]) => ({ transform: `translate(${x.toFixed(1)}px,${y.toFixed(1)}px)`, opacity: 1 }));
  steps[steps.length - 1].opacity = 0.2;
  const moving = dot.animate(steps, { duration: ms, easing: "cubic-bezier(.4,0,.3,1)", fill: "both" });
  moving.onfinish = moving.oncancel = () => {
    dot.remove();
    flying -= 1;
  };
}

// -- the same in words ------------------------------------------------------------------------------------------------------------

function tell({ requests }, names) {
  const { queued, in_flight, oldest_wait_s } = requests;
  const oldest = oldest_wait_s === null ? "" : `, the oldest for ${seconds(oldest_wait_s)}`;
  say($("flow-text"), `${number(queued)} waiting${oldest} · ${number(in_flight)} with a replica`);
  attr($("flow"), "data-lanes", names.length);
}
