"""The first configuration file, with comments, from what was found and answered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Final

from corral.gateway.config.keys import Key, keys

LOOPBACK: Final = "127.0.0.1"
EVERYWHERE: Final = "0.0.0.0"
_WIDTH: Final = 96

_WORTH_KNOWING: Final = (
    "ollama.models",
    "ollama.parallel",
    "ollama.context_length",
    "warmup.models",
    "queue.max_requests",
    "queue.max_wait_s",
    "policy.name",
    "timeouts.drain_s",
    "origins",
)
"""Keys that are shown with what applies now, in comments."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What the file is to say."""

    host: str = LOOPBACK
    """Where clients connect."""
    urls: tuple[str, ...] = ()
    """Of Ollamas that somebody else runs; empty: Corral runs its own."""
    gpus: tuple[str, ...] = ()
    """The machine's, each in a few words."""
    large_models: tuple[str, ...] = ()
    program: str | None = None
    """``ollama``, where it is not found in PATH."""
    port: int = 11434
    admin_port: int = 11435


def file_text(answers: Answers) -> str:
    """The file."""
    known = {key.path: key for key in keys()}
    parts = [
        [
            "# Corral's configuration.",
            "# `corral check-config FILE` checks it, `corral man corral.yaml` explains every key,",
            "# and `corral reload` has a running gateway read it again.",
        ],
        [*_comment(known["listen"].meaning), *_open_to_all(answers), f"listen: {answers.host}:{answers.port}"],
        [*_comment(known["admin_listen"].meaning), f"admin_listen: {LOOPBACK}:{answers.admin_port}"],
        list(_replicas(answers) if answers.urls else _own(answers, known)),
        list(_more(known)),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _open_to_all(answers: Answers) -> list[str]:
    if answers.host == LOOPBACK:
        return [
            f"# 0.0.0.0:{answers.port} would let other machines in; everybody there could use it, as Ollama itself."
        ]
    return ["# Whoever reaches this address can use it and change the models, as with Ollama itself."]


def _replicas(answers: Answers) -> Iterator[str]:
    yield from _comment("Ollamas that somebody else runs. What is left out of them is found out.")
    yield "replicas:"
    for number, url in enumerate(answers.urls):
        yield f'  - {{id: {_name(number)}, url: "{url}"}}'
    yield "  # also, where it is known: weight (how fast it is), slots (its OLLAMA_NUM_PARALLEL)"


def _name(number: int) -> str:
    """a, b, … z, a1, …"""
    return "abcdefghijklmnopqrstuvwxyz"[number % 26] + (str(number // 26) if number >= 26 else "")


def _own(answers: Answers, known: dict[str, Key]) -> Iterator[str]:
    yield from _comment("Corral runs one Ollama on each GPU; `corral plan` shows which, and why.")
    yield from (f"#   {gpu}" for gpu in answers.gpus or ("no GPU was found: models run on the CPU",))
    yield "gpus: auto"
    if answers.large_models:
        yield ""
        yield from _comment(known["large_models"].meaning)
        yield f"large_models: [{', '.join(_quoted(name) for name in answers.large_models)}]"
    if answers.program is not None:
        yield ""
        yield from _comment(known["ollama.binary"].meaning)
        yield f"ollama: {{binary: {_quoted(answers.program)}}}"


def _quoted(text: str) -> str:
    """As YAML reads it back, whatever it is."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _more(known: dict[str, Key]) -> Iterator[str]:
    yield "# What else may be worth a look. It is left out here; beside each stands what applies then."
    for path in _WORTH_KNOWING:
        key = known[path]
        yield from _comment(f"{key.path} ({key.default.replace('`', '')}): {key.meaning}", "#   ", "#     ")


def _comment(text: str, first: str = "# ", then: str = "# ") -> Sequence[str]:
    return wrap(text, _WIDTH, initial_indent=first, subsequent_indent=then, break_on_hyphens=False)
