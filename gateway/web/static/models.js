// Where models live: one row a model, one column a replica.

import { $, attr, el, keyed, number, plural, say, seconds, short, size, tag } from "./dom.js";

const ROWS = 60;
let details = new Map(); // by name, from /models: sizes, pins, and what a snapshot does not tell
let asked = -Infinity;

// Sizes and pins change seldom; what is in memory comes with every snapshot.
export async function askModels(render) {
  if (performance.now() - asked < 5000) return;
  asked = performance.now();
  try {
    const answer = await fetch("models", { signal: AbortSignal.timeout(10000) });
    if (!answer.ok) return;
    details = new Map((await answer.json()).models.map((model) => [model.name.toLowerCase(), model]));
    render();
  } catch {
    // the stream's state tells already that the gateway does not answer
  }
}

export function showModels(snapshot) {
  const { replicas } = snapshot;
  const names = new Set();
  for (const { installed, loaded, loading } of replicas) {
    for (const name of [...(installed ?? []), ...(loaded ?? []), ...(loading ? [loading] : [])]) names.add(name);
  }
  const inMemory = (name) => replicas.some((replica) => replica.loaded?.includes(name));
  const rows = [...names].sort((a, b) => inMemory(b) - inMemory(a) || a.localeCompare(b));
  say($("models-text"), rows.length ? `${plural(rows.length, "model")}, ${rows.filter(inMemory).length} in memory` : "");
  head(replicas);
  keyed($("matrix-rows"), rows.slice(0, ROWS), (name) => name, makeRow, (node, name) => updateRow(node, name, replicas));
}

function head(replicas) {
  const parent = $("matrix-head");
  const signature = JSON.stringify(replicas.map((replica) => replica.id));
  if (parent.dataset.of === signature) return;
  parent.dataset.of = signature;
  const cells = replicas.map(({ id }) => el("th", { scope: "col", title: id }, el("span", {}, id)));
  parent.replaceChildren(el("tr", {}, el("th", { scope: "col" }, el("span", { class: "hidden" }, "model")), ...cells, el("th", { scope: "col", class: "num" }, "size")));
}

function makeRow(name) {
  return el("tr", {}, el("th", { scope: "row" }, tag(name)));
}

function updateRow(row, name, replicas) {
  const more = details.get(name);
  const cells = [...replicas, null];
  keyed(
    row,
    [undefined, ...cells],
    (replica) => (replica === undefined ? "name" : replica === null ? "size" : `r ${replica.id}`),
    (replica) => (replica === undefined ? row.firstChild : replica === null ? el("td", { class: "num dim" }) : el("td", {}, el("span", { class: "cell" }))),
    (node, replica) => {
      if (replica === undefined) return;
      if (replica === null) say(node, more?.size_bytes ? size(more.size_bytes) : "");
      else updateCell(node, name, replica, more);
    },
  );
}

function updateCell(node, name, replica, more) {
  const cell = node.firstChild;
  const busy = replica.in_flight_by_model[name] ?? 0;
  const [state, words] = whereabouts(name, replica, busy);
  const copy = more?.copies.find((each) => each.replica === replica.id);
  const pinned = more?.pinned_at.includes(replica.id) ?? false;
  const facts = [words];
  if (pinned) facts.push("pinned");
  if (copy) facts.push(`${size(copy.size_vram_bytes)} on the GPU`);
  if (copy && copy.size_vram_bytes < copy.size_bytes) facts.push(`${size(copy.size_bytes - copy.size_vram_bytes)} on the CPU`);
  if (copy?.idle_s > 1 && !busy) facts.push(`idle for ${seconds(copy.idle_s)}`);
  const text = `${short(name)} on ${replica.id}: ${facts.join(", ")}`;
  attr(cell, "class", `cell ${state}${pinned ? " pinned" : ""}`);
  attr(cell, "title", text);
  attr(cell, "role", "img");
  attr(cell, "aria-label", text);
  say(cell, busy ? number(busy) : "");
}

function whereabouts(name, { loaded, loading, leaving, installed, changing }, busy) {
  if (name === loading) return ["loading", changing ?? "loading"];
  if (leaving.includes(name)) return ["leaving", changing ?? "leaving"];
  if (loaded?.includes(name)) return busy ? ["busy", `in memory, ${plural(busy, "request")}`] : ["in", "in memory"];
  if (installed?.includes(name)) return ["store", "in its store"];
  return installed === null ? ["unknown", "not known"] : ["none", "not there"];
}
