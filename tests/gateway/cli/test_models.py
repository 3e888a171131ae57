"""``corral models`` against a gateway in front of emulators that have their stores on disk."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click import unstyle

from corral.gateway.cli import models_view
from corral.gateway.cli.entry import run
from corral.gateway.cli.figures import size, span
from corral.gateway.serve.admin import make_runner
from tests.gateway.cli.shell import CORRAL, Ended, environment
from tests.gateway.serve.box import LARGE, MODEL, OTHER, Box, box, old_blob
from tests.gateway.wire.harness import until

Models = Callable[..., Awaitable[Ended]]


@pytest.fixture
def models(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Models:
    """``await models(admin, "pull", "m")``: in this process, on a thread beside the gateway's loop."""

    async def ask(admin: str, *args: str) -> Ended:
        monkeypatch.setenv("CORRAL_ADMIN", admin)
        code = await asyncio.to_thread(run, ["models", *args])
        return Ended(code, *capsys.readouterr())

    return ask


@pytest.fixture
async def here(tmp_path: Path) -> Any:
    async with box(tmp_path, MODEL) as found:
        yield found


# -- what there is ----------------------------------------------------------------------------------------------------


async def test_the_list_has_a_line_for_each_model_and_is_what_the_bare_command_shows(here: Box, models: Models) -> None:
    await here.emulators[1].load(MODEL)
    await until(lambda: any(state.loaded for state in here.gateway.states))
    ended = await models(here.admin)
    assert (ended.code, ended.err) == (0, "")
    head, *rows = ended.out.splitlines()
    assert head.split("  ")[0] == "NAME"
    assert "STORES" not in head
    cells = {row.split()[0]: re.split(r" {2,}", row.strip()) for row in rows}
    assert cells[MODEL][2] == "810 MB"
    assert cells[MODEL][3].endswith(" ago")
    assert (cells[MODEL][4], cells[OTHER][4]) == ("1", "-")
    digests = {tag["name"]: tag["digest"][:12] for tag in (await here.emulators[0].tags()).values()}
    assert {name: row[1] for name, row in cells.items()} == digests
    assert (await models(here.admin, "list")).out.splitlines()[0] == head
    assert json.loads((await models(here.admin, "--json")).out)["schema"] == 1


async def test_place_shows_models_in_memory_first_and_where_others_could_come_from(here: Box, models: Models) -> None:
    await here.emulators[0].load(MODEL, options={"num_ctx": 8192})
    await until(lambda: any(state.loaded for state in here.gateway.states))
    ended = await models(here.admin, "place")
    assert (ended.code, ended.err) == (0, "")
    _, loaded, stored = ended.out.splitlines()
    cells = re.split(r" {2,}", loaded)
    assert (cells[:2], cells[3:5], cells[6:]) == ([MODEL, "r0"], ["8192", "0/?"], ["not yet", "stored at r1"])
    assert stored.split() == [OTHER, *"------", "stored", "at", "r0", "r1;", "kept", "off", "r1"]


def page(**more: Any) -> dict[str, Any]:
    return {"stores": [{"name": "shared", "reachable": True}], "models": [], "replicas": [], "pulls": []} | more


def model(name: str, *copies: dict[str, Any], **more: Any) -> dict[str, Any]:
    known = {"digest": "sha256:" + "ab" * 32, "size_bytes": 1_321_098_329, "modified_at": "2026-01-01T10:00:00+00:00"}
    rest = {"remote": False, "stores": ["shared"], "stored_at": ["a", "b"], "outdated_at": [], "kept_off": []}
    return {"name": name, "copies": list(copies), "pinned_at": []} | known | rest | more


def copy(replica: str, **more: Any) -> dict[str, Any]:
    sizes = {"size_bytes": 2_300_000_000, "size_vram_bytes": 2_300_000_000, "context_length": 4096}
    use = {"age_s": 700.0, "idle_s": 4.0, "in_flight": 1, "slots": 4, "pinned": False, "loaded_as": "m:latest"}
    return {"replica": replica} | sizes | use | more


