"""Modelfiles: what ``ollama create`` makes a request of."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from corral.emulator.cli.arguments import CommandError

_KNOWN: Final = (
    "from",
    "license",
    "template",
    "system",
    "adapter",
    "renderer",
    "parser",
    "parameter",
    "message",
    "requires",
)
_INTEGERS: Final = frozenset(
    {
        "draft_num_predict",
        "main_gpu",
        "num_batch",
        "num_ctx",
        "num_gpu",
        "num_keep",
        "num_predict",
        "num_thread",
        "repeat_last_n",
        "seed",
        "top_k",
    }
)
_NUMBERS: Final = frozenset(
    {"temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty"}
)
_SPACE: Final = re.compile(r"\s")
_VALUE: Final = re.compile(r"\s*(?:\"\"\"(.*?)\"\"\"|\"([^\"\n]*)\"|([^\n]*))", re.DOTALL)


@dataclass(slots=True)
class Request:
    """What is to be created, and the files it needs by digest."""

    body: dict[str, Any]
    uploads: dict[str, Path] = field(default_factory=dict)


def read_request(path: Path, model: str) -> Request:
    """CommandError says what the Modelfile lacks."""
    found = Request({"model": model})
    parameters: dict[str, Any] = {}
    for name, value in _commands(path.read_text()):
        if name == "from":
            _add_from(found, path.parent, value)
        elif name == "adapter":
            file = path.parent / value
            _add_file(found, "adapters", file)
        elif name == "license":
            found.body.setdefault("license", []).append(value)
        elif name == "message":
            role, _, text = value.partition(" ")
            found.body.setdefault("messages", []).append({"role": role, "content": text.strip()})
        elif name == "parameter":
            _add_parameter(parameters, *_pair(value))
        else:
            found.body[name] = value
    if "from" not in found.body and "files" not in found.body:
        raise CommandError("no FROM line")
    if parameters:
        found.body["parameters"] = parameters
    return found


def _commands(text: str) -> Iterator[tuple[str, str]]:
    while text := text.lstrip():
        if text.startswith("#"):
            text = text.partition("\n")[2]
            continue
        word, rest = _word(text)
        if word.lower() not in _KNOWN:
            quoted = ", ".join(f'"{name}"' for name in _KNOWN[:-1])
            raise CommandError(f'command must be one of {quoted}, or "{_KNOWN[-1]}"')
        if word.lower() in ("parameter", "message"):
            key, rest = _word(rest.lstrip())
            value, text = _value(rest)
            yield word.lower(), f"{key} {value}"
        else:
            value, text = _value(rest)
            yield word.lower(), value


def _word(text: str) -> tuple[str, str]:
    """The first word, and what follows the space behind it."""
    word = _SPACE.split(text, maxsplit=1)[0]
    return word, text[len(word) + 1 :]


def _value(text: str) -> tuple[str, str]:
    """One value, and what follows it."""
    found = _VALUE.match(text)
    assert found is not None
    triple, quoted, plain = found.groups()
    value = triple if triple is not None else quoted if quoted is not None else plain.strip()
    return value, text[found.end() :]


def _pair(value: str) -> tuple[str, str]:
    key, _, rest = value.partition(" ")
    return key, rest


def _add_parameter(parameters: dict[str, Any], key: str, value: str) -> None:
    if key == "stop":
        parameters.setdefault("stop", []).append(value)
        return
    if key not in _INTEGERS | _NUMBERS | {"use_mmap"}:
        raise CommandError(f"unknown parameter '{key}'")
    try:
        if key in _INTEGERS:
            parameters[key] = int(value)
        else:
            parameters[key] = value.lower() == "true" if key == "use_mmap" else float(value)
    except ValueError:
        kind = "int" if key in _INTEGERS else "float"
        raise CommandError(f"invalid {kind} value [{value}]") from None


def _add_from(found: Request, folder: Path, value: str) -> None:
    path = folder / Path(value).expanduser()
    if path.is_file():
        _add_file(found, "files", path)
    else:
        found.body["from"] = value


def _add_file(found: Request, kind: str, path: Path) -> None:
    try:
        with path.open("rb") as file:
            digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise CommandError(f"open {path}: {str(error.strerror).lower()}") from None
    found.body.setdefault(kind, {})[path.name] = digest
    found.uploads[digest] = path
