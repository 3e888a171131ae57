"""``GET /openapi.json`` describes every admin route, and the gateway answers as it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped, unused-ignore]
from jsonschema.exceptions import ValidationError  # type: ignore[import-untyped, unused-ignore]

from corral.gateway.serve.admin import INDEX
from corral.gateway.serve.openapi import DETAILS, EVENTS, NDJSON, TEXT, openapi_page, routes_of
from tests.gateway.serve.box import LARGE, MODEL, box
from tests.gateway.wire.harness import until

PAGE = openapi_page(INDEX, "1.2.3")
Operations = dict[tuple[str, str], dict[str, Any]]


def operations(page: dict[str, Any]) -> Operations:
    return {(method, path): each for path, methods in page["paths"].items() for method, each in methods.items()}


def answers_as_said(operation: dict[str, Any], status: int, body: object) -> None:
    """Raises ValidationError where the body has another shape."""
    said = operation["responses"].get(str(status), operation["responses"]["default"])
    (content,) = said["content"].values()
    schema = {**content["schema"], "components": PAGE["components"]}
    for each in body if isinstance(body, list) else [body]:
        Draft202012Validator(schema).validate(each)


def test_each_route_of_the_list_is_described_once_and_nothing_else_is() -> None:
    listed = {
        (method.lower(), re.sub(r"\bID\b", "{id}", path).replace("NAME", "{name}"))
        for method, path, _ in routes_of(INDEX)
    }
    assert set(operations(PAGE)) == listed
    assert {f"{method} {path}" for method, path, _ in routes_of(INDEX)} >= set(DETAILS)
    ids = [each["operationId"] for each in operations(PAGE).values()]
    assert len(set(ids)) == len(ids)


async def test_each_route_that_the_gateway_has_is_described(tmp_path: Path) -> None:
    async with box(tmp_path, MODEL) as here:
        runner = here.gateway.app._admin
        assert runner is not None
        found = {
            (route.method.lower(), re.sub(r":[^}]*\}", "}", route.resource.canonical))
            for route in runner.app.router.routes()
            if route.resource is not None and route.method != "HEAD"
        }
    files_of_the_web_page = {("get", "/static/{name}")}
    assert found - files_of_the_web_page == set(operations(PAGE))


def test_all_that_it_refers_to_is_there_and_each_schema_is_one() -> None:
    names = set(re.findall(r"#/components/schemas/(\w+)", repr(PAGE)))
    assert names <= set(PAGE["components"]["schemas"])
    for schema in PAGE["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_what_is_in_a_path_is_a_parameter() -> None:
    for (_, path), operation in operations(PAGE).items():
        inside = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
        assert inside == set(re.findall(r"\{(\w+)\}", path))


async def test_a_gateway_answers_each_page_as_it_says(tmp_path: Path) -> None:
    async with box(tmp_path, MODEL, LARGE) as here:
        await here.emulators[0].load(MODEL)
        await until(lambda: any(state.loaded for state in here.gateway.states))
        status, page = await here.ask("GET", "/openapi.json")
        assert (status, page["paths"]) == (200, PAGE["paths"])
        asked = 0
        for (method, path), operation in operations(page).items():
            (media,) = operation["responses"]["200"]["content"]
            if method != "get" or media in (TEXT, EVENTS):
                continue
            status, body = await here.ask("GET", path.replace("{id}", "r0"))
            answers_as_said(operation, status, body)
            asked += 1
        assert asked >= 8


@pytest.mark.parametrize(
    ("method", "path", "at", "body"),
    [
        ("post", "/replicas/{id}/drain", "/replicas/r1/drain", None),
        ("post", "/replicas/{id}/resume", "/replicas/r1/resume", None),
        ("post", "/replicas/{id}/drain", "/replicas/nobody/drain", None),
        ("post", "/replicas/{id}/restart", "/replicas/r1/restart", None),
        ("post", "/restart", "/restart", None),
        ("post", "/reload", "/reload", {"dry_run": True}),
        ("post", "/models/pull", "/models/pull", {"model": MODEL, "nonsense": 1}),
        ("post", "/models/gc", "/models/gc", {"yes": False}),
        ("delete", "/models/{name}", f"/models/{MODEL}", None),
        ("delete", "/models/{name}", "/models/nobody:1", None),
    ],
)
async def test_it_does_and_refuses_as_it_says(
    method: str, path: str, at: str, body: dict[str, Any] | None, tmp_path: Path
) -> None:
    operation = operations(PAGE)[method, path]
    async with box(tmp_path, MODEL) as here:
        status, answer = await here.ask(method.upper(), at, body)
        answers_as_said(operation, status, answer)
        if status >= 400:
            assert set(answer) == {"error"}
        else:
            assert (next(iter(operation["responses"]["200"]["content"])) == NDJSON) == isinstance(answer, list)


def test_another_shape_is_noticed() -> None:
    operation = operations(PAGE)["get", "/healthz"]
    with pytest.raises(ValidationError):
        answers_as_said(operation, 200, {"status": "ok", "program": "nginx", "version": "1"})