def test_all_that_is_known_of_a_place_is_in_its_row() -> None:
    copies = (
        copy("a", pinned=True),
        copy("b", in_flight=0, size_vram_bytes=1_150_000_000, slots=None, loaded_as="n:1"),
    )
    gone = model("gone:1", copy("b", loaded_as="gone:1", context_length=None, idle_s=None), digest=None, stored_at=[])
    known = page(
        models=[
            model("cloud:latest", remote=True, outdated_at=["b"], stored_at=["a"]),
            model("m", *copies, stored_at=["a", "b", "c"], kept_off=["d"]),
            gone,
        ],
        replicas=[{"id": "a", "changing": "loads x:1, for 3 s"}, {"id": "b", "changing": None}],
    )
    assert unstyle(models_view.placed(known)).splitlines()[1:] == [
        "m             a        2.3 GB            4096     1/4   11 min  now       pinned; stored at c; kept off d",
        "              b        2.3 GB (50% CPU)  4096     0/?   11 min  4 s ago   as n:1",
        "gone:1        b        2.3 GB            ?        1/4   11 min  not yet   in no store",
        "cloud:latest  -        -                 -        -     -       -         stored at a; another version at b; "
        "runs in Ollama's cloud",
        "",
        "a loads x:1, for 3 s",
    ]


def test_pulls_and_stores_out_of_reach_follow_the_list() -> None:
    pull = {"model": "q:8b", "store": "x", "waiting": 2, "completed_bytes": 25, "total_bytes": 100, "for_s": 61.0}
    waits = pull | {"store": None, "completed_bytes": None, "total_bytes": None, "waiting": 0}
    stores = [{"name": "x", "reachable": True}, {"name": "y", "reachable": False}]
    known = page(models=[model("m:1", outdated_at=["b"], stores=["x"])], stores=stores, pulls=[pull, waits])
    now = datetime(2026, 1, 3, 11, tzinfo=UTC)
    assert unstyle(models_view.listed(known, now)).splitlines() == [
        "NAME  ID            SIZE    MODIFIED  IN MEMORY  STORES",
        "m:1   abababababab  1.3 GB  2 d ago   -          x (another version at b)",
        "",
        "pulling q:8b into x: 25% of 100 B, for 1 min, 2 waiting for it",
        "pulling q:8b: waits for its turn, for 1 min, nobody waiting for it",
        "no replica of the store y answers: what is in it is not shown",
    ]
    assert models_view.listed(page(), now) == "no models yet: corral models pull NAME"


def test_a_name_that_somebody_made_up_does_not_steer_the_terminal() -> None:
    bad = "\x1b]0;mine\x07"
    for text in (
        models_view.listed(page(models=[model(bad, stores=[bad])]), datetime.now(UTC)),
        models_view.placed(page(models=[model(bad, copy("a", loaded_as=bad))])),
    ):
        assert "\x1b]" not in text
        assert "?]0;mine?" in text


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "?"), (0, "0 B"), (999, "999 B"), (45_960_996, "45 MB"), (1_321_098_329, "1.3 GB"), (5e9, "5 GB")],
)
def test_sizes_are_written_as_ollama_writes_them(count: float | None, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "?"), (0.4, "0 s"), (59.9, "59 s"), (3599, "59 min"), (90_000, "1 d")]
)
def test_times_are_told_by_their_largest_unit(seconds: float | None, text: str) -> None:
    assert span(seconds) == text


# -- pull -------------------------------------------------------------------------------------------------------------


async def test_a_pull_tells_how_far_it_is_and_that_it_is_done(here: Box, models: Models) -> None:
    ended = await models(here.admin, "pull", LARGE)
    assert (ended.code, ended.out) == (0, f"pulled {LARGE}\n")
    lines = ended.err.splitlines()
    assert lines[0] == "pulling manifest"
    assert [line for line in lines if line.endswith("100% of 4.9 GB")]
    assert lines[-3:] == ["verifying sha256 digest", "writing manifest", "success"]
    assert len(lines) < 30
    assert LARGE in (await models(here.admin)).out


async def test_the_lines_of_a_pull_can_be_had_as_they_are(here: Box, models: Models) -> None:
    ended = await models(here.admin, "pull", "--json", LARGE)
    lines = [json.loads(line) for line in ended.out.splitlines()]
    assert (ended.code, ended.err, lines[-1]) == (0, "", {"status": "success"})
    assert {"digest", "total", "completed", "status"} in [set(line) for line in lines]


