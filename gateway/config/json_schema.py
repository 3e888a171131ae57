"""The JSON Schema of ``corral.yaml``, for editors: made of the same structs that a file is read into.

It is draft 7, which editors know best. It refuses what a single key shows to be wrong; what two keys together make
wrong, or only a policy of one's own can say, is for ``corral check-config``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
from msgspec import NODEFAULT, inspect

from corral.gateway.config.owned import GpusConfig, GroupConfig
from corral.gateway.config.patterns import ENV_NAME_PATTERN
from corral.gateway.config.policy_docs import field_docs, plain_text
from corral.gateway.config.schema import Config, PolicyConfig, ReplicaConfig
from corral.gateway.config.shown import plain
from corral.policies.catalogue import POLICIES

Schema = dict[str, Any]

_DRAFT: Final = "http://json-schema.org/draft-07/schema#"
_REF: Final = "#/definitions/{name}"
_HOST: Final = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?)"
_PORT: Final = r"0*([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_KINDS: Final[Mapping[type[inspect.Type], str]] = {
    inspect.BoolType: "boolean",
    inspect.IntType: "integer",
    inspect.FloatType: "number",
    inspect.StrType: "string",
    inspect.NoneType: "null",
}
_BOUNDS: Final = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "min_length": "minLength",
    "max_length": "maxLength",
    "pattern": "pattern",
}
_ADDRESS: Final[Schema] = {"type": "string", "pattern": f"^{_HOST}:{_PORT}$"}
_REPLICA_URL: Final[Schema] = {"type": "string", "pattern": f"^[hH][tT][tT][pP]://{_HOST}:(?!0+/?$){_PORT}/?$"}
_GPU: Final[Schema] = {
    "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^([0-9]+|(GPU|MIG)-.*)$"}]
}
_GPUS: Final[Schema] = {"anyOf": [_GPU, {"type": "array", "items": _GPU, "minItems": 1}]}
_ENV: Final[Schema] = {
    "type": "object",
    "propertyNames": {"pattern": ENV_NAME_PATTERN},
    "additionalProperties": {"type": ["string", "number", "boolean"]},
}


def schema_text() -> str:
    """As ``docs/corral.schema.json`` holds it."""
    return json.dumps(config_schema(), indent=2, ensure_ascii=False) + "\n"


def config_schema() -> Schema:
    made = {cls.__name__: _struct(cls) for cls in _structs(Config)}
    made |= {"Address": _ADDRESS, "ReplicaUrl": _REPLICA_URL, "GpusConfig": _gpus(), "PolicyConfig": _policy()}
    made[GroupConfig.__name__] = _struct(GroupConfig)
    root = _tidy(made.pop("Config") | {"description": "The configuration of Corral."})
    head = {"$schema": _DRAFT, "title": "corral.yaml"}
    return {**head, **root, "definitions": {name: _tidy(made[name]) for name in sorted(made)}}


def _structs(cls: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    yield cls
    for field in msgspec.structs.fields(cls):
        for part in _parts(field.type):
            if isinstance(part, type) and issubclass(part, msgspec.Struct):
                yield from _structs(part)


def _parts(wanted: Any) -> Iterator[Any]:
    yield wanted
    for each in get_args(wanted):
        yield from _parts(each)


def _struct(cls: type[msgspec.Struct]) -> Schema:
    """A struct, with its defaults as a file would say them."""
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    properties = {}
    for field in info.fields:
        known = _special(cls, field.name) or _value(field.type)
        if field.default not in (None, NODEFAULT) and not isinstance(field.default, msgspec.Struct):
            known["default"] = plain(field.default)
        properties[field.name] = known
    return {
        "description": cls.__doc__ or "",
        "type": "object",
        "properties": properties,
        "required": [field.name for field in info.fields if field.required],
        "additionalProperties": False,
    }


def _special(cls: type[msgspec.Struct], name: str) -> Schema | None:
    """What is written in a file otherwise than it is kept."""
    if name == "env":
        found = _ENV
    elif name == "gpus" and cls in (ReplicaConfig, GroupConfig):
        found = _GPUS
    else:
        return None
    (wanted,) = (field.type for field in msgspec.structs.fields(cls) if field.name == name)
    return found | {"description": next(part.description for part in _parts_of_meta(wanted) if part.description)}


def _parts_of_meta(wanted: Any) -> Iterator[msgspec.Meta]:
    return (each for part in _parts(wanted) for each in getattr(part, "__metadata__", ()))


def _value(info: inspect.Type) -> Schema:
    """The schema of one value."""
    match info:
        case inspect.Metadata():
            return _value(info.type) | (info.extra_json_schema or {})
        case inspect.UnionType():
            return {"anyOf": [_value(each) for each in info.types]}
        case inspect.StructType() | inspect.DataclassType():
            return {"$ref": _REF.format(name=info.cls.__name__)}
        case inspect.CustomType():
            assert info.cls is Path, info.cls
            return {"type": "string", "minLength": 1}
        case inspect.VarTupleType():
            return {"type": "array", "items": _value(info.item_type)}
        case inspect.DictType():
            return {"type": "object", "additionalProperties": _value(info.value_type)}
        case inspect.LiteralType():
            return {"enum": list(info.values)}
        case _:
            return _plain_value(info)


def _plain_value(info: inspect.Type) -> Schema:
    if isinstance(info, inspect.AnyType):
        return {}
    kind = next(word for kind, word in _KINDS.items() if isinstance(info, kind))
    bounds = {said: getattr(info, name, None) for name, said in _BOUNDS.items()}
    return {"type": kind} | {said: bound for said, bound in bounds.items() if bound is not None}


def _gpus() -> Schema:
    group = {"$ref": _REF.format(name=GroupConfig.__name__)}
    groups = {"type": "array", "items": {"anyOf": [*_GPU["anyOf"], _GPUS["anyOf"][1], group]}}
    return {"description": plain_text(GpusConfig.__doc__ or ""), "anyOf": [{"enum": ["auto", "none"]}, groups]}


def _policy() -> Schema:
    """Each policy has options of its own; those of a file or an installed package are only known when it is read."""
    properties = _struct(PolicyConfig)["properties"]
    del properties["options"]
    any_name = {key: properties["name"].pop(key) for key in ("type", "minLength", "maxLength")}
    properties["name"]["anyOf"] = [{"enum": list(POLICIES)}, any_name]
    return {
        "description": "Which policy chooses the replica. Every further key is an option of that policy.",
        "type": "object",
        "properties": properties,
        "allOf": [{"if": {"required": ["path"]}, "then": {"required": ["name"]}}, *map(_options, POLICIES)],
    }


def _options(name: str) -> Schema:
    """If it is this policy of Corral's own, its options and no others."""
    named: Schema = {"properties": {"name": {"const": name}}, "not": {"required": ["path"]}}
    if name != PolicyConfig().name:
        named["required"] = ["name"]
    return {
        "if": named,
        "then": {"properties": {"name": True, **_fields(POLICIES[name])}, "additionalProperties": False},
    }


