"""Public request traces, read by path: what kind a file is shows in its columns."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from math import isfinite
from pathlib import Path
from random import Random

from corral.errors import OperatorError
from corral.laboratory.accesslog import is_access_log, read_access_log
from corral.laboratory.types import Arrival

MOONCAKE_TICK_S = 3.0
"""Mooncake's arrivals sit on ticks this far apart."""

MOST_TOKENS = 10_000_000
"""Of one prompt or answer: more is a mistake."""
MOST_BYTES = 1 << 30
"""Of a trace, unpacked."""

Row = Mapping[str, str]


def read_trace(path: Path, seed: int = 0) -> list[Arrival]:
    """Every request of the file in order of time, from 0 s on and without a model; an OperatorError names the line that
    does not fit.

    Known: Azure's LLM traces (TIMESTAMP, ContextTokens, GeneratedTokens), Mooncake (one JSON object a line), ServeGen
    (arrived_at_s, client_id, input_tokens, output_tokens), and Corral's own access log in JSON, whose models are told;
    each plain or gzip. ``seed`` spreads Mooncake's ticks.
    """
    return arrivals_of(path, trace_text(path), seed)


def arrivals_of(path: Path, text: str, seed: int = 0) -> list[Arrival]:
    """As :func:`read_trace`, of the text of the file ``path``."""
    if is_access_log(text):
        return in_order(list(read_access_log(path, text).arrivals))
    arrivals = _mooncake(path, text, Random(f"ticks {seed}")) if text.lstrip().startswith("{") else _table(path, text)
    if not arrivals:
        raise OperatorError(f"{path}: no request in it")
    return in_order(arrivals)


def in_order(arrivals: list[Arrival]) -> list[Arrival]:
    """By time, numbered anew, the first at 0 s."""
    ordered = sorted(arrivals, key=lambda arrival: arrival.at_s)
    first_s = ordered[0].at_s if ordered else 0.0
    return [replace(arrival, number=n, at_s=arrival.at_s - first_s) for n, arrival in enumerate(ordered)]


def trace_text(path: Path) -> str:
    """The whole file, unpacked; ``-``: standard input."""
    try:
        with nullcontext(sys.stdin.buffer) if str(path) == "-" else path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if content[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(content)) as packed:
                content = packed.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise OperatorError(f"{path} is larger than {MOST_BYTES} bytes: cut a piece out of it")
        return content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise OperatorError(f"cannot read the trace {path}: {getattr(error, 'strerror', None) or error}") from error
    except UnicodeDecodeError as error:
        raise OperatorError(f"{path} is no text: {error}") from error


def _table(path: Path, text: str) -> list[Arrival]:
    rows = csv.DictReader(io.StringIO(text))
    try:
        return _rows(path, rows)
    except csv.Error as error:
        raise OperatorError(f"{path}, line {rows.line_num + 1}: {error}") from error


def _rows(path: Path, rows: csv.DictReader[str]) -> list[Arrival]:
    columns = set(rows.fieldnames or ())
    reader = next((reader for needed, reader in _TABLES.items() if needed <= columns), None)
    if reader is None:
        known = "; ".join(", ".join(sorted(needed)) for needed in _TABLES)
        raise OperatorError(
            f"{path}: unknown kind of trace: its columns are {', '.join(rows.fieldnames or ['none'])}; "
            f"known are {known}; or JSON lines with timestamp, input_length, output_length, hash_ids; "
            "or Corral's access log (access_log: {format: json})"
        )
    return [_counted(path, rows.line_num, lambda row=row: reader(row)) for row in rows]  # type: ignore[misc]


def _azure(row: Row) -> Arrival:
    # the trace counts in 100 ns, which is a digit more than datetime can read
    stamp = row["TIMESTAMP"].strip()
    whole, _, fraction = stamp.partition(".")
    at_s = datetime.fromisoformat(whole + "+00:00").timestamp() + float(f"0.{fraction or 0}")
    return _arrival(at_s, row["ContextTokens"], row["GeneratedTokens"])


def _servegen(row: Row) -> Arrival:
    return _arrival(float(row["arrived_at_s"]), row["input_tokens"], row["output_tokens"], row["client_id"])


_TABLES: dict[frozenset[str], Callable[[Row], Arrival]] = {
    frozenset({"TIMESTAMP", "ContextTokens", "GeneratedTokens"}): _azure,
    frozenset({"arrived_at_s", "client_id", "input_tokens", "output_tokens"}): _servegen,
}


def _mooncake(path: Path, text: str, rng: Random) -> list[Arrival]:
    return [_counted(path, number, lambda line=line: _mooncake_line(line, rng)) for number, line in _lines(text)]  # type: ignore[misc]


def _lines(text: str) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip())


def _mooncake_line(line: str, rng: Random) -> Arrival:
    row = json.loads(line)
    at_s = row["timestamp"] / 1000 + rng.random() * MOONCAKE_TICK_S
    return _arrival(at_s, row["input_length"], row["output_length"], blocks=tuple(map(int, row["hash_ids"])))


def _arrival(
    at_s: float, prompt: str | int, output: str | int, tenant: str = "", blocks: tuple[int, ...] = ()
) -> Arrival:
    """A request that makes no token is one that makes one: an answer has a first token."""
    tokens = int(prompt), int(output)
    if not isfinite(at_s):
        raise ValueError(f"{at_s} is no time")
    if not 0 <= min(tokens) <= max(tokens) <= MOST_TOKENS:
        raise ValueError(f"{tokens[0]} and {tokens[1]} are no numbers of tokens")
    return Arrival(0, at_s, "", max(1, tokens[0]), max(1, tokens[1]), tenant, blocks)


def _counted(path: Path, number: int, read: Callable[[], Arrival]) -> Arrival:
    try:
        return read()
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise OperatorError(f"{path}, line {number}: {type(error).__name__}: {error}") from error


def find_traces(folder: Path, globs: Mapping[str, str]) -> dict[str, Path]:
    """The first file of the folder that fits each glob."""
    found = {name: sorted(folder.glob(glob)) for name, glob in globs.items()}
    return {name: paths[0] for name, paths in found.items() if paths}
