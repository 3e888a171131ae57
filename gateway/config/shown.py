"""A configuration in rows: each key with its value, as it may be shown, and where that comes from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from corral.gateway.config.masking import masked
from corral.gateway.config.owned import GpusConfig
from corral.gateway.config.places import Address, ReplicaUrl
from corral.gateway.config.schema import PolicyConfig
from corral.gateway.config.sources import Settled

CONFIG_SCHEMA: Final = 1
"""Grows when a key of this page goes or changes its meaning; new keys may come without."""

Part = str | int


def config_page(settled: Settled) -> dict[str, Any]:
    """What ``GET /config`` and ``corral config show --json`` answer."""
    return {
        "schema": CONFIG_SCHEMA,
        "file": None if settled.path is None else str(settled.path),
        "keys": list(_rows(settled)),
        "warnings": list(settled.warnings),
    }


def _rows(settled: Settled) -> Iterator[dict[str, Any]]:
    for parts, value in leaves(settled.config):
        key = key_of(parts)
        origin = settled.origin(key)
        yield {
            "key": key,
            "path": list(parts),
            "value": masked(key, value),
            "from": origin.kind.value,
            "origin": str(origin),
        }


def key_of(parts: tuple[Part, ...]) -> str:
    """``("replicas", 0, "url")``: ``replicas[0].url``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")


def leaves(value: Any, parts: tuple[Part, ...] = ()) -> Iterator[tuple[tuple[Part, ...], Any]]:
    """Every value that a file could give, as plain data, in the order of the schema."""
    if isinstance(value, PolicyConfig):
        yield (*parts, "name"), value.name
        yield (*parts, "path"), plain(value.path)
        for name, option in value.options.items():
            yield (*parts, name), option
    elif isinstance(value, GpusConfig):
        yield from leaves(value.groups, parts) if value.groups else [(parts, "auto" if value.auto else "none")]
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from leaves(getattr(value, name), (*parts, name))
    elif isinstance(value, dict) and _has_keys_of_its_own(parts, value):
        for name, item in value.items():
            yield from leaves(item, (*parts, name))
    elif isinstance(value, tuple) and value and isinstance(value[0], msgspec.Struct):
        for index, item in enumerate(value):
            yield from leaves(item, (*parts, index))
    else:
        yield parts, plain(value)


def _has_keys_of_its_own(parts: tuple[Part, ...], value: dict[str, Any]) -> bool:
    """Environments are shown name by name, and so is what has structs below names; other dicts are one value."""
    return bool(value) and (parts[-1] == "env" or isinstance(next(iter(value.values())), msgspec.Struct))


def plain(value: Any) -> Any:
    """As YAML or JSON would write it."""
    if isinstance(value, Address | ReplicaUrl | Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value
