// What the Ollama of a replica prints, as it comes.

import { $, el } from "./dom.js";

const KEPT = 2000;

export async function openLog(id) {
  const dialog = $("logs");
  const lines = el("pre", { tabindex: "0", "aria-label": `Log of ${id}` });
  const reading = new AbortController();
  const close = el("button", { type: "button", class: "icon", "aria-label": "Close", onclick: () => dialog.close() }, "×");
  dialog.replaceChildren(el("header", {}, el("h2", { id: "logs-title" }, `Log of ${id}`), el("span", { class: "push" }), close), lines);
  dialog.addEventListener("close", () => reading.abort(), { once: true });
  dialog.showModal();
  try {
    const answer = await fetch(`replicas/${encodeURIComponent(id)}/log?n=300&follow=1`, { signal: reading.signal });
    if (!answer.ok) throw new Error((await answer.json()).error);
    await follow(answer, lines);
    lines.append("— the log ended here —\n");
  } catch (error) {
    if (!reading.signal.aborted) lines.append(`— ${error.message} —\n`);
  }
}

// Stays at the end as long as the reader does.
async function follow(answer, lines) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const whole = (rest + value).split("\n");
    rest = whole.pop();
    const isAtEnd = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 40;
    for (const line of whole) lines.append(`${JSON.parse(line).text}\n`);
    while (lines.childNodes.length > KEPT) lines.firstChild.remove();
    if (isAtEnd) lines.scrollTop = lines.scrollHeight;
  }
}
