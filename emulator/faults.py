"""Faults on demand: which exist, which requests they hit, and how the operator spells them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from typing import Any

from corral.errors import OperatorError
from corral.model import normalise_model

INFERENCE_PATHS = frozenset(
    {
        "/api/generate",
        "/api/chat",
        "/api/embed",
        "/api/embeddings",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/audio/transcriptions",
        "/v1/responses",
        "/v1/messages",
    }
)


class Moment(Enum):
    """When a fault shows."""

    ARRIVAL = "as soon as the request is read"
    LOAD = "when the model is to be loaded"
    RUN = "while the model runs"
    LISTING = "in GET /api/ps"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault."""

    moment: Moment
    meaning: str


KINDS: dict[str, Kind] = {
    "crash-runner": Kind(
        Moment.RUN, "the model's runner dies after AFTER tokens: 500 before the first byte, error line later"
    ),
    "load-fails": Kind(Moment.LOAD, "500 where a chat or generate needs a model that is not in memory"),
    "crash-process": Kind(Moment.RUN, "the whole process exits at once after AFTER tokens"),
    "reset": Kind(Moment.ARRIVAL, "TCP reset before the first byte"),
    "reset-mid-stream": Kind(Moment.RUN, "TCP reset in the middle of a chunk after AFTER tokens"),
    "end-without-done": Kind(Moment.RUN, "after AFTER tokens the body ends cleanly, without the dialect's terminator"),
    "error-mid-stream": Kind(Moment.RUN, "after AFTER tokens an error, as each dialect of Ollama shows it"),
    "truncate": Kind(Moment.RUN, "the connection closes in the middle of the body after AFTER tokens"),
    "hang": Kind(Moment.ARRIVAL, "the request is read and never answered"),
    "hang-mid-stream": Kind(Moment.RUN, "after AFTER tokens nothing more comes; the connection stays open"),
    "busy": Kind(Moment.ARRIVAL, "503 with Ollama's text"),
    "slow-ps": Kind(Moment.LISTING, "/api/ps answers SECONDS late"),
    "nonsense-ps": Kind(Moment.LISTING, "/api/ps answers HTML, then JSON of another shape, in turn"),
    "nonsense-head": Kind(Moment.ARRIVAL, "the answer is not HTTP"),
    "double-content-length": Kind(Moment.ARRIVAL, "the answer has two different Content-Length headers"),
    "bad-chunk": Kind(Moment.RUN, "after AFTER tokens a chunk size that is no number"),
    "oversized-head": Kind(Moment.ARRIVAL, "the answer's head is 1 MiB long"),
    "data-after-end": Kind(Moment.RUN, "a second, unasked answer follows the complete one on the connection"),
    "early-hints-flood": Kind(Moment.ARRIVAL, "10 000 interim 103 answers, then nothing"),
    "slow-loris": Kind(Moment.ARRIVAL, "the answer's head dribbles in, a byte each 100 ms, without an end"),
    "oom": Kind(Moment.RUN, "out of GPU memory after AFTER tokens: the request fails, all models are unloaded"),
    "slot-leak": Kind(Moment.RUN, "the request runs well, but its slot is never given back"),
}

_DEFAULT_AFTER = {"crash-runner": 0, "crash-process": 0, "oom": 0}


@dataclass(slots=True)
class Fault:
    """One ordered fault. It hits requests that match until ``count`` are hit."""

    kind: str
    count: int | None = 1
    """How many requests it hits; None: all."""
    model: str | None = None
    path: str | None = None
    """Start of the paths it hits; None: inference (for the kinds of ``/api/ps``: that path)."""
    after: int = 3
    """Tokens before it strikes, for kinds that strike mid-stream; 0 is before the first byte."""
    seconds: float = 5.0
    every: int = 1
    """Hits only each n-th matching request."""
    ratio: float = 1.0
    """Hits a matching request with this probability (seeded)."""
    hits: int = 0
    seen: int = 0

    @property
    def moment(self) -> Moment:
        return KINDS[self.kind].moment

    def matches(self, path: str, model: str | None) -> bool:
        if self.count is not None and self.hits >= self.count:
            return False
        if self.model is not None and (model is None or normalise_model(model) != normalise_model(self.model)):
            return False
        if self.path is not None:
            return self.path == "*" or path.startswith(self.path)
        return path == "/api/ps" if self.moment is Moment.LISTING else path in INFERENCE_PATHS


@dataclass(slots=True)
class Faults:
    """All faults ordered of one emulator, in order."""

    random: Random
    ordered: list[Fault] = field(default_factory=list)

    def take(self, moment: Moment, path: str, model: str | None) -> Fault | None:
        """The first fault that hits this request now, counted as a hit."""
        for fault in self.ordered:
            if fault.moment is not moment or not fault.matches(path, model):
                continue
            fault.seen += 1
            if fault.seen % fault.every == 0 and (fault.ratio >= 1.0 or self.random.random() < fault.ratio):
                fault.hits += 1
                return fault
        return None


def fault_from(fields: dict[str, Any]) -> Fault:
    """A fault from its fields as JSON or an option gives them; OperatorError says what is wrong."""
    kind = fields.get("kind")
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, n=2, cutoff=0.3) or list(KINDS)
        raise OperatorError(f"unknown kind of fault {kind!r}; nearest known: {', '.join(near)}")
    known = {"kind", "count", "model", "path", "after", "seconds", "every", "ratio"}
    for name in fields:
        if name not in known:
            raise OperatorError(f"fault {kind}: unknown field {name!r}; known: {', '.join(sorted(known))}")
    count = fields.get("count", 1)
    return Fault(
        kind=kind,
        count=None if count is None else int(_number(kind, "count", count, whole=True)),
        model=_word(kind, "model", fields.get("model")),
        path=_word(kind, "path", fields.get("path")),
        after=int(_number(kind, "after", fields.get("after", _DEFAULT_AFTER.get(kind, 3)), whole=True)),
        seconds=_number(kind, "seconds", fields.get("seconds", 5.0)),
        every=max(1, int(_number(kind, "every", fields.get("every", 1), whole=True))),
        ratio=_number(kind, "ratio", fields.get("ratio", 1.0)),
    )


def _number(kind: str, name: str, value: Any, *, whole: bool = False) -> float:
    try:
        number = int(value) if whole else float(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if not 0 <= number < 1e9:
        wanted = "a whole number from 0 up" if whole else "a number from 0 up"
        raise OperatorError(f"fault {kind}: {name}={value} is not {wanted}{' (or all)' if name == 'count' else ''}")
    return number


def _word(kind: str, name: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise OperatorError(f"fault {kind}: {name}={value} is not text")
    return value


def fault_given(text: str) -> Fault:
    """A fault as an option spells it: ``KIND[,count=N|all][,model=M][,after=N][,path=P][,seconds=S]…``."""
    kind, *rest = text.split(",")
    fields: dict[str, Any] = {"kind": kind.strip()}
    for part in rest:
        name, equals, value = part.partition("=")
        if not equals:
            raise OperatorError(f"--fault {text}: {part!r} is not of the form NAME=VALUE")
        fields[name.strip()] = None if name.strip() == "count" and value.strip() == "all" else value.strip()
    return fault_from(fields)
