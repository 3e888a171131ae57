// Ask a model, through the client port as any client would, and see which replica answered. Kept in this window alone.

import { $, el, number, say, seconds, short } from "./dom.js";

const messages = [];
let asking = null;
let parts = null;

export function openPlayground(snapshot) {
  const dialog = $("playground");
  parts ??= build(dialog);
  offer(snapshot);
  if (!dialog.open) dialog.showModal();
  parts.text.focus();
}

function build(dialog) {
  const made = {
    model: el("select", { "aria-label": "Model" }),
    talk: el("div", { class: "talk", role: "log", "aria-label": "Conversation" }),
    text: el("textarea", { rows: "3", placeholder: "Ask something", "aria-label": "Your question" }),
    send: el("button", { type: "submit", class: "main" }, "Ask"),
  };
  const anew = el("button", { type: "button", class: "quiet", onclick: forget }, "New conversation");
  const close = el("button", { type: "button", class: "icon", "aria-label": "Close", onclick: () => dialog.close() }, "×");
  const form = el("form", { onsubmit: submit }, made.text, el("div", { class: "buttons" }, made.send));
  made.text.addEventListener("keydown", (event) => event.key === "Enter" && !event.shiftKey && submit(event));
  dialog.append(el("header", {}, el("h2", { id: "playground-title" }, "Ask"), made.model, el("span", { class: "push" }), anew, close), made.talk, form);
  dialog.addEventListener("close", () => asking?.abort());
  return made;
}

// Those in memory first: they answer at once.
function offer({ replicas }) {
  const of = (list) => new Set(replicas.flatMap((replica) => replica[list] ?? []));
  const loaded = of("loaded");
  const names = [...of("installed")].filter((name) => !/embed|minilm|bge|rerank/.test(name));
  names.sort((a, b) => loaded.has(b) - loaded.has(a) || a.localeCompare(b));
  const before = parts.model.value;
  parts.model.replaceChildren(...names.map((name) => el("option", { value: name }, short(name))));
  if (names.includes(before)) parts.model.value = before;
  parts.send.disabled = !names.length;
}

function forget() {
  asking?.abort();
  messages.length = 0;
  parts.talk.replaceChildren();
  parts.text.focus();
}

function submit(event) {
  event.preventDefault();
  if (asking) return asking.abort();
  const question = parts.text.value.trim();
  if (!question || !parts.model.value) return;
  parts.text.value = "";
  ask(question, parts.model.value);
}

async function ask(question, model) {
  messages.push({ role: "user", content: question });
  const answer = el("p", { class: "answer" });
  const about = el("p", { class: "dim" }, "waiting…");
  parts.talk.append(el("p", { class: "question" }, question), answer, about);
  const mine = (asking = new AbortController());
  say(parts.send, "Stop");
  try {
    const body = JSON.stringify({ model, messages, stream: true });
    const response = await fetch("chat", { method: "POST", body, signal: mine.signal });
    if (!response.ok) throw new Error((await response.json().catch(() => ({}))).error || `status ${response.status}`);
    const last = await read(response, answer, about);
    messages.push({ role: "assistant", content: answer.textContent });
    say(about, told(response, last));
  } catch (error) {
    if (!answer.textContent) messages.pop();
    else messages.push({ role: "assistant", content: answer.textContent });
    say(about, mine.signal.aborted ? "stopped" : `failed: ${error.message}`);
  } finally {
    asking = null;
    say(parts.send, "Ask");
  }
}

// Ollama's lines, each an object, the last with the figures.
async function read(response, answer, about) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  say(about, `${response.headers.get("x-corral-replica") ?? "a replica"} answers…`);
  let rest = "";
  let last = null;
  for (;;) {
    const { done, value } = await reader.read();
    rest += value ?? "";
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines.filter((each) => each.trim())) {
      last = JSON.parse(line);
      if (last.error) throw new Error(last.error);
      answer.append(last.message?.content ?? "");
    }
    parts.talk.scrollTop = parts.talk.scrollHeight;
    if (done) return last;
  }
}

function told(response, last) {
  const said = [response.headers.get("x-corral-replica"), response.headers.get("x-corral-reason")];
  const waited = Number(response.headers.get("x-corral-queue-s"));
  said.push(`waited ${seconds(waited)}`);
  if (last?.eval_count && last.eval_duration) said.push(`${number(last.eval_count)} tokens, ${number((last.eval_count * 1e9) / last.eval_duration)} a second`);
  return said.filter(Boolean).join(" · ");
}
