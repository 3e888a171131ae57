"""Settings files of other programs: what would change in one, and the change, with a copy of what was there before."""

from __future__ import annotations

import difflib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Final

from corral.errors import OperatorError

MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Change:
    """What a file is to become."""

    path: Path
    before: str | None
    """None: there is no such file."""
    after: str

    @property
    def is_none(self) -> bool:
        return self.before == self.after

    def diff(self) -> str:
        old = "" if self.before is None else self.before
        name = str(self.path)
        lines = difflib.unified_diff(old.splitlines(), self.after.splitlines(), name, name, lineterm="")
        return "\n".join(lines)


def merged(path: Path, kind: str, content: Mapping[str, Any]) -> Change:
    """``content`` into what stands in the file. Raises :class:`OperatorError` where something of it would be lost."""
    path = path.resolve()  # a link stays a link
    before = _read(path)
    if before is None or not before.strip():
        return Change(path, before, _written(kind, content, 2))
    found = _parsed(path, kind, before)
    try:
        both = _merge(found, content)
    except ValueError as error:
        raise OperatorError(f"{path}: is not touched: {error}") from None
    after = before if both == found else _written(kind, both, _indent(before))
    return Change(path, before, after)


def _read(path: Path) -> str | None:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise OperatorError(f"{path}: is larger than {MAX_BYTES} bytes; this cannot be a settings file")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _parsed(path: Path, kind: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text) if kind == "json" else _yaml(text)
    except (ValueError, RecursionError) as error:
        raise OperatorError(
            f"{path}: is not touched, since it cannot be read as plain {kind.upper()}: {error}"
        ) from None
    if not isinstance(found, dict):
        raise OperatorError(f"{path}: is not touched, since it holds no settings by name")
    return found


def _yaml(text: str) -> object:
    import yaml

    if any(line.lstrip().startswith("#") or " #" in line for line in text.splitlines()):
        raise ValueError("it has comments, which would be lost")
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error).splitlines()[0]) from None


def _merge(found: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """``wanted`` goes before what is there; of lists, what is not in them yet is added, by name where it has one.

    Raises ValueError where something else is in its place.
    """
    both = dict(found)
    for key, value in wanted.items():
        there = found.get(key)
        if there is not None and isinstance(value, dict | list) and not isinstance(there, type(value)):
            raise ValueError(f"{key!r} in it is of another kind than expected")
        if isinstance(there, dict) and isinstance(value, Mapping):
            both[key] = _merge(there, value)
        elif isinstance(there, list) and isinstance(value, list):
            names = [each["name"] for each in value if isinstance(each, dict) and "name" in each]
            kept = [each for each in there if not (isinstance(each, dict) and each.get("name") in names)]
            both[key] = [*kept, *(each for each in value if each not in kept)]
        elif there is None or not isinstance(there, str) or key not in ("name", "version", "schema"):
            both[key] = value
    return both


def _written(kind: str, content: Mapping[str, Any], indent: int) -> str:
    if kind == "json":
        return json.dumps(content, indent=indent, ensure_ascii=False) + "\n"
    import yaml

    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, indent=indent)


def _indent(text: str) -> int:
    """By how much the first indented line is."""
    found = (len(line) - len(line.lstrip(" ")) for line in text.splitlines() if line.startswith(" "))
    return next(found, 2)


def carry_out(change: Change) -> Path | None:
    """Write the file in one go; the answer is the copy of the old one, if there was one. Raises OperatorError."""
    try:
        change.path.parent.mkdir(parents=True, exist_ok=True)
        if _read(change.path) != change.before:
            raise OperatorError(f"{change.path}: was changed meanwhile; nothing is written")
        kept = None if change.before is None else _copy(change.path, change.before)
        mode = stat.S_IMODE(change.path.stat().st_mode) if change.before is not None else 0o600
        _replace(change.path, change.after, mode)
    except OSError as error:
        raise OperatorError(f"{error.filename or change.path}: cannot be written: {error.strerror}") from error
    return kept


def _replace(path: Path, text: str, mode: int) -> None:
    with NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", encoding="utf-8", delete=False) as file:
        try:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _copy(path: Path, text: str) -> Path:
    """Beside it, under a name that nothing has yet, for its owner only."""
    for number in range(1, 1000):
        copy = path.with_name(f"{path.name}.before-corral{'' if number == 1 else f'-{number}'}")
        try:
            with open(copy, "x", encoding="utf-8", opener=_private) as file:
                file.write(text)
        except FileExistsError:
            continue
        return copy
    raise OperatorError(f"{path}: has too many copies already; remove some of {path.name}.before-corral-*")


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)
