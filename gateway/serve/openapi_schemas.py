"""The shapes of the admin port's answers, as JSON Schema. New keys may come, so none is closed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from corral.model import GpuCondition, Health

Schema = Mapping[str, Any]

TEXT: Final[Schema] = {"type": "string"}
WHOLE: Final[Schema] = {"type": "integer", "minimum": 0}
NUMBER: Final[Schema] = {"type": "number"}
SECONDS: Final[Schema] = {"type": "number", "minimum": 0}
YES_NO: Final[Schema] = {"type": "boolean"}
TEXTS: Final[Schema] = {"type": "array", "items": TEXT}
COUNTS: Final[Schema] = {"type": "object", "additionalProperties": WHOLE}
VERSION: Final[Schema] = {"const": 1, "description": "Grows when a key goes or changes its meaning."}


def _maybe(schema: Schema) -> Schema:
    """Not known is null, never zero."""
    return {"oneOf": [schema, {"type": "null"}]}


def _listed(name: str) -> Schema:
    return {"type": "array", "items": _ref(name)}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(**keys: Schema) -> Schema:
    """All of these keys are there."""
    return {"type": "object", "required": list(keys), "properties": keys}


def _options(**keys: Schema) -> Schema:
    """Any of these keys, and no others: what is sent."""
    return {"type": "object", "properties": keys, "additionalProperties": False}


SCHEMAS: Final[Mapping[str, Schema]] = MappingProxyType(
    {
        "Object": {"type": "object"},
        "Error": _object(error=TEXT),
        "Health": _object(status={"const": "ok"}, program={"const": "corral"}, version=TEXT),
        "Ready": _object(ready=YES_NO, reason=TEXT),
        "Snapshot": _object(
            schema=VERSION,
            version=TEXT,
            ready=YES_NO,
            reason=TEXT,
            policy=TEXT,
            requests=_object(in_flight=WHOLE, queued=WHOLE, queued_by_model=COUNTS, oldest_wait_s=_maybe(SECONDS)),
            replicas=_listed("Replica"),
            gpus=_listed("Gpu"),
            advice=TEXTS,
        ),
        "Replica": _object(
            id=TEXT,
            health={"enum": [health.value for health in Health]},
            enabled=YES_NO,
            held=_maybe(TEXT),
            reason=TEXT,
            weight={"type": "number", "exclusiveMinimum": 0},
            slots=_maybe(WHOLE),
            in_flight=WHOLE,
            in_flight_by_model=COUNTS,
            version=_maybe(TEXT),
            installed=_maybe(TEXTS),
            loaded=_maybe(TEXTS),
            changing=_maybe(TEXT),
            sample_age_s=_maybe(SECONDS),
            models=_maybe(TEXTS),
            gpus=TEXTS,
            process=_maybe(_ref("Process")),
        ),
        "Process": _object(
            state=TEXT,
            reason=TEXT,
            for_s=SECONDS,
            pid=_maybe(WHOLE),
            port=_maybe(WHOLE),
            restarts=WHOLE,
            next_start_in_s=_maybe(SECONDS),
            adopted=YES_NO,
            log=TEXT,
        ),
        "Gpu": _object(
            gpu=TEXT,
            uuid=TEXT,
            name=TEXT,
            vendor=TEXT,
            memory_bytes=_maybe(WHOLE),
            condition={"enum": [condition.value for condition in GpuCondition]},
            reason=TEXT,
            xid=_maybe(WHOLE),
            sample_age_s=_maybe(SECONDS),
            sample=_maybe({"type": "object"}),
        ),
        "Decisions": _object(schema=VERSION, decisions=_listed("Decision")),
        "Decision": _object(
            request=_maybe(TEXT),
            age_s=SECONDS,
            model=_maybe(TEXT),
            kind=TEXT,
            waited_s=SECONDS,
            replica=TEXT,
            reason=TEXT,
            candidates={
                "type": "array",
                "items": _object(id=TEXT, weight=NUMBER, slots=_maybe(WHOLE), in_flight=WHOLE),
            },
        ),
        "Requests": _object(requests={"type": "array", "items": _object(number=WHOLE)}),
        "Log": _object(lines={"type": "array", "items": _object(number=WHOLE, at=NUMBER, level=TEXT, text=TEXT)}),
        "ReplicaLog": _object(id=TEXT, lines=TEXTS),
        "Restarting": _object(restarting=TEXTS),
        "Models": _object(
            schema=VERSION,
            stores={"type": "array", "items": _object(name=TEXT)},
            models=_listed("Model"),
            replicas={"type": "array", "items": _object(id=TEXT, changing=_maybe(TEXT))},
            pulls={"type": "array", "items": {"type": "object"}},
        ),
        "Model": _object(
            name=TEXT,
            digest=_maybe(TEXT),
            size_bytes=_maybe(WHOLE),
            stored_at=TEXTS,
            kept_off=TEXTS,
            pinned_at=TEXTS,
            copies={"type": "array", "items": _object(replica=TEXT, in_flight=WHOLE, slots=_maybe(WHOLE))},
        ),
        "Progress": {
            "type": "object",
            "description": "A line as Ollama's own pull sends it; the last one has `status` success, or `error`.",
            "properties": {"status": TEXT, "digest": TEXT, "total": WHOLE, "completed": WHOLE, "error": TEXT},
        },
        "Garbage": {
            "type": "object",
            "description": "While it waits, a line with `status`; the last one has `stores`.",
            "properties": {"status": TEXT, "stores": {"type": "array", "items": {"type": "object"}}},
        },
        "Removed": _object(schema=VERSION, removed=TEXT),
        "Pull": {**_options(model=TEXT, insecure=YES_NO, detach=YES_NO), "required": ["model"]},
        "Clean": _options(yes=YES_NO, min_age_s={"type": "number", "minimum": 60}),
        "Reload": _options(dry_run=YES_NO),
    }
)
