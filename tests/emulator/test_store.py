"""The emulated store: shared and broken-off downloads, what goes with a model and what stays, and its verification."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from corral.emulator.catalog import model_given
from corral.emulator.directory import DirectoryShelf
from corral.emulator.manifest import Entry, Recipe
from corral.emulator.store import Store
from corral.emulator.verify import verify_store
from tests.conformance.raw import Wire, ask
from tests.emulator.child import emulator
from tests.emulator.inloop import InLoop, emulated

MODEL, OTHER = "llama3.2:1b", "llama3.2:3b"
WEIGHTS = "application/vnd.ollama.image.model"


def layers(child: InLoop, model: str) -> dict[str, str]:
    """The digests of a model's layers by the last word of their kind."""
    entry = child.app.store.get(model)
    assert entry is not None
    return {layer.media_type.rpartition(".")[2]: layer.digest for layer in entry.manifest.layers}


def blobs(store: Path) -> set[str]:
    return {path.name.replace("-", ":", 1) for path in (store / "blobs").iterdir()}


def completed(lines: list[dict[str, Any]]) -> list[int]:
    """The progress of the first layer."""
    return [line.get("completed", 0) for line in lines if line.get("digest") == lines[1]["digest"]]


def downloaded(store: Path) -> int:
    """What is there of a download that is under way."""
    return sum(json.loads(path.read_bytes())["Completed"] for path in (store / "blobs").glob("*-partial-0"))


# -- downloads --------------------------------------------------------------------------------------------------------


async def test_identical_pulls_are_one_download_and_both_hear_of_it() -> None:
    async with emulated(speed=1.0, pull_s=0.3) as child:
        first, second = await asyncio.gather(child.pull(MODEL), child.pull(MODEL))
        assert set(child.app.downloads.begun.values()) == {1}
    for lines in (first, second):
        assert lines[-1] == {"status": "success"}
        assert len(completed(lines)) > 2
        assert completed(lines) == sorted(completed(lines))


async def test_a_download_goes_on_until_its_last_listener_leaves(tmp_path: Path) -> None:
    async with emulated(speed=1.0, pull_s=0.5, store=tmp_path) as child:
        leaving, staying = (asyncio.create_task(child.pull(MODEL)) for _ in range(2))
        await child.until(lambda: child.app.downloads.listeners == 2)
        leaving.cancel()
        await child.until(lambda: child.app.downloads.listeners == 1)
        assert (await staying)[-1] == {"status": "success"}
        assert set(child.app.downloads.begun.values()) == {1}
        assert child.app.store.shelf.report().problems == ()


async def test_a_pull_that_was_left_is_resumed_where_it_stopped_by_any_emulator_of_the_store(tmp_path: Path) -> None:
    async with emulated(speed=1.0, pull_s=30.0, store=tmp_path) as first:
        pull = asyncio.create_task(first.pull(MODEL))
        await first.until(lambda: downloaded(tmp_path) > 0)
        pull.cancel()
        await first.until(lambda: not first.app.connections)
        (partial,) = verify_store(tmp_path).partials
        async with emulated(id="b", pull_s=1.0, store=tmp_path) as second:
            lines = await second.pull(MODEL)
            assert second.app.downloads.begun[partial] == 1
    assert completed(lines)[0] > 0
    assert verify_store(tmp_path).problems == verify_store(tmp_path).partials == ()


def test_a_pull_whose_emulator_was_killed_is_resumed_by_another_process(tmp_path: Path) -> None:
    options = ("--store", str(tmp_path), "--pull-seconds", "5")
    with emulator(*options) as first, Wire(first.url) as wire:
        wire.send("POST", "/api/pull", {"model": MODEL})
        wire.wait_for(b"completed")
        first.process.send_signal(signal.SIGKILL)
        first.process.wait(10)
        with emulator(*options, "--speed", "20") as second:
            lines = ask(second.url, "POST", "/api/pull", {"model": MODEL}).lines()
            assert ask(second.url, "GET", "/emulator/stats").json()["races"] == 0
    assert completed(lines)[0] > 0
    assert lines[-1] == {"status": "success"}
    assert verify_store(tmp_path).problems == ()


async def test_two_emulators_at_one_blob_at_once_are_a_race(tmp_path: Path) -> None:
    async with (
        emulated(speed=1.0, pull_s=0.3, store=tmp_path) as first,
        emulated(id="b", speed=1.0, pull_s=0.3, store=tmp_path) as second,
    ):
        await asyncio.gather(first.pull(MODEL), second.pull(MODEL))
        assert first.app.store.shelf.races() >= 1
    assert any("at once" in problem for problem in verify_store(tmp_path).problems)


