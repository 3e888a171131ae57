"""The rows of a configuration as a file that could be used, with the places in comments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import yaml

_COLUMN: Final = 40
"""Where comments begin, if what stands before them ends there."""
Row = Mapping[str, Any]


def rows_as_yaml(rows: Sequence[Row], *, origins: bool) -> str:
    """Lines of YAML. What has no value stands in a comment: a file cannot say *not set*."""
    return "\n".join(_below(rows, 0, lambda row: row["origin"] if origins else ""))


def _below(rows: Sequence[Row], depth: int, note: Callable[[Row], str]) -> Iterator[str]:
    """The lines of rows that have the first ``depth`` parts of their paths in common."""
    indent = "  " * depth
    for part, same in _grouped(rows, depth):
        if isinstance(part, int):
            inner = list(_below(same, depth + 1, note))
            yield from _listed(inner, indent)
        elif len(same) == 1 and len(same[0]["path"]) == depth + 1:
            yield _line(indent, part, same[0], note(same[0]))
        elif all(_is_empty(row) for row in same):
            yield f"{indent}# {part}:"
            lines = _below(same, depth + 1, lambda row: "")
            yield from (f"{indent}# {line.removeprefix(indent).replace('# ', '', 1)}" for line in lines)
        else:
            yield f"{indent}{_text(part)}:"
            yield from _below(same, depth + 1, note)


def _grouped(rows: Sequence[Row], depth: int) -> Iterator[tuple[Any, list[Row]]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["path"][depth], []).append(row)
    yield from groups.items()


def _listed(lines: list[str], indent: str) -> Iterator[str]:
    """Lines of one entry: the first that is no comment gets the dash, and comes first."""
    first = next(number for number, line in enumerate(lines) if not line.lstrip().startswith("#"))
    lines = [lines[first], *lines[:first], *lines[first + 1 :]]
    yield f"{indent}- {lines[0].lstrip()}"
    yield from lines[1:]


def _line(indent: str, name: str, row: Row, note: str) -> str:
    if _is_empty(row):
        return f"{indent}# {name}: {'not set' if row['value'] is None else 'empty'}"
    text = f"{indent}{_text(name)}: {_text(row['value'])}"
    return f"{text:<{_COLUMN}}  # {note}" if note else text


def _is_empty(row: Row) -> bool:
    return row["value"] is None or row["value"] in ([], {})


def _text(value: Any) -> str:
    """In one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"), sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
