"""What ``ollama show`` prints of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from corral.emulator.cli.words import table

_LINES: Final = 2


def about(shown: Mapping[str, Any], *, verbose: bool) -> str:
    """All sections that there is something for."""
    parts = [_section("Model", _model(shown))]
    if shown.get("capabilities"):
        parts.append(_section("Capabilities", [[name] for name in shown["capabilities"]]))
    if shown.get("parameters"):
        parts.append(_section("Parameters", [line.split() for line in shown["parameters"].splitlines() if line]))
    if verbose:
        info = shown.get("model_info") or {}
        parts.append(_section("Metadata", [[key, _metadatum(info[key])] for key in sorted(info)]))
        tensors = shown.get("tensors") or []
        rows = [[each["name"], each["type"], "[" + " ".join(map(str, each["shape"])) + "]"] for each in tensors]
        parts += [_section("Tensors", rows)] if rows else []
    for key in ("system", "license"):
        if shown.get(key):
            parts.append(_section(key.capitalize(), _beginning(shown[key])))
    return "".join(parts)


def _section(title: str, rows: Sequence[Sequence[str]]) -> str:
    return f"  {title}\n{table((), [['', *row] for row in rows])}\n"


def _model(shown: Mapping[str, Any]) -> list[list[str]]:
    rows, info, details = [], shown.get("model_info") or {}, shown["details"]
    if shown.get("remote_host"):
        rows += [["Remote model", shown["remote_model"]], ["Remote URL", shown["remote_host"]]]
    family = info.get("general.architecture", details["family"])
    rows.append(["architecture", family])
    if details.get("parameter_size"):
        rows.append(["parameters", details["parameter_size"]])
    for name in ("context_length", "embedding_length"):
        if (value := info.get(f"{family}.{name}")) is not None:
            rows.append([name.replace("_", " "), str(value)])
    return [*rows, ["quantization", details["quantization_level"]]]


def _beginning(text: str) -> list[list[str]]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [[line] for line in lines[:_LINES]] + ([["..."]] if len(lines) > _LINES else [])


def _metadatum(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