async def test_different_blobs_may_be_downloaded_at_once(tmp_path: Path) -> None:
    async with emulated(pull_s=1.0, store=tmp_path) as first, emulated(id="b", pull_s=1.0, store=tmp_path) as second:
        # what they share is there before
        await first.pull("llama3.1:8b")
        await asyncio.gather(first.pull(MODEL), second.pull(OTHER))
        assert first.app.store.shelf.races() == 0
    assert verify_store(tmp_path).problems == ()


async def test_a_download_that_cannot_be_written_is_an_error_and_can_be_tried_again(tmp_path: Path) -> None:
    async with emulated(store=tmp_path) as child:
        (tmp_path / "blobs").rmdir()
        (tmp_path / "blobs").write_bytes(b"")
        lines = await child.pull(MODEL)
        assert lines[-1]["error"].endswith(": not a directory")
        (tmp_path / "blobs").unlink()
        (tmp_path / "blobs").mkdir()
        assert (await child.pull(MODEL))[-1] == {"status": "success"}


# -- what goes and what stays -----------------------------------------------------------------------------------------


async def test_deleting_removes_the_layers_that_nobody_else_names(tmp_path: Path) -> None:
    async with emulated(MODEL, OTHER, store=tmp_path) as child:
        gone, kept = layers(child, MODEL), layers(child, OTHER)
        await child.post("/api/copy", source=MODEL, destination="mine")
        await child.delete(MODEL)
        assert gone["model"] in blobs(tmp_path)
        await child.delete("mine")
        assert gone["model"] not in blobs(tmp_path)
        assert set(kept.values()) < blobs(tmp_path)
        assert gone["license"] == kept["license"]
        assert child.app.store.shelf.report().unreferenced == ()
        await child.delete(OTHER)
    assert blobs(tmp_path) == set()
    assert list((tmp_path / "manifests").iterdir()) == []


@pytest.mark.parametrize("noprune", [False, True])
async def test_a_new_version_replaces_the_old_weights_unless_told_to_keep_them(noprune: bool, tmp_path: Path) -> None:
    async with emulated(MODEL, store=tmp_path, noprune=noprune) as child:
        old, before = layers(child, MODEL), (await child.tags())[MODEL]["digest"]
        assert [line["status"] for line in await child.pull(MODEL)].count("removing unused layers") == 0
        await child.post("/emulator/publish", model=MODEL, version=2)
        lines = await child.pull(MODEL)
        new = layers(child, MODEL)
        assert (await child.tags())[MODEL]["digest"] != before
        assert new["model"] != old["model"]
        assert new["license"] == old["license"]
        assert (old["model"] in blobs(tmp_path)) == noprune
        assert ({"status": "removing unused layers"} in lines) != noprune
        assert child.app.store.shelf.report().problems == ()


async def test_what_is_published_holds_for_all_emulators_of_a_store(tmp_path: Path) -> None:
    async with emulated(store=tmp_path) as first, emulated(id="b", store=tmp_path) as second:
        await first.post("/emulator/publish", model="brand-new", version=1, size_gb=0.2)
        assert (await second.pull("brand-new"))[-1] == {"status": "success"}
        assert (await first.tags())["brand-new:latest"]["size"] > 0.2e9
        before = layers(first, "brand-new")
        await second.post("/emulator/publish", model="brand-new", version=2, size_gb=0.2, same_weights=True)
        await first.pull("brand-new")
        assert layers(first, "brand-new")["model"] == before["model"]
        assert layers(first, "brand-new")["template"] != before["template"]
        await first.post("/emulator/publish", model="brand-new", version=0)
        assert (await second.pull("brand-new"))[-1] == {"error": "pull model manifest: file does not exist"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"version": 1}, "no model"),
        ({"model": "x", "version": "new"}, "publish x: Expected `int`"),
        ({"model": "x", "version": 1}, "give its size_gb"),
        ({"model": "x", "version": 1, "size_gb": -1}, "size_gb is above 0"),
    ],
)
async def test_what_cannot_be_published_is_refused_with_a_reason(fields: dict[str, Any], said: str) -> None:
    async with emulated() as child:
        status, found = await child.ask("POST", "/emulator/publish", fields)
        assert status == 400
        assert said in found["error"]


