// The queue, the last requests, and one request in full: how long each part took, and why it went where it went.

import { $, attr, CLASSES, clock, colour, el, keyed, number, plural, say, seconds, short, tag } from "./dom.js";

const SHOWN = 120;

// -- who waits --------------------------------------------------------------------------------------------------------------

export function showWaiting({ requests }) {
  const { waiting, queued } = requests;
  say($("waiting-text"), queued ? `${number(queued)}${queued > waiting.length ? `, the oldest ${waiting.length} shown` : ""}` : "");
  $("waiting-none").hidden = queued > 0;
  $("waiting-table").hidden = queued === 0;
  const rows = [...waiting].sort((a, b) => a.rank - b.rank || a.position - b.position || a.number - b.number);
  keyed($("waiting-rows"), rows, (one) => `${one.number} ${one.model}`, makeWaiting, updateWaiting);
}

function makeWaiting(one) {
  return el("tr", {}, el("td", { class: "num" }), el("td", {}, tag(one.model)), el("td", {}, CLASSES[one.rank] ?? one.rank), el("td", { class: "num" }), el("td", { class: "dim" }));
}

function updateWaiting(row, { position, waited_s, need, replicas }) {
  const [place, , , waited, what] = row.children;
  say(place, position);
  say(waited, seconds(waited_s));
  say(what, replicas.length ? `${need} on ${replicas.join(", ")}` : need);
}

// -- the last requests --------------------------------------------------------------------------------------------------------

export function tokensPerSecond({ figures, total_s, first_byte_s }) {
  const tokens = figures?.output_tokens;
  if (!tokens) return null;
  if (figures.decode_s) return tokens / figures.decode_s;
  const spent = first_byte_s === null ? 0 : total_s - first_byte_s;
  return spent > 0.001 ? tokens / spent : null;
}

export function outcomeWords({ outcome, status }) {
  const words = outcome.replace(/^refused_/, "refused: ").replace(/^error_/, "error ").replaceAll("_", " ");
  return outcome.startsWith("error_") && status ? `error ${status}` : words;
}

export function level({ outcome }) {
  if (outcome === "ok") return "ok";
  return outcome === "client_gone" || outcome === "error_4xx" ? "warn" : "bad";
}

// Batches of embeddings are worked off in parts, and some pages the gateway makes itself.
function whereTo({ replica, outcome, kind }) {
  if (replica) return replica;
  if (outcome !== "ok") return "–";
  return kind.includes("embed") ? "several" : "gateway";
}

export function showRecent(requests, find, open) {
  const wanted = find.trim().toLowerCase();
  const matches = (one) => [one.id, one.model, one.replica, one.outcome, one.kind, one.reason].some((text) => text?.toLowerCase().includes(wanted));
  const found = wanted ? requests.filter(matches) : requests;
  const rows = found.slice(-SHOWN).reverse();
  say($("recent-text"), wanted ? `${found.length} of ${requests.length}` : "");
  $("recent-none").hidden = rows.length > 0;
  say($("recent-none"), wanted ? "None of the last requests has that." : "No request has ended yet.");
  keyed($("recent-rows"), rows, (one) => `${one.number} ${one.id}`, (one) => makeRow(one, open), () => {});
}

function makeRow(one, open) {
  const row = el("tr", { tabindex: "-1", class: "link", "data-number": one.number, "data-id": one.id });
  const outcome = el("span", { class: "outcome", "data-level": level(one) }, outcomeWords(one));
  const button = el("button", { type: "button", class: "plain", "aria-label": `Details of request ${one.id}` }, clock(one.at + one.total_s));
  row.append(
    el("td", {}, button),
    el("td", {}, one.model ? tag(one.model) : el("span", { class: "dim" }, one.kind)),
    el("td", {}, whereTo(one), one.failed.length ? el("span", { class: "badge", title: "Attempts that failed before" }, `+${one.failed.length}`) : null),
    el("td", { class: "dim" }, one.reason ?? ""),
    el("td", { class: "num" }, seconds(one.queue_s)),
    el("td", { class: "num" }, seconds(one.first_byte_s)),
    el("td", { class: "num" }, seconds(one.total_s)),
    el("td", { class: "num" }, number(tokensPerSecond(one))),
    el("td", {}, outcome),
  );
  row.addEventListener("click", () => open(one));
  return row;
}

// -- one of them --------------------------------------------------------------------------------------------------------------

export function showDetails(one, close) {
  const dialog = $("details");
  const decision = el("section", { class: "decision" }, el("h3", {}, "The decision"), el("p", { class: "dim" }, "asking the gateway…"));
  const parts = [
    el("header", {}, el("h2", { id: "details-title" }, one.model ? short(one.model) : one.kind), el("span", { class: "outcome", "data-level": level(one) }, outcomeWords(one)), el("span", { class: "push" }), el("button", { type: "button", class: "icon", "aria-label": "Close", onclick: close }, "×")),
    timeline(one),
    facts(one),
    ...(one.failed.length ? [attempts(one)] : []),
    decision,
  ];
  dialog.replaceChildren(...parts);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  askDecision(one, decision);
}

