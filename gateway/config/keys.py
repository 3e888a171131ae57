"""Every key of the configuration with its type, default and meaning: of these the documentation is made."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Meta, Struct

from corral.gateway.config.owned import GpusConfig, GroupConfig
from corral.gateway.config.schema import Address, Config, PolicyConfig, ReplicaUrl

_WORDS: Final = {
    Address: "`host:port`",
    ReplicaUrl: "`http://host:port`",
    Path: "path",
    str: "text",
    bool: "`true` or `false`",
    int: "whole number",
    float: "number",
}
_UNITS: Final = {"_s": " of seconds", "_bytes": " of bytes"}


@dataclass(frozen=True, slots=True)
class Key:
    """One key. What a person would type stands between backquotes."""

    path: str
    """``replicas[].id``, ``queue.max_wait_s``, ``stores.NAME.path``."""
    kind: str
    default: str
    meaning: str


def keys(cls: type[Struct] = Config, prefix: str = "") -> Iterator[Key]:
    """All keys, in the order of the schema."""
    for field in msgspec.structs.fields(cls):
        path = f"{prefix}{field.name}"
        base = _base(field.type)
        if base is GpusConfig:
            yield Key(path, "`auto`, `none` or list", _default(field), _meaning(field.type))
            yield from keys(GroupConfig, f"{path}[].")
        elif get_origin(base) is tuple and _is_subclass(_base(get_args(base)[0]), Struct):
            yield Key(path, "list", _default(field), _meaning(field.type))
            yield from keys(_base(get_args(base)[0]), f"{path}[].")
        elif get_origin(base) is dict and _is_subclass(get_args(base)[1], Struct):
            yield Key(path, "names and keys", _default(field), _meaning(field.type))
            yield from keys(get_args(base)[1], f"{path}.NAME.")
        elif _is_subclass(base, Struct):
            yield from keys(base, f"{path}.")
        elif not (cls is PolicyConfig and field.name == "options"):
            yield Key(path, _kind(field.name, field.type), _default(field), _meaning(field.type))


def _is_subclass(value: Any, cls: type) -> bool:
    return isinstance(value, type) and issubclass(value, cls)


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default_factory is not NODEFAULT:
        return "empty"
    if field.default is NODEFAULT:
        return "must be given"
    if field.default is None:
        return "not set"
    if field.default == ():
        return "empty"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    return f"`{field.default:g}`" if isinstance(field.default, float) else f"`{field.default}`"


def _metas(wanted: Any) -> Iterator[Meta]:
    if get_origin(wanted) in (Union, types.UnionType):
        for part in get_args(wanted):
            yield from _metas(part)
    elif get_origin(wanted) is Annotated:
        yield from _metas(get_args(wanted)[0])
        yield from (part for part in get_args(wanted)[1:] if isinstance(part, Meta))


def _base(wanted: Any) -> Any:
    if get_origin(wanted) is Annotated:
        return _base(get_args(wanted)[0])
    if get_origin(wanted) in (Union, types.UnionType):
        return _base(next(part for part in get_args(wanted) if part is not type(None)))
    return wanted


def _meaning(wanted: Any) -> str:
    return next(meta.description for meta in reversed(list(_metas(wanted))) if meta.description)


def _kind(name: str, wanted: Any) -> str:
    base = _base(wanted)
    if get_origin(base) is tuple:
        return "list of text"
    if get_origin(base) is dict:
        return "names and values"
    if get_origin(base) is Literal:
        return " or ".join(f"`{word}`" for word in get_args(base))
    unit = next((unit for suffix, unit in _UNITS.items() if name.endswith(suffix)), "")
    edges = [f"{sign} {_number(value)}" for meta in _metas(wanted) for sign, value in _edges(meta)]
    each = "; or names and such numbers" if _may_be_named(wanted) else ""
    return f"{_WORDS[base]}{unit}{', ' if edges else ''}{', '.join(edges)}{each}"


def _may_be_named(wanted: Any) -> bool:
    """Whether a value for each of some names may stand instead of one for all."""
    union = get_args(wanted)[0] if get_origin(wanted) is Annotated else wanted
    is_union = get_origin(union) in (Union, types.UnionType)
    return is_union and any(get_origin(part) is dict for part in get_args(union))


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _edges(meta: Meta) -> Iterator[tuple[str, float]]:
    for sign, value in ((">", meta.gt), ("≥", meta.ge), ("≤", meta.le)):
        if value is not None:
            yield sign, value
