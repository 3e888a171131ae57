"""``GET /config`` and ``POST /reload`` of a running gateway."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from corral.gateway.config import Config, ReplicaConfig, ReplicaUrl
from tests.gateway.test_app import serving, state, until, written
from tests.gateway.wire.harness import RunningGateway
from tests.probes.fake_ollama import FakeOllama, fake_ollama


async def ask(port: int, method: str, path: str, **more: Any) -> tuple[int, dict[str, Any]]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"http://127.0.0.1:{port}{path}", **more) as a,
    ):
        page: dict[str, Any] = await a.json()
        return a.status, page


def fuller(folder: Path, ollama: FakeOllama) -> Path:
    return written(folder / "corral.yaml", ollama, more="ollama: {env: {A_TOKEN: hush}}\n")


async def test_the_configuration_in_force_is_told_with_its_origins_and_without_secrets(tmp_path: Path) -> None:
    async with fake_ollama() as ollama, serving(fuller(tmp_path, ollama)) as (_, port):
        status, page = await ask(port, "GET", "/config")
    rows = {row["key"]: row for row in page["keys"]}
    path = tmp_path / "corral.yaml"
    assert (status, page["schema"], page["file"], page["needs_restart"]) == (200, 1, str(path), [])
    assert (rows["replicas[0].slots"]["value"], rows["replicas[0].slots"]["origin"]) == (4, f"{path}:2")
    assert (rows["queue.max_requests"]["value"], rows["queue.max_requests"]["from"]) == (512, "default")
    assert rows["ollama.env.A_TOKEN"]["value"] == "***"


async def test_a_reload_answers_what_changed_and_what_waits_for_a_restart(tmp_path: Path) -> None:
    async with fake_ollama() as ollama, serving(fuller(tmp_path, ollama)) as (app, port):
        written(tmp_path / "corral.yaml", ollama, "slots: 2", "listen: 127.0.0.1:5\n")
        wanted = {
            "schema": 1,
            "changes": [
                "replica a.slots: 4 → 2",
                "listen: 127.0.0.1:11434 → 127.0.0.1:5 (needs a restart)",
                "ollama.env.A_TOKEN: removed",
            ],
            "needs_restart": ["listen"],
        }
        checked = await ask(port, "POST", "/reload", json={"dry_run": True})
        assert sorted(checked[1].pop("changes")) == sorted(wanted["changes"])  # type: ignore[call-overload]
        assert checked == (200, {"schema": 1, "needs_restart": ["listen"], "used": False})
        assert state(app).slots == 4
        status, page = await ask(port, "POST", "/reload")
        assert (status, page["used"], sorted(page["changes"])) == (200, True, sorted(wanted["changes"]))  # type: ignore[call-overload]
        assert state(app).slots == 2
        assert (await ask(port, "GET", "/config"))[1]["needs_restart"] == ["listen"]
        assert app.metrics.reloads == {True: 1, False: 0}


async def test_a_refused_reload_is_422_with_the_places_and_changes_nothing(tmp_path: Path) -> None:
    async with fake_ollama() as ollama, serving(fuller(tmp_path, ollama)) as (app, port):
        path = written(tmp_path / "corral.yaml", ollama, "slots: 2", "queue: {max_request: 3}\n")
        status, page = await ask(port, "POST", "/reload", json={})
        assert (status, page["used"], page["changes"]) == (422, False, [])
        assert page["error"].startswith(f"{path}:3:9: queue.max_request: unknown key; did you mean 'max_requests'?")
        (problem,) = page["problems"]
        assert (problem["line"], problem["column"], problem["key"]) == (3, 9, "queue.max_request")
        assert state(app).slots == 4


async def test_without_a_file_a_reload_says_that_there_is_none(caplog: pytest.LogCaptureFixture) -> None:
    async with fake_ollama() as ollama:
        replica = ReplicaConfig(id="a", url=ReplicaUrl("127.0.0.1", ollama.replica().port))
        running = RunningGateway(Config(replicas=(replica,)), [])
        await running.start()
        try:
            status, page = await ask(running.admin_port, "POST", "/reload")
            assert status == 409
            assert page["error"].startswith("this gateway was started without a configuration file")
            rows = {row["key"]: row for row in (await ask(running.admin_port, "GET", "/config"))[1]["keys"]}
            assert rows["replicas[0].id"]["from"] == "command"
            running.app.watch_file()
            assert "nothing_to_watch" in caplog.text
        finally:
            await running.stop()


async def test_a_body_that_is_wrong_is_refused_and_reloads_nothing(tmp_path: Path) -> None:
    async with fake_ollama() as ollama, serving(fuller(tmp_path, ollama)) as (app, port):
        for body in (b"{", b'{"dryrun": true}', b'{"dry_run": 1}'):
            assert (await ask(port, "POST", "/reload", data=body))[0] == 400
        assert app.metrics.reloads == {True: 0, False: 0}


async def test_a_reload_goes_on_when_the_one_who_asked_for_it_leaves(tmp_path: Path) -> None:
    async with fake_ollama() as ollama, serving(fuller(tmp_path, ollama)) as (app, port):
        begun, gate = asyncio.Event(), asyncio.Event()
        carry_out = app.owner.reload

        async def slow(config: Any) -> None:
            begun.set()
            await gate.wait()
            await carry_out(config)

        app.owner.reload = slow  # type: ignore[method-assign]
        written(tmp_path / "corral.yaml", ollama, "slots: 2")
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /reload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n")
        await asyncio.wait_for(begun.wait(), 10)
        writer.transport.abort()
        gate.set()
        await until(lambda: state(app).slots == 2)


async def test_a_reload_that_the_end_breaks_off_is_503_and_no_bug(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_ollama() as ollama, serving(fuller(tmp_path, ollama)) as (app, port):
        begun = asyncio.Event()

        async def for_ever(config: Any) -> None:
            begun.set()
            await asyncio.Event().wait()

        app.owner.reload = for_ever  # type: ignore[method-assign]
        asking = asyncio.create_task(ask(port, "POST", "/reload"))
        await asyncio.wait_for(begun.wait(), 10)
        app.stop()
        await app.until_stopped(lambda requests, drain_s: None)
        assert await asking == (503, {"error": "the gateway stopped meanwhile"})
    assert "Traceback" not in caplog.text


async def test_a_web_page_cannot_reload(tmp_path: Path) -> None:
    async with fake_ollama() as ollama, serving(fuller(tmp_path, ollama)) as (app, port):
        status, _ = await ask(port, "POST", "/reload", headers={"Origin": "http://evil.example"})
        assert status == 403
        assert app.metrics.reloads == {True: 0, False: 0}