function timeline(one) {
  const total = Math.max(one.total_s, 1e-6);
  const parts = [
    ["waited", 0, one.queue_s, "wait"],
    ["first byte", one.queue_s, one.first_byte_s ?? total, "first"],
    ["answer", one.first_byte_s ?? total, total, "answer"],
  ].filter(([, from, to]) => to - from > 0);
  const track = el("div", { class: "track", "aria-hidden": "true" });
  for (const [, from, to, kind] of parts) {
    const part = el("i", { class: kind });
    part.style.left = `${(100 * from) / total}%`;
    part.style.width = `${(100 * (to - from)) / total}%`;
    track.append(part);
  }
  for (const { ended_s } of one.failed) {
    const mark = el("i", { class: "mark" });
    mark.style.left = `${Math.min(100, (100 * ended_s) / total)}%`;
    track.append(mark);
  }
  const words = parts.map(([name, from, to, kind]) => el("li", {}, el("i", { class: kind, "aria-hidden": "true" }), `${name} ${seconds(to - from)}`));
  return el("div", { class: "timeline" }, track, el("ul", { class: "key" }, ...words));
}

function facts(one) {
  const { figures, predicted } = one;
  const list = el("dl", { class: "facts" });
  const fact = (name, value) => value !== null && value !== undefined && value !== "" && list.append(el("div", {}, el("dt", {}, name), el("dd", {}, String(value))));
  fact("id", one.id);
  fact("model", one.model);
  fact("replica", whereTo(one));
  fact("why there", one.reason);
  fact("arrived", clock(one.at));
  fact("asked for", `${one.method} ${one.path} (${one.kind})`);
  fact("class", CLASSES[one.rank] ?? one.rank);
  fact("tenant", one.tenant);
  fact("status", one.status ?? "the client left before");
  fact("in all", seconds(one.total_s));
  if (predicted) {
    const thought = (predicted.wait_s + predicted.prefill_s + predicted.decode_s) * predicted.slowdown;
    fact("predicted", `${seconds(thought)} from its sending; it took ${seconds(one.total_s - one.queue_s)}`);
  }
  fact("prompt", figures?.prompt_tokens && plural(figures.prompt_tokens, "token"));
  fact("answer", figures?.output_tokens && `${plural(figures.output_tokens, "token")}, ${number(tokensPerSecond(one), 1)} a second`);
  fact("load, prefill, decode", figures && [figures.load_s, figures.prefill_s, figures.decode_s].some((value) => value !== null) ? [figures.load_s, figures.prefill_s, figures.decode_s].map(seconds).join(", ") : null);
  fact("request body", one.request_bytes ? `${number(one.request_bytes)} bytes` : null);
  return list;
}

function attempts(one) {
  const rows = one.failed.map(({ replica, fault, sent_s, ended_s }) => el("li", {}, el("b", {}, replica), ` ${fault}, after ${seconds(ended_s - sent_s)}`));
  return el("section", {}, el("h3", {}, "Attempts before that failed"), el("ol", {}, ...rows));
}

// The gateway remembers its last hundred decisions; a request that was tried again has several, and so have those of a
// client that gives all of them one name.
async function askDecision(one, section) {
  const tell = (text) => section.replaceChildren(el("h3", {}, "The decision"), el("p", { class: "dim" }, text));
  try {
    const answer = await fetch(`explain?id=${encodeURIComponent(one.id)}`, { signal: AbortSignal.timeout(5000) });
    const { decisions } = await answer.json();
    if (!decisions?.length) return tell(one.replica ? "Too long ago: the gateway remembers its last hundred decisions." : "None is known: no replica was chosen, or it was too long ago.");
    const parts = decisions.slice(-6).map((each) => [el("h3", {}, `The decision: ${each.reason}`), candidates(each, one)]);
    section.replaceChildren(...parts.flat());
  } catch {
    tell("The gateway does not answer.");
  }
}

function candidates({ candidates: rows, replica }, one) {
  const predicts = rows.some(({ predicted }) => predicted);
  const names = ["replica", "in flight", "slots", "weight", ...(predicts ? ["wait", "prefill", "answer", "others lose", "slowed", "compared"] : ["in memory"])];
  const head = el("tr", {}, ...names.map((name, index) => el("th", { scope: "col", class: index ? "num" : null }, name)));
  const body = rows.map((each) => {
    const p = each.predicted;
    const memory = each.in_memory === null ? "–" : each.in_memory ? "yes" : "no";
    const parts = predicts ? (p ? [seconds(p.wait_s), seconds(p.prefill_s), seconds(p.decode_s), seconds(p.others_s), `×${number(p.slowdown, 2)}`, seconds(p.cost_s)] : ["–", "–", "–", "–", "–", "–"]) : [memory];
    const cells = [each.in_flight, each.slots, number(each.weight, 2), ...parts].map((text) => el("td", { class: "num" }, String(text)));
    return el("tr", { class: each.id === replica ? `chosen ${colour(one.model)}` : null }, el("th", { scope: "row" }, each.id === replica ? `→ ${each.id}` : each.id), ...cells);
  });
  const known = predicts ? "The last column weighs the parts by what they mean to a client; the least wins." : "Too little was learned to predict: requests in flight beside the weight decided.";
  const note = rows.length === 1 ? "No other replica could take it then." : known;
  return el("div", {}, el("div", { class: "scroll", tabindex: "0" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...body))), el("p", { class: "dim" }, note));
}
