"""``GET /openapi.json``: the admin routes for programs, made of the list that ``GET /routes`` shows to people."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from corral.gateway.serve.openapi_schemas import SCHEMAS

INDEX: Final = """\
GET  /openapi.json             these routes in the form of OpenAPI
"""
_LINE: Final = re.compile(r"(GET|POST|DELETE|PUT) +(/\S*) +(.+)")
_NAMES: Final = MappingProxyType({"ID": "id", "NAME": "name"})
"""Parts of a path that stand for others, in the list and here."""
_MEANINGS: Final = MappingProxyType(
    {
        "id": "A replica, as `corral status` names it.",
        "name": "A model; it may contain slashes, which stay as they are.",
    }
)
JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
TEXT: Final = "text/plain"
EVENTS: Final = "text/event-stream"


class Detail(NamedTuple):
    """What the list does not say of a route."""

    answer: str = "Object"
    """The schema of its JSON, or of each line of it."""
    media: str = JSON
    status: int = 200
    query: Mapping[str, tuple[str, str]] = MappingProxyType({})
    """By name: type and meaning."""
    body: str | None = None
    """The schema of what is sent."""
    also: Mapping[int, str] = MappingProxyType({})
    """Further answers with the same schema, and what they mean."""


_COUNT: Final = {"n": ("integer", "How many of the last ones at most.")}
_REPLICA: Final = Detail("Replica")
DETAILS: Final[Mapping[str, Detail]] = MappingProxyType(
    {
        "GET /": Detail(media=TEXT),
        "GET /routes": Detail(media=TEXT),
        "GET /metrics": Detail(media=TEXT),
        "GET /healthz": Detail("Health"),
        "GET /readyz": Detail("Ready", also={503: "No replica can serve; `reason` says why."}),
        "GET /snapshot": Detail("Snapshot"),
        "GET /explain": Detail(
            "Decisions", query=_COUNT | {"id": ("string", "Only those about the request with this id.")}
        ),
        "GET /openapi.json": Detail(),
        "GET /live": Detail(
            media=EVENTS,
            query={
                "n": ("integer", "How many of the last requests and lines it begins with."),
                "every": ("number", "Seconds between two looks, from 0.5 to 60."),
            },
        ),
        "GET /requests": Detail("Requests", query=_COUNT),
        "GET /log": Detail("Log", query=_COUNT),
        "GET /config": Detail(),
        "GET /load": Detail(query={"via": ("string", "The run of the Corral that asks: what it sent is left out.")}),
        "POST /reload": Detail(
            "Object", body="Reload", also={422: "The configuration cannot be used; `error` says why."}
        ),
        "GET /replicas/ID/log": Detail(
            "ReplicaLog",
            query=_COUNT | {"follow": ("integer", "1: all lines that come, too, each as JSON.")},
        ),
        "POST /replicas/ID/drain": _REPLICA,
        "POST /replicas/ID/resume": _REPLICA,
        "POST /replicas/ID/restart": _REPLICA,
        "POST /replicas/ID/stop": _REPLICA,
        "POST /replicas/ID/start": _REPLICA,
        "POST /restart": Detail("Restarting"),
        "POST /chat": Detail(
            "Object", NDJSON, body="Object", also={502: "The client port does not answer; `error` says why."}
        ),
        "GET /models": Detail("Models"),
        "POST /models/pull": Detail(
            "Progress", NDJSON, body="Pull", also={202: "`detach` was true: it goes on, and this is all that is said."}
        ),
        "POST /models/gc": Detail("Garbage", NDJSON, body="Clean"),
        "DELETE /models/NAME": Detail("Removed"),
    }
)


def openapi_page(index: str, version: str) -> dict[str, Any]:
    """The whole description, of the lines of ``index``."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path, summary in routes_of(index):
        shown = "/".join(f"{{{_NAMES[part]}}}" if part in _NAMES else part for part in path.split("/"))
        detail = DETAILS.get(f"{method} {path}", Detail())
        paths.setdefault(shown, {})[method.lower()] = _operation(method, shown, summary, detail)
    about = "What an operator can ask of a running Corral. It answers on `admin_listen` and knows no passwords."
    return {
        "openapi": "3.1.0",
        "info": {"title": "Corral's admin port", "version": version, "description": about},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": dict(SCHEMAS)},
    }


def routes_of(index: str) -> list[tuple[str, str, str]]:
    """Method, path and meaning of each line that is a route."""
    found = (_LINE.fullmatch(line) for line in index.splitlines())
    return [(match[1], match[2], match[3].strip()) for match in found if match is not None]


def _operation(method: str, path: str, summary: str, detail: Detail) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _id(method, path),
        "summary": summary,
        "responses": {
            str(detail.status): _answer("As asked.", detail.media, detail.answer),
            **{str(status): _answer(meaning, JSON, "Object") for status, meaning in detail.also.items()},
            "default": _answer("It was not done, and `error` says why.", JSON, "Error"),
        },
    }
    parameters = [_in_path(name) for name in re.findall(r"\{(\w+)\}", path)]
    parameters += [_in_query(name, kind, meaning) for name, (kind, meaning) in detail.query.items()]
    if parameters:
        operation["parameters"] = parameters
    if detail.body is not None:
        operation["requestBody"] = {"content": {JSON: {"schema": _ref(detail.body)}}}
    return operation


def _id(method: str, path: str) -> str:
    words = [word for word in re.split(r"[^A-Za-z]+", path) if word]
    return "_".join([method.lower(), *words]) if words else f"{method.lower()}_root"


def _answer(meaning: str, media: str, schema: str) -> dict[str, Any]:
    content = {"schema": {"type": "string"} if media in (TEXT, EVENTS) else _ref(schema)}
    return {"description": meaning, "content": {media: content}}


def _ref(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}


def _in_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}, "description": _MEANINGS[name]}


def _in_query(name: str, kind: str, meaning: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": {"type": kind}, "description": meaning}