def test_at_its_start_it_removes_what_nobody_names_and_is_old(tmp_path: Path) -> None:
    old, young = (tmp_path / "blobs" / f"sha256-{digit * 64}" for digit in "ab")
    for version, kept in (("0.32.15", {young}), ("0.20.0", set())):
        old.parent.mkdir(exist_ok=True)
        for path in (old, young):
            path.write_bytes(b"x")
        os.utime(old, (1e9, 1e9))
        with emulator("--store", str(tmp_path), "--ollama-version", version, "--noprune"):
            assert old.exists()
        with emulator("--store", str(tmp_path), "--ollama-version", version):
            assert {path for path in (old, young) if path.exists()} == kept


# -- making models ----------------------------------------------------------------------------------------------------


async def test_a_model_made_from_an_alias_shares_its_weights_and_has_its_own_defaults() -> None:
    async with emulated(MODEL) as child:
        await child.post("/api/copy", source=MODEL, destination="alias")
        parameters = {"num_ctx": 2048, "temperature": 0}
        lines = await child.post(
            "/api/create", model="small", **{"from": "alias"}, parameters=parameters, system="Be brief."
        )
        assert lines[-1] == {"status": "success"}
        assert layers(child, "small")["model"] == layers(child, MODEL)["model"]
        shown = await child.post("/api/show", model="small")
        assert "num_ctx                        2048" in shown["parameters"].splitlines()
        await child.load("small")
        (loaded,) = (await child.ps()).values()
        assert (loaded["name"], loaded["context_length"]) == ("small:latest", 2048)
        # the alias asks for another context: the same runner is loaded anew, under its name
        await child.load("alias")
        (loaded,) = (await child.ps()).values()
        assert (loaded["name"], loaded["context_length"]) == ("alias:latest", 4096)
        await child.load("small", options={"num_ctx": 4096})
        await child.load(MODEL)
        assert child.app.rig.machine.loads == 2


async def test_a_parameter_of_the_wrong_type_fails_the_requests_of_its_model() -> None:
    async with emulated(MODEL) as child:
        await child.post("/api/create", model="wrong", **{"from": MODEL}, parameters={"num_ctx": "many"})
        found = await child.ask("POST", "/api/generate", {"model": "wrong", "prompt": "x"})
        assert found == (500, {"error": 'option "num_ctx" must be of type integer'})
        assert (await child.ask("POST", "/api/embed", {"model": "wrong", "input": "x"}))[0] == 500


async def test_an_adapter_is_loaded_beside_the_weights() -> None:
    async with emulated(MODEL) as child:
        digest = f"sha256:{hashlib.sha256(b'lora').hexdigest()}"
        async with child.session.post(f"{child.url}/api/blobs/{digest}", data=b"lora") as answer:
            assert answer.status == 201
        await child.post("/api/create", model="tuned", **{"from": MODEL}, adapters={"a.gguf": digest})
        for name in ("tuned", "tuned", MODEL):
            await child.load(name)
        assert child.app.rig.machine.loads == 2
        assert (
            f"ADAPTER /models/blobs/{digest.replace(':', '-')}"
            in (await child.post("/api/show", model="tuned"))["modelfile"]
        )


async def test_a_model_made_of_a_file_has_that_file_for_weights(tmp_path: Path) -> None:
    content = b"GGUF" + bytes(1000)
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    async with emulated(store=tmp_path) as child:
        async with child.session.post(f"{child.url}/api/blobs/{digest}", data=content) as answer:
            assert answer.status == 201
        await child.post("/api/create", model="own", files={"own.gguf": digest})
        assert layers(child, "own")["model"] == digest
        assert (await child.post("/api/generate", model="own", prompt="x", stream=False))["done"]
        assert child.app.store.shelf.report().problems == ()


async def test_making_a_model_from_one_that_is_not_there_pulls_it() -> None:
    async with emulated() as child:
        lines = await child.post("/api/create", model="mine", **{"from": MODEL})
        assert lines[0] == {"status": "pulling manifest"}
        assert set(await child.tags()) == {MODEL, "mine:latest"}
        lines = await child.post("/api/create", model="mine", **{"from": "no-such-model"})
        assert lines[-1] == {"error": "pull model manifest: file does not exist"}


async def test_a_name_in_another_case_is_the_same_model() -> None:
    async with emulated(MODEL) as child:
        await child.pull(MODEL.upper())
        await child.post("/api/copy", source=MODEL, destination="Mine")
        await child.post("/api/create", model="mINE", **{"from": MODEL})
        assert set(await child.tags()) == {MODEL, "Mine:latest"}


