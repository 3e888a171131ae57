// What an operator does here: asked back first where it matters, told how it went, and undone where that makes sense.

import { $, el, say } from "./dom.js";

const UNDO_MS = 12000;

const words = {
  drain: {
    ask: (id, busy) => `${id} gets no new requests. ${busy ? `The ${busy} it is working on will finish.` : "It is idle now."}`,
    title: (id) => `Drain ${id}?`,
    done: (id) => `${id} is drained`,
    button: "Drain",
    undo: "resume",
  },
  resume: { done: (id) => `${id} takes requests again`, undo: "drain" },
  restart: {
    ask: (id, busy) => `Its Ollama ends ${busy ? `when the ${busy} it is working on are done` : "now"} and is started anew; its models have to be loaded again.`,
    title: (id) => `Restart ${id}?`,
    done: (id) => `${id} restarts`,
    button: "Restart",
  },
  stop: {
    ask: (id, busy) => `Its Ollama ends ${busy ? `when the ${busy} it is working on are done` : "now"}; its GPU stays free until you start it again.`,
    title: (id) => `Stop ${id}?`,
    done: (id) => `${id} stops`,
    button: "Stop",
    undo: "start",
  },
  start: { done: (id) => `${id} starts`, undo: "stop" },
};

export async function act(order, id, busy) {
  const { ask, title, button, done, undo } = words[order];
  if (ask && !(await confirmed(title(id), ask(id, busy), button))) return;
  if (!(await post(`replicas/${encodeURIComponent(id)}/${order}`, `${id}: ${order} failed`))) return;
  toast(done(id), undo && { label: "Undo", run: () => undone(undo, id) });
}

async function undone(order, id) {
  if (await post(`replicas/${encodeURIComponent(id)}/${order}`, `${id}: ${order} failed`)) toast(words[order].done(id));
}

export async function restartAll(ids) {
  const text = `One after the other: ${ids.join(", ")}. The others serve meanwhile.`;
  if (!(await confirmed("Restart all Ollamas?", text, "Restart all"))) return;
  if (await post("restart", "restart failed")) toast("All restart, one after the other");
}

async function post(path, failed) {
  try {
    const answer = await fetch(path, { method: "POST", signal: AbortSignal.timeout(10000) });
    if (answer.ok) return true;
    const body = await answer.json().catch(() => ({}));
    toast(`${failed}: ${body.error || `status ${answer.status}`}`, null, true);
  } catch (error) {
    toast(`${failed}: the gateway does not answer`, null, true);
  }
  return false;
}

function confirmed(title, text, button) {
  const dialog = $("confirm");
  if (dialog.open) return Promise.resolve(false);
  say($("confirm-title"), title);
  say($("confirm-text"), text);
  say($("confirm-yes"), button);
  dialog.returnValue = "no";
  dialog.showModal();
  $("confirm-yes").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

export function toast(text, action = null, failed = false) {
  const node = el("div", { class: failed ? "toast failed" : "toast", role: failed ? "alert" : null }, el("span", {}, text));
  const gone = () => node.remove();
  if (action) {
    const run = () => {
      gone();
      action.run();
    };
    node.append(el("button", { type: "button", onclick: run }, action.label));
  }
  node.append(el("button", { type: "button", class: "close", "aria-label": "Close this message", onclick: gone }, "×"));
  $("toasts").append(node);
  while ($("toasts").children.length > 4) $("toasts").firstChild.remove();
  if (!failed) setTimeout(gone, UNDO_MS);
}