def _fields(made: type) -> Schema:
    """The schemas of a dataclass's fields, one within another written out."""
    info = inspect.type_info(made)
    assert isinstance(info, inspect.DataclassType)
    meanings, found = field_docs(made), {}
    for field in info.fields:
        if isinstance(field.type, inspect.DataclassType):
            inner = {"type": "object", "properties": _fields(field.type.cls), "additionalProperties": False}
            found[field.name] = inner
        else:
            found[field.name] = _value(field.type) | {"default": field.default}
        found[field.name] |= {"description": meanings.get(field.name, "")}
    return found


def _tidy(made: Any) -> Any:
    """Without titles, with patterns as JavaScript writes them, and with *may be left out* said in the shortest way."""
    if isinstance(made, list):
        return [_tidy(each) for each in made]
    if not isinstance(made, dict):
        return made
    found = {key: _tidy(each) for key, each in made.items() if key != "title" or not isinstance(each, str)}
    if isinstance(found.get("pattern"), str):
        found["pattern"] = found["pattern"].replace(r"\Z", "$")
    if isinstance(found.get("description"), str):
        found["description"] = plain_text(found["description"])
    rest = [each for each in found.get("anyOf", ()) if each != {"type": "null"}]
    if len(rest) == 1:
        found = {**rest[0], **{key: each for key, each in found.items() if key != "anyOf"}}
    return found
