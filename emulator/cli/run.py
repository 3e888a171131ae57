"""``ollama run``: one answer to what is on the command line and standard input, or a conversation at a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from corral.emulator.ask import Rejected, duration_s
from corral.emulator.cli.arguments import CommandError, Given
from corral.emulator.cli.client import Client, StatusError
from corral.emulator.cli.progress import pull
from corral.emulator.cli.words import go_duration
from corral.model import is_cloud_model, normalise_model

_THINKING: Final = ("Thinking...\n", "...done thinking.\n\n")
_THINK_VALUES: Final = {"": True, "true": True, "false": False} | {
    word: word for word in ("high", "medium", "low", "max")
}


@dataclass(slots=True)
class Run:
    """One run of a model."""

    client: Client
    model: str
    given: Given
    options: dict[str, Any] = field(default_factory=dict)
    """What every request to the model carries beside its text."""

    def start(self) -> None:
        shown = self._shown()
        capabilities = shown.get("capabilities", [])
        self._read_flags(capabilities)
        prompt, at_terminal = self._prompt()
        if "embedding" in capabilities:
            self._embed(prompt)
        elif at_terminal:
            self._converse(shown)
        else:
            self._answer(prompt, shown.get("system", ""))

    # -- before -------------------------------------------------------------------------------------------------------

    def _shown(self) -> Mapping[str, Any]:
        """What the server knows of the model, which is pulled where it has it not."""
        is_cloud = is_cloud_model(normalise_model(self.model))
        try:
            found: Mapping[str, Any] = self.client.post("/api/show", _show_body(self.model))
        except StatusError as error:
            if error.status != 404 or is_cloud:
                raise
            pull(self.client, self.model)
            found = self.client.post("/api/show", _show_body(self.model))
        if is_cloud:
            listed = [model["name"].lower() for model in self.client.get("/api/tags")["models"]]
            if self.model.lower() not in listed:
                pull(self.client, self.model)
        return found

    def _read_flags(self, capabilities: Sequence[str]) -> None:
        flags = self.given.flags
        if flags.get("keepalive"):
            try:
                duration_s(flags["keepalive"])
            except Rejected as rejected:
                raise CommandError(rejected.message) from None
            self.options["keep_alive"] = flags["keepalive"]
        if "think" in flags:
            if flags["think"] not in _THINK_VALUES:
                values = "must be true, false, high, medium, low, or max"
                raise CommandError(f'invalid value for --think: "{flags["think"]}" ({values})')
            self.options["think"] = _THINK_VALUES[flags["think"]]
        elif "thinking" in capabilities:
            self.options["think"] = True
        if flags.get("format"):
            text = flags["format"]
            self.options["format"] = json.loads(text) if text.startswith("{") else text

    def _prompt(self) -> tuple[str, bool]:
        """What is asked, and whether a conversation at the terminal is wanted instead."""
        words = self.given.arguments[1:]
        is_terminal = sys.stdin.isatty()
        piped = "" if is_terminal else sys.stdin.read()
        words = [piped, *words] if piped else words
        return " ".join(words), is_terminal and sys.stdout.isatty() and not words

    # -- answers ------------------------------------------------------------------------------------------------------

    def _answer(self, prompt: str, system: str) -> None:
        body = {"model": self.model, "prompt": prompt, "suffix": "", "system": system, "template": "", "options": {}}
        last: Mapping[str, Any] = {}
        screen = _Screen(hides_thinking=self.given.is_on("hidethinking"))
        for last in self.client.stream("/api/generate", body | self.options):
            screen.show(last.get("thinking", ""), last.get("response", ""))
        if prompt:
            sys.stdout.write("\n\n")
        if self.given.is_on("verbose") and last.get("done"):
            _sum_up(last)

    def _converse(self, shown: Mapping[str, Any]) -> None:
        load(self.client, self.model, self.options)
        messages: list[dict[str, str]] = []
        if shown.get("system"):
            messages.append({"role": "system", "content": shown["system"]})
        while True:
            sys.stdout.write(">>> ")
            sys.stdout.flush()
            line = sys.stdin.readline()
            if not line or line.strip() == "/bye":
                return
            messages.append({"role": "user", "content": line.strip()})
            messages.append({"role": "assistant", "content": self._turn(messages)})

    def _turn(self, messages: list[dict[str, str]]) -> str:
        screen = _Screen(hides_thinking=self.given.is_on("hidethinking"))
        last: Mapping[str, Any] = {}
        for last in self.client.stream(
            "/api/chat", {"model": self.model, "messages": messages, "options": {}} | self.options
        ):
            message = last.get("message", {})
            screen.show(message.get("thinking", ""), message.get("content", ""))
        sys.stdout.write("\n\n")
        if self.given.is_on("verbose"):
            _sum_up(last)
        return screen.text

    def _embed(self, prompt: str) -> None:
        if not prompt:
            example = f'ollama run {self.model} "your text here"'
            raise CommandError(f"embedding models require input text. Usage: {example}")
        body: dict[str, Any] = {"model": self.model, "input": prompt, "options": None}
        body |= {key: value for key, value in self.options.items() if key == "keep_alive"}
        if "truncate" in self.given.flags:
            body["truncate"] = self.given.is_on("truncate")
        if self.given.flags.get("dimensions", "0") != "0":
            body["dimensions"] = int(self.given.flags["dimensions"])
        found = self.client.post("/api/embed", body)
        sys.stdout.write(json.dumps(found["embeddings"][0], separators=(",", ":")) + "\n")


class _Screen:
    """Prints pieces as they come, thinking between its two marks."""

    def __init__(self, *, hides_thinking: bool) -> None:
        self._hides_thinking = hides_thinking
        self._thoughts = ""
        self._is_thinking = False
        self.text = ""

    def show(self, thought: str, text: str) -> None:
        if thought and not self._hides_thinking:
            sys.stdout.write("" if self._is_thinking else _THINKING[0])
            self._is_thinking = True
            self._thoughts += thought
            sys.stdout.write(thought)
        if text and self._is_thinking:
            sys.stdout.write(("" if self._thoughts.endswith("\n") else "\n") + _THINKING[1])
            self._is_thinking = False
        self.text += text
        sys.stdout.write(text)
        sys.stdout.flush()


def load(client: Client, model: str, options: Mapping[str, Any]) -> None:
    """Has it loaded, or with a keep-alive of nothing let go of. One of the cloud needs neither."""
    shown = client.post("/api/show", _show_body(model))
    if shown.get("remote_host") or is_cloud_model(normalise_model(model)):
        client.post("/api/me", None)
        return
    kept = {key: value for key, value in options.items() if key in ("keep_alive", "think")}
    body = {"model": model, "prompt": "", "suffix": "", "system": "", "template": "", "options": None}
    for _ in client.stream("/api/generate", body | kept):
        pass


def _show_body(model: str) -> dict[str, Any]:
    return {"model": model, "system": "", "template": "", "verbose": False, "options": None, "name": ""}


def _sum_up(last: Mapping[str, Any]) -> None:
    """The figures of an answer, on standard error."""
    lines = []
    for key, label in (("total_duration", "total duration:"), ("load_duration", "load duration:")):
        if last.get(key):
            lines.append(f"{label:<22}{go_duration(last[key])}")
    for start in ("prompt eval", "eval"):
        count, nanoseconds = (last.get(f"{start.replace(' ', '_')}_{what}", 0) for what in ("count", "duration"))
        if count:
            lines.append(f"{start + ' count:':<22}{count} token(s)")
        if nanoseconds:
            lines.append(f"{start + ' duration:':<22}{go_duration(nanoseconds)}")
            lines.append(f"{start + ' rate:':<22}{count / nanoseconds * 1e9:.2f} tokens/s")
    sys.stdout.flush()
    sys.stderr.write("".join(line + "\n" for line in lines))
