// Small things that all parts of the page use: making nodes, keeping lists in step with data, words for figures.
// What comes from the gateway may have been written by its clients: it only ever becomes text, never markup.

export const $ = (id) => document.getElementById(id);

const SVG = "http://www.w3.org/2000/svg";

export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// Write only what changed: a node that is not touched keeps its selection and costs no layout.
export function say(node, text) {
  const wanted = text === null || text === undefined ? "" : String(text);
  if (node.textContent !== wanted) node.textContent = wanted;
}

export function attr(node, name, value) {
  if (value === null || value === undefined || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
    return;
  }
  const wanted = String(value);
  if (node.getAttribute(name) !== wanted) node.setAttribute(name, wanted);
}

// One child for each item, in the items' order; those that stay keep their node, and so focus and animation.
export function keyed(parent, items, keyOf, make, update) {
  const known = (parent.nodesByKey ??= new Map());
  const wanted = new Set();
  let before = parent.firstChild;
  for (const item of items) {
    const key = keyOf(item);
    if (wanted.has(key)) continue;
    wanted.add(key);
    let node = known.get(key);
    if (!node) {
      node = make(item);
      known.set(key, node);
    }
    if (node === before) before = before.nextSibling;
    else parent.insertBefore(node, before);
    update(node, item);
  }
  for (const [key, node] of known) {
    if (!wanted.has(key)) {
      known.delete(key);
      node.remove();
    }
  }
}

// -- words ------------------------------------------------------------------------------------------------------------

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.0005) return "0";
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  if (value < 9.95) return `${value.toFixed(1)} s`;
  if (value < 120) return `${Math.round(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  if (value < 172800) return `${Math.round(value / 3600)} h`;
  return `${Math.round(value / 86400)} d`;
}

export function number(value, digits = 0) {
  return value === null || value === undefined ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits });
}

export function gib(bytes) {
  return (bytes / 2 ** 30).toFixed(bytes < 99.5 * 2 ** 30 ? 1 : 0);
}

export function size(bytes) {
  return bytes < 2 ** 30 / 10 ? `${Math.round(bytes / 2 ** 20)} MiB` : `${gib(bytes)} GiB`;
}

export function clock(unixSeconds) {
  return new Date(unixSeconds * 1000).toLocaleTimeString("en-GB");
}

export function plural(count, one, many = `${one}s`) {
  return `${number(count)} ${count === 1 ? one : many}`;
}

export const CLASSES = ["interactive", "normal", "batch"];

// llama3.1:latest is llama3.1 to a person
export function short(model) {
  return model ? model.replace(/:latest$/, "") : "no model";
}

// -- colours ----------------------------------------------------------------------------------------------------------

const COLOURS = 8;
const seen = new Map();

// The same model has the same colour everywhere; beyond eight they come again. Names come from clients, so only so many
// are remembered.
export function colour(model) {
  if (!model) return "m-none";
  let place = seen.get(model);
  if (place === undefined) {
    if (seen.size >= 200) return "m-none";
    place = seen.size;
    seen.set(model, place);
  }
  return `m${place % COLOURS}`;
}

export function tag(model) {
  return el("span", { class: `model ${colour(model)}`, title: model || "" }, el("i", { "aria-hidden": "true" }), short(model));
}

export function median(values) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}
