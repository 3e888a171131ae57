"""The admin routes for models, of a whole gateway in front of emulators that have their stores on disk."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from corral.emulator.verify import verify_store
from corral.gateway.config.owned import StoreConfig
from corral.gateway.serve.cleaning import Place, places
from corral.model import Replica
from tests.gateway.cli.test_operations_page import first_cells
from tests.gateway.serve.box import LARGE, MODEL, OTHER, box, old_blob
from tests.gateway.wire.harness import until

# -- what there is ----------------------------------------------------------------------------------------------------


async def test_the_page_says_where_each_model_is_stored_and_in_memory(tmp_path: Path) -> None:
    async with box(tmp_path, MODEL) as here:
        before = await here.models()
        assert {name: model["copies"] for name, model in before.items()} == {MODEL: [], OTHER: []}
        await here.emulators[1].load(MODEL)
        await until(lambda: any(state.loaded for state in here.gateway.states))
        models = await here.models()
        [copy] = models[MODEL]["copies"]
        assert (copy["replica"], copy["loaded_as"], copy["pinned"], copy["in_flight"]) == ("r1", MODEL, False, 0)
        assert copy["size_bytes"] >= copy["size_vram_bytes"] > 0
        assert copy["context_length"] == 4096
        assert copy["age_s"] is not None
        assert copy["idle_s"] is None, "the gateway itself has not used it"
        [tag] = [tag for tag in (await here.emulators[0].tags()).values() if tag["name"] == MODEL]
        assert (models[MODEL]["digest"], models[MODEL]["size_bytes"]) == (tag["digest"], tag["size"])
        assert models[MODEL]["stored_at"] == ["r0", "r1"]
        assert models[MODEL]["stores"] == ["one"]
        assert models[OTHER]["kept_off"] == ["r1"]


async def test_every_key_of_the_page_is_documented(tmp_path: Path) -> None:
    async with box(tmp_path, MODEL, speed=1.0, load_s=0.05, pull_s=30) as here:
        await here.emulators[0].load(MODEL)
        await until(lambda: any(state.loaded for state in here.gateway.states))
        pulling = asyncio.create_task(here.ask("POST", "/models/pull", {"model": LARGE}))
        await until(lambda: any(pull.completed_bytes for pull in here.gateway.app.stores.pulls()))
        _, page = await here.ask("GET", "/models")
        pulling.cancel()
    keys = {"schema"} | {f"{part}[].{key}" for part in ("stores", "replicas", "pulls") for key in page[part][0]}
    keys |= {f"models[].{key}" for key in page["models"][0] if key != "copies"}
    keys |= {f"models[].copies[].{key}" for model in page["models"] for copy in model["copies"] for key in copy}
    assert {key for cell in first_cells("The models") for key in re.findall(r"`([^`]+)`", cell)} == keys


async def test_other_versions_in_other_stores_are_told_apart(tmp_path: Path) -> None:
    async with box(tmp_path, MODEL, stores=("one", "two"), registry=None) as here:
        await here.emulators[1].post("/emulator/publish", model=MODEL, version=2)
        await here.emulators[1].pull(MODEL)
        poller = here.gateway.app.poller
        await poller.refresh(tags=True, ps=False, deadline_s=5)
        model = (await here.models())[MODEL]
        assert (model["stored_at"], model["outdated_at"], model["stores"]) == (["r1"], ["r0"], ["two"])


async def test_a_model_in_memory_that_is_in_no_store_any_more_is_still_shown(tmp_path: Path) -> None:
    async with box(tmp_path, MODEL) as here:
        await here.emulators[0].load(MODEL)
        await here.emulators[1].delete(MODEL)
        poller = here.gateway.app.poller
        await poller.refresh(tags=True, ps=True, deadline_s=5)
        model = (await here.models())[MODEL]
        assert (model["digest"], model["stores"], len(model["copies"])) == (None, [], 1)


# -- pulls and removals -----------------------------------------------------------------------------------------------


async def test_a_pull_streams_its_lines_and_the_model_is_there_at_its_end(tmp_path: Path) -> None:
    async with box(tmp_path) as here:
        status, lines = await here.ask("POST", "/models/pull", {"model": MODEL})
        assert (status, lines[0], lines[-1]) == (200, {"status": "pulling manifest"}, {"status": "success"})
        assert any(line.get("total") == line.get("completed") for line in lines if "digest" in line)
        assert MODEL in await here.models()
    report = verify_store(tmp_path / "one")
    assert (report.problems, report.models) == ((), 2)


async def test_a_pull_that_fails_says_why_in_its_last_line(tmp_path: Path) -> None:
    async with box(tmp_path) as here:
        status, lines = await here.ask("POST", "/models/pull", {"model": "nobody/has-this:1b"})
        assert (status, lines[-1]) == (200, {"error": "pull model manifest: file does not exist"})


async def test_a_pull_is_shown_while_it_runs_and_goes_on_for_others_when_one_leaves(tmp_path: Path) -> None:
    async with box(tmp_path, speed=1.0, pull_s=1.5) as here:

        async def lines(session: aiohttp.ClientSession) -> list[dict[str, Any]]:
            async with session.post(f"{here.admin}/models/pull", data=json.dumps({"model": MODEL})) as answer:
                return [json.loads(line) async for line in answer.content]

        async with aiohttp.ClientSession() as leaver:
            leaving, staying = asyncio.create_task(lines(leaver)), asyncio.create_task(lines(here.session))
            await until(lambda: any(pull.completed_bytes for pull in here.gateway.app.stores.pulls()))
            [pull] = (await here.ask("GET", "/models"))[1]["pulls"]
            assert (pull["model"], pull["store"], pull["waiting"]) == (MODEL, "one", 2)
            assert 0 < pull["completed_bytes"] < pull["total_bytes"]
            leaving.cancel()
            await asyncio.wait({leaving})
        await until(lambda: [pull.waiting for pull in here.gateway.app.stores.pulls()] == [1])
        assert (await staying)[-1] == {"status": "success"}
        assert set(here.emulators[0].app.downloads.begun.values()) == {1}


async def test_the_last_one_who_leaves_ends_the_pull_and_a_detached_one_goes_on(tmp_path: Path) -> None:
    async with box(tmp_path, speed=1.0, pull_s=0.6) as here:
        pulls = here.gateway.app.stores.pulls
        asking = asyncio.create_task(here.ask("POST", "/models/pull", {"model": LARGE}))
        await until(lambda: any(pull.completed_bytes for pull in pulls()))
        asking.cancel()
        await until(lambda: not pulls())
        assert LARGE not in await here.models()
        status, page = await here.ask("POST", "/models/pull", {"model": MODEL, "detach": True})
        assert (status, page) == (202, {"schema": 1, "pulling": MODEL})
        assert [pull.waiting for pull in pulls()] == [0]
        await until(lambda: not pulls())
        assert MODEL in await here.models()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b'"x"',
        b'{"model": ',
        b'{"model": 1}',
        b'{"model": ""}',
        b'{"model": " "}',
        b"\xff",
        b"[" * 9000,
    ],
)
async def test_a_pull_of_nothing_is_refused(tmp_path: Path, body: bytes) -> None:
    async with box(tmp_path, stores=("one",)) as here:
        status, page = await here.ask("POST", "/models/pull", body)
        assert status == 400
        assert list(page) == ["error"]
        assert here.gateway.app.stores.pulls() == ()


async def test_a_removed_model_is_gone_from_the_page_at_once_and_from_every_store(tmp_path: Path) -> None:
    async with box(tmp_path, MODEL, stores=("one", "two")) as here:
        await here.emulators[0].load(MODEL)
        await until(lambda: any(state.loaded for state in here.gateway.states))
        assert await here.ask("DELETE", f"/models/{MODEL}") == (200, {"schema": 1, "removed": MODEL})
        assert list(await here.models()) == [OTHER]
        assert [list(await each.tags()) for each in here.emulators] == [[OTHER], [OTHER]]


@pytest.mark.parametrize(
    "name", ["nothing", "hf.co%2Fx%2Fy:Q4", "hf.co/x/y:Q4", "a%20b", "%C3%A4", "%2e%2e%2fetc", "x%00y"]
)
async def test_a_model_that_nobody_has_is_a_404_in_ollamas_words(tmp_path: Path, name: str) -> None:
    async with box(tmp_path, MODEL, stores=("one",)) as here:
        status, page = await here.ask("DELETE", f"/models/{name}")
        assert status in (400, 404)
        assert "error" in page
        if name == "nothing":
            assert page == {"error": "model 'nothing' not found"}
        assert set(await here.models()) == {MODEL, OTHER}


# -- garbage ----------------------------------------------------------------------------------------------------------


async def test_garbage_is_shown_and_removed_only_when_told(tmp_path: Path) -> None:
    async with box(tmp_path, MODEL) as here:
        unused, young = old_blob(tmp_path / "one"), old_blob(tmp_path / "one", "b", 100)
        [report] = await here.gc()
        assert (report["stores"], report["folder"]) == (["one"], str(tmp_path / "one"))
        assert [(one["kind"], one["name"], one["size_bytes"]) for one in report["waste"]] == [
            ("unused blob", f"blobs/{unused.name}", 1000)
        ]
        assert (report["removed"], report["problem"], report["failed"]) == (False, None, [])
        assert report["young"] == {"files": 1, "size_bytes": 1000}
        assert unused.exists()
        [report] = await here.gc(yes=True)
        assert (report["removed"], len(report["waste"])) == (True, 1)
        assert (unused.exists(), young.exists()) == (False, True)
        [report] = await here.gc(yes=True, min_age_s=60)
        assert not young.exists()
        await here.emulators[0].load(MODEL)
    assert verify_store(tmp_path / "one").problems == ()


async def test_removing_waits_for_the_pull_that_is_under_way_and_says_so(tmp_path: Path) -> None:
    async with box(tmp_path, speed=1.0, pull_s=0.8) as here:
        unused = old_blob(tmp_path / "one")
        pulling = asyncio.create_task(here.ask("POST", "/models/pull", {"model": MODEL}))
        await until(lambda: any(pull.completed_bytes for pull in here.gateway.app.stores.pulls()))
        assert len((await here.gc())[0]["waste"]) == 1, "to look at it needs no turn"
        status, steps = await here.ask("POST", "/models/gc", {"yes": True})
        assert pulling.done()
        assert [step.get("status") for step in steps] == ["waiting", "removing", None]
        assert steps[0]["pulls"] == [MODEL]
        assert (status, unused.exists()) == (200, False)
        assert (await pulling)[1][-1] == {"status": "success"}
    assert verify_store(tmp_path / "one").problems == ()


async def test_who_leaves_while_removing_waits_removes_nothing_and_blocks_nobody(tmp_path: Path) -> None:
    async with box(tmp_path, speed=1.0, pull_s=30) as here:
        unused = old_blob(tmp_path / "one")
        pulling = asyncio.create_task(here.ask("POST", "/models/pull", {"model": MODEL}))
        await until(lambda: any(pull.completed_bytes for pull in here.gateway.app.stores.pulls()))
        async with here.session.post(f"{here.admin}/models/gc", data=b'{"yes": true}') as answer:
            assert json.loads(await answer.content.readline())["status"] == "waiting"
            removing = asyncio.create_task(here.ask("DELETE", f"/models/{OTHER}"))
            await asyncio.wait({removing}, timeout=0.05)
            assert not removing.done(), "nothing overtakes it"
            answer.close()
        assert (await removing)[0] == 200
        assert not pulling.done()
        assert unused.exists()
        pulling.cancel()


async def test_a_gateway_that_stops_ends_what_waits(tmp_path: Path) -> None:
    async with box(tmp_path, speed=1.0, pull_s=30) as here:
        unused = old_blob(tmp_path / "one")
        pulling = asyncio.create_task(here.ask("POST", "/models/pull", {"model": MODEL}))
        await until(lambda: any(pull.completed_bytes for pull in here.gateway.app.stores.pulls()))
        async with here.session.post(f"{here.admin}/models/gc", data=b'{"yes": true}') as answer:
            assert json.loads(await answer.content.readline())["status"] == "waiting"
            here.gateway.gateway.drain()
            await here.gateway.app.close()
            lines = (await pulling)[1]
            assert "error" in lines[-1]
    assert unused.exists()


async def test_a_store_that_cannot_be_looked_at_is_named_with_what_to_do(tmp_path: Path) -> None:
    async with box(tmp_path, MODEL, stores=("one", "two"), named=("two",)) as here:
        unused = [old_blob(tmp_path / store) for store in ("one", "two")]
        two, one = await here.gc(yes=True)
        assert (two["stores"], len(two["waste"]), one["stores"]) == (["two"], 1, ["one"])
        assert (one["folder"], one["removed"]) == (None, False)
        assert "Corral does not run r0" in one["problem"]
        assert "stores: {one: {path: /path}}" in one["problem"]
        assert [path.exists() for path in unused] == [True, False]


async def test_nothing_is_removed_where_a_manifest_cannot_be_read(tmp_path: Path) -> None:
    async with box(tmp_path, MODEL) as here:
        unused = old_blob(tmp_path / "one")
        bad = tmp_path / "one" / "manifests" / "registry.ollama.ai" / "library" / "bad" / "latest"
        bad.parent.mkdir()
        bad.write_text('{"layers": [')
        for yes in (False, True):
            [report] = await here.gc(yes=yes)
            assert report["problem"].startswith(f"nothing is removed: {bad} is no manifest that can be read")
            assert report["waste"] == []
        assert unused.exists()


@pytest.mark.parametrize(
    "body",
    [{"yes": 1}, {"min_age_s": 59}, {"min_age_s": -1}, {"min_age_s": "1h"}, {"sure": True}, [], {"min_age_s": 1e300}],
)
async def test_a_wrong_request_for_garbage_removes_nothing(tmp_path: Path, body: object) -> None:
    async with box(tmp_path, stores=("one",)) as here:
        unused = old_blob(tmp_path / "one")
        status, page = await here.ask("POST", "/models/gc", body)
        assert status == 400
        assert list(page) == ["error"]
        assert unused.exists()


def test_the_folder_of_a_store_is_what_its_ollamas_were_given_or_what_is_configured(tmp_path: Path) -> None:
    def at(id: str, store: str) -> Replica:
        return Replica(id, "127.0.0.1", 1, store=store)

    (tmp_path / "link").symlink_to(tmp_path)
    mine = str(tmp_path)
    replicas = [
        at("gpu0", mine),
        at("gpu1", mine),
        at("a", "far"),
        at("b", "near"),
        at("c", "same"),
        at("gpu2", "shared"),
    ]
    owned = {"gpu0": mine, "gpu1": mine, "gpu2": None}
    configured = {"near": StoreConfig(path=tmp_path / "near"), "same": StoreConfig(path=tmp_path / "link")}
    found, near, far, left = places(replicas, owned, configured)
    assert found == Place((mine, "same"), tmp_path), "two names of one folder have one turn"
    assert near == Place(("near",), tmp_path / "near")
    assert (far.stores, left.stores) == (("far",), ("shared",))
    assert "Corral does not run a" in (far.problem or "")
    assert "ollama: {models: /path}" in (left.problem or "")
    other = {"gpu0": mine, "gpu1": f"{mine}/other"}
    [torn] = places([at("gpu0", "shared"), at("gpu1", "shared")], other, {})
    assert "several folders" in (torn.problem or "")


# -- who may ask ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/models"), ("POST", "/models/pull"), ("POST", "/models/gc"), ("DELETE", f"/models/{MODEL}")],
)
async def test_web_pages_reach_none_of_it(tmp_path: Path, method: str, path: str) -> None:
    async with box(tmp_path, MODEL, stores=("one",)) as here:
        body = {"model": LARGE, "yes": True}
        assert (await here.ask(method, path, body, Host="evil.example"))[0] == 403
        assert (await here.ask(method, path, body, Origin="https://evil.example"))[0] == 403
        assert set(await here.models()) == {MODEL, OTHER}
        assert here.gateway.app.stores.pulls() == ()


@pytest.mark.parametrize(("method", "path"), [("POST", "/models"), ("GET", "/models/gc"), ("PUT", f"/models/{MODEL}")])
async def test_other_methods_are_refused(tmp_path: Path, method: str, path: str) -> None:
    async with box(tmp_path, MODEL, stores=("one",)) as here:
        status, page = await here.ask(method, path)
        assert status == 405
        assert path in page["error"]