# -- runners and the store --------------------------------------------------------------------------------------------


async def test_a_runner_keeps_the_digest_it_was_loaded_from_and_outlives_its_name(tmp_path: Path) -> None:
    async with emulated(MODEL, store=tmp_path, noprune=True) as child:
        old = (await child.tags())[MODEL]["digest"]
        await child.post("/api/copy", source=MODEL, destination="old")
        await child.load(MODEL)
        await child.post("/emulator/publish", model=MODEL, version=2)
        await child.pull(MODEL)
        new = (await child.tags())[MODEL]["digest"]
        assert set(await child.ps()) == {old}
        await child.load(MODEL)
        assert set(await child.ps()) == {old, new}
        # the name stands for the new weights now
        await child.load(MODEL, keep_alive=0)
        await child.until(lambda: child.app.rig.machine.unloads == 1)
        assert set(await child.ps()) == {old}
        await child.load("old", keep_alive=0)
        await child.until(lambda: child.app.rig.machine.unloads == 2)
        assert await child.ps() == {}


async def test_deleting_does_not_unload_and_letting_go_of_nothing_is_a_404() -> None:
    async with emulated(MODEL) as child:
        await child.load(MODEL)
        await child.delete(MODEL)
        assert len(await child.ps()) == 1
        found = await child.ask("POST", "/api/generate", {"model": MODEL, "keep_alive": 0})
        assert found == (404, {"error": f"model '{MODEL}' not found"})


async def test_weights_that_are_gone_cannot_be_loaded(tmp_path: Path) -> None:
    async with emulated(MODEL, store=tmp_path) as child:
        await child.load(MODEL)
        path = Path(child.app.store.shelf.blob_path(layers(child, MODEL)["model"]))
        path.unlink()
        await child.load(MODEL)
        await child.load(MODEL, keep_alive=0)
        await child.until(lambda: child.app.rig.machine.unloads == 1)
        status, found = await child.ask("POST", "/api/generate", {"model": MODEL})
        assert (status, found) == (500, {"error": f"stat {path}: no such file or directory"})


def test_a_list_is_complete_while_another_process_makes_and_removes_a_namespace(tmp_path: Path) -> None:
    folder, stop = tmp_path / "manifests" / "registry.ollama.ai" / "other" / "passing", threading.Event()

    def make_and_remove() -> None:
        while not stop.is_set():
            folder.mkdir(parents=True, exist_ok=True)
            folder.rmdir()
            folder.parent.rmdir()

    shelf = DirectoryShelf(tmp_path, "a")
    Store(shelf).install(MODEL, Recipe(model_given(MODEL)), 1.0)
    other = threading.Thread(target=make_and_remove)
    other.start()
    try:
        assert {len(shelf.entries()) for _ in range(2000)} == {1}
    finally:
        stop.set()
        other.join()


async def test_a_request_that_meets_a_bug_breaks_its_connection_and_does_not_hang(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> list[Entry]:
        raise RuntimeError("a bug")

    async with emulated(MODEL) as child, asyncio.timeout(5):
        monkeypatch.setattr(child.app.store.shelf, "entries", fail)
        with pytest.raises(aiohttp.ClientConnectionError):
            await child.tags()
    assert "GET /api/tags: RuntimeError('a bug')" in capsys.readouterr().err


# -- verification -----------------------------------------------------------------------------------------------------


async def test_verification_names_what_is_wrong_with_a_store(tmp_path: Path) -> None:
    async with emulated(MODEL, OTHER, store=tmp_path) as child:
        _, found = await child.ask("GET", "/emulator/verify")
        assert (found["models"], found["problems"], found["unreferenced"], found["partials"]) == (2, [], [], [])
        digest = layers(child, MODEL)["model"]
        path = Path(child.app.store.shelf.blob_path(digest))
    path.write_bytes(b"something else")
    assert verify_store(tmp_path).problems == (f"{digest} holds something else",)
    path.rename(path.with_name(f"{path.name}-partial"))
    missing, left = verify_store(tmp_path).problems
    assert missing.endswith(f"llama3.2/1b: its layer {digest} is missing")
    assert left == f"{digest} is named by a manifest, and a download of it is left over"
    (tmp_path / "manifests" / "registry.ollama.ai" / "library" / "llama3.2" / "1b").write_bytes(b'{"schema')
    assert "llama3.2/1b: cannot be read" in verify_store(tmp_path).problems[0]
    assert len(verify_store(tmp_path).unreferenced) == 1
