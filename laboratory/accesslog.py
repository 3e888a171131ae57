"""Corral's access log in JSON as a trace: who asked when, for which model, and how much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from corral.errors import OperatorError
from corral.gateway.serve.access_log import CLASSES
from corral.laboratory.types import Arrival
from corral.model import is_cloud_model, normalise_model

_Tokens = Annotated[int, Meta(ge=0, le=10_000_000)]
_Seconds = Annotated[float, Meta(ge=0, le=1e9)]

NO_TOKENS = "without token counts (refused, broken off, or no answer of a model)"
OTHER = "of the gateway's own log"
CLOUD = "for models in Ollama's cloud"
EMBEDDED = "for embeddings"
CUT = "cut off at the end of the file"


class Line(Struct, frozen=True, rename={"class_": "class"}):
    """What is used of a line."""

    time: str
    """When the request was over."""
    total_s: _Seconds
    queue_s: _Seconds
    kind: str = ""
    model: str | None = None
    tenant: str = ""
    class_: str = CLASSES[1]
    first_byte_s: _Seconds | None = None
    prompt_tokens: _Tokens | None = None
    output_tokens: _Tokens | None = None


@dataclass(frozen=True, slots=True)
class AccessLog:
    """The requests of a log that can be played again."""

    arrivals: tuple[Arrival, ...]
    skipped: dict[str, int]
    """Lines that were left out, by the reason."""
    first_byte_s: tuple[float | None, ...]
    """How long each of the arrivals took in reality, where the log tells."""
    total_s: tuple[float, ...]


_decode = msgspec.json.Decoder(Line).decode


def is_access_log(text: str) -> bool:
    """Whether the first line that is an object is one of Corral's."""
    for line in _lines(text):
        if line[1].startswith("{"):
            return '"total_s"' in line[1] and '"queue_s"' in line[1]
    return False


def read_access_log(path: Path, text: str) -> AccessLog:
    """Every request with the tokens that it took, with model, tenant and class as they were.

    Raises OperatorError: it names the line where one is damaged, and says why where no request is left.
    """
    skipped: Counter[str] = Counter()
    arrivals, first_byte_s, total_s = [], [], []
    for number, text_line in _lines(text):
        line = _read(path, number, text_line, is_last=text.endswith(text_line))
        if isinstance(line, str):
            skipped[line] += 1
            continue
        arrivals.append(_arrival(path, number, line))
        total_s.append(line.total_s)
        first_byte_s.append(line.first_byte_s)
    if not arrivals:
        raise OperatorError(f"{path}: no request that can be played again{_left_out(skipped)}")
    return AccessLog(tuple(arrivals), dict(skipped), tuple(first_byte_s), tuple(total_s))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Not by ``splitlines``: only a line feed ends a line of JSON."""
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _read(path: Path, number: int, text: str, *, is_last: bool) -> Line | str:
    """The line, or why it is left out."""
    if not text.startswith("{"):
        return OTHER
    try:
        line = _decode(text)
    except msgspec.ValidationError as error:
        raise OperatorError(f"{path}, line {number}: {error}") from error
    except (msgspec.DecodeError, RecursionError) as error:
        if is_last:  # a gateway is writing it
            return CUT
        raise OperatorError(f"{path}, line {number}: no JSON: {error}") from error
    if line.kind.startswith("embed"):
        return EMBEDDED
    if line.model is None or line.prompt_tokens is None or line.output_tokens is None:
        return NO_TOKENS
    return CLOUD if is_cloud_model(normalise_model(line.model)) else line


def _arrival(path: Path, number: int, line: Line) -> Arrival:
    assert line.model is not None
    assert line.prompt_tokens is not None
    assert line.output_tokens is not None
    try:
        ended = datetime.fromisoformat(line.time)
    except ValueError as error:
        raise OperatorError(f"{path}, line {number}: time: {error}") from error
    at_s = (ended if ended.tzinfo else ended.replace(tzinfo=UTC)).timestamp() - line.total_s
    return Arrival(
        0,
        at_s,
        normalise_model(line.model),
        max(1, line.prompt_tokens),
        max(1, line.output_tokens),
        line.tenant,
        rank=CLASSES.index(line.class_) if line.class_ in CLASSES else 1,
    )


def _left_out(skipped: Counter[str]) -> str:
    return f": {', '.join(f'{count} {why}' for why, count in skipped.items())}" if skipped else ""