@pytest.mark.parametrize("more", [(), ("--detach",), ("--insecure",)])
async def test_a_pull_that_fails_says_of_what_and_why(here: Box, models: Models, more: tuple[str, ...]) -> None:
    ended = await models(here.admin, "pull", "nobody/has-this", *more)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.splitlines()[-1].endswith("pull model manifest: file does not exist")


async def test_a_detached_pull_goes_on_in_the_gateway(tmp_path: Path, models: Models) -> None:
    async with box(tmp_path, speed=1.0, pull_s=0.8) as here:
        ended = await models(here.admin, "pull", "--detach", MODEL)
        assert (ended.code, ended.err) == (0, "")
        assert ended.out == f"pulling {MODEL}; `corral models` shows how far it is\n"
        assert re.search(rf"^pulling {MODEL}: \d+% of 810 MB, for \d s, nobody", (await models(here.admin)).out, re.M)
        await until(lambda: not here.gateway.app.stores.pulls())
        assert "pulling" not in (await models(here.admin)).out


async def test_ctrl_c_leaves_the_pull_as_any_caller_does_and_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    async with box(tmp_path, speed=1.0, pull_s=30) as here:
        pulls = here.gateway.app.stores.pulls
        other = asyncio.create_task(here.ask("POST", "/models/pull", {"model": MODEL}))
        await until(lambda: any(pull.completed_bytes for pull in pulls()))
        terminal, inner = pty.openpty()
        try:
            child = await asyncio.create_subprocess_exec(
                *(*CORRAL, "models", "pull", MODEL, "--admin", here.admin),
                env=environment(COLUMNS="120"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=inner,
                stderr=inner,
            )
            os.close(inner)
            said = await _read(terminal, lambda said: re.search(rb"\d+%.* of 810 MB", said) is not None)
            assert b"pulling llama3.2:1b  [" in said
            assert [pull.waiting for pull in pulls()] == [2]
            child.send_signal(signal.SIGINT)
            said = await _read(terminal, lambda said: b"interrupted" in said)
            assert b"not waiting any more" in said
            assert await asyncio.wait_for(child.wait(), 10) == 130
        finally:
            os.close(terminal)
        await until(lambda: [pull.waiting for pull in pulls()] == [1])
        other.cancel()


async def _read(terminal: int, is_enough: Callable[[bytes], bool]) -> bytes:
    os.set_blocking(terminal, False)
    said = b""
    async with asyncio.timeout(20):
        while not is_enough(said):
            try:
                said += os.read(terminal, 65536)
            except BlockingIOError:
                await asyncio.sleep(0.01)
    return said


async def test_a_gateway_that_ends_in_the_middle_of_a_pull_is_no_success(models: Models) -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        await response.write(b'{"status":"pulling manifest"}\nno JSON\n')
        if "breaks" in (await request.json())["model"]:
            assert request.transport is not None
            request.transport.close()
        return response

    app = web.Application()
    app.router.add_post("/models/pull", half)
    runner = make_runner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    admin = f"http://127.0.0.1:{runner.addresses[0][1]}"
    for name in ("ends", "breaks"):
        ended = await models(admin, "pull", name)
        assert (ended.code, ended.out) == (1, "")
        assert ended.err.splitlines()[-1] == f"error: {name}: the gateway stopped telling before the pull had ended"
    await runner.cleanup()


# -- rm ---------------------------------------------------------------------------------------------------------------


async def test_each_removed_model_is_said_and_one_that_is_not_there_fails_alone(here: Box, models: Models) -> None:
    ended = await models(here.admin, "rm", MODEL, "nothing", "a/b:c", "..", MODEL, OTHER)
    assert ended.code == 1
    assert ended.out == f"deleted '{MODEL}'\ndeleted '{OTHER}'\n"
    lines = ended.err.splitlines()
    assert lines[0] == "error: nothing: model 'nothing' not found"
    assert [line.split(":")[1] for line in lines] == [" nothing", " a/b", " .."]
    assert await here.emulators[1].tags() == {}
    assert (await models(here.admin)).out == "no models yet: corral models pull NAME\n"


async def test_what_was_removed_can_be_had_as_json(here: Box, models: Models) -> None:
    ended = await models(here.admin, "rm", "--json", MODEL)
    assert (ended.code, json.loads(ended.out)) == (0, {"schema": 1, "removed": [MODEL], "failed": {}})


# -- gc ---------------------------------------------------------------------------------------------------------------


async def test_garbage_is_shown_with_its_sum_and_removed_with_yes(here: Box, models: Models, tmp_path: Path) -> None:
    unused, younger = old_blob(tmp_path / "one"), old_blob(tmp_path / "one", "b", 100)
    ended = await models(here.admin, "gc")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == (
        f"{tmp_path / 'one'}\n"
        "  WHAT         FREES  AGE      NAME\n"
        "  unused blob  1 KB   2 h old  blobs/sha256-aaaaaaaaaaaa\n"
        "  1 KB in 1 file; 1 more file (1 KB) not old enough\n"
        "\n"
        "`corral models gc --yes` removes it\n"
    )
    assert unused.exists()
    ended = await models(here.admin, "gc", "--yes", "--min-age", "1m")
    assert (ended.code, ended.out.splitlines()[-1]) == (0, "  2 KB freed: 2 files removed")
    assert not unused.exists()
    assert not younger.exists()
    assert (await models(here.admin, "gc")).out == f"{tmp_path / 'one'}\n  nothing to remove\n"
    assert json.loads((await models(here.admin, "gc", "--json")).out)["stores"][0]["waste"] == []


async def test_gc_says_for_what_it_waits(tmp_path: Path, models: Models) -> None:
    async with box(tmp_path, speed=1.0, pull_s=1.0) as here:
        pulling = asyncio.create_task(here.ask("POST", "/models/pull", {"model": MODEL}))
        await until(lambda: any(pull.completed_bytes for pull in here.gateway.app.stores.pulls()))
        ended = await models(here.admin, "gc", "--yes")
        assert (ended.code, ended.err) == (0, f"waiting for the pull of {MODEL} to end\n")
        await pulling


async def test_what_could_not_be_done_is_said_and_is_an_error(tmp_path: Path, models: Models) -> None:
    async with box(tmp_path, MODEL, stores=("one", "two"), named=()) as here:
        ended = await models(here.admin, "gc")
        assert ended.code == 1, "no store could be looked at"
        assert ended.out.startswith("store one\n  not looked at: Corral does not run r0; if the folder")
    async with box(tmp_path, MODEL, stores=("one", "two")) as here:
        assert (await models(here.admin, "gc")).code == 0
        (tmp_path / "one" / "manifests" / "broken").write_text("{")
        ended = await models(here.admin, "gc", "--yes")
        assert ended.code == 1
        assert f"nothing is removed: {tmp_path / 'one' / 'manifests' / 'broken'} is no manifest" in ended.out


def test_files_that_stayed_are_named_with_the_reason() -> None:
    failed = [{"file": "blobs/sha256-1", "why": "Permission denied"}]
    report = {"stores": ["a"], "folder": "/m", "waste": [], "removed": True, "young": None, "failed": failed}
    assert unstyle(models_view.garbage(report | {"problem": "it was told to stop"})).splitlines() == [
        "/m",
        "  left: blobs/sha256-1: Permission denied",
        "  stopped: it was told to stop",
        "  nothing was removed",
    ]


@pytest.mark.parametrize("age", ["5", "59s", "-1", "1w", "1.5h", "", "x", "9" * 40])
async def test_an_age_that_is_none_is_refused(models: Models, age: str) -> None:
    ended = await models("http://127.0.0.1:1", "gc", "--yes", "--min-age", age)
    assert (ended.code, ended.out) == (2, "")
    assert "write for instance 90s, 30m, 2h or 7d" in ended.err


# -- the command line -------------------------------------------------------------------------------------------------


async def test_a_mistyped_command_is_corrected_and_no_gateway_is_said(models: Models) -> None:
    ended = await models("http://127.0.0.1:1", "plase")
    assert ended.code == 2
    assert "'place'" in ended.err
    for args in ((), ("place",), ("pull", "m"), ("pull", "--detach", "m"), ("rm", "m"), ("gc",)):
        ended = await models("http://127.0.0.1:1", *args)
        assert (ended.code, ended.out) == (1, "")
        assert ended.err.startswith("error: no gateway answers on http://127.0.0.1:1 (Connection refused)\n")
