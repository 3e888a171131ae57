"""The running gateway as a whole: every group of keys is reloaded, and the end is quick."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from corral.gateway.app import App
from corral.gateway.config import NEEDS_RESTART, Config
from corral.gateway.config.sources import Sources
from corral.gateway.schedule.effects import Load, Unload
from corral.gateway.schedule.waiting import QueueLimits
from corral.model import Health, ReplicaState
from corral.probes.ollama import probe_session
from tests.gateway.serve.emulated import CHAT, emulated_ollama
from tests.probes.fake_ollama import FakeOllama, fake_ollama

PATIENCE_S = 10.0


def state(app: App) -> ReplicaState:
    return app.gateway.snapshot().replicas[0]


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[tuple[App, int]]:
    """The gateway of a file, and its admin port; stopped at the end where the test did not."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as admin:
        for each in (listener, admin):
            each.setblocking(False)
        async with probe_session() as session:
            sources = Sources(path, {})
            app = App(sources, sources.settle(), asyncio.get_running_loop(), session)
            await app.start(listener, admin)
            try:
                yield app, admin.getsockname()[1]
            finally:
                app.stop()
                await app.until_stopped(lambda requests, drain_s: None)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


def written(path: Path, ollama: FakeOllama, replica: str = "slots: 4", more: str = "") -> Path:
    url = f"http://127.0.0.1:{ollama.replica().port}"
    path.write_text(f"replicas:\n  - {{id: a, url: {url!r}, {replica}}}\n{more}")
    return path


RELOADS: dict[str, tuple[str, Callable[[App], object]]] = {
    "policy": ("{name: round-robin}", lambda app: app.gateway.snapshot().policy == "round-robin"),
    "queue": (
        "{max_requests: 7, max_wait_s: 9, order: wspt, fair: false, quantum_s: 3, age_s: 4}",
        lambda app: app.gateway.carrier.scheduler._dispatcher.limits == QueueLimits(7, 9, "wspt", False, 3, 4),
    ),
    "placement": ("{enabled: false}", lambda app: not app.gateway.carrier.scheduler._dispatcher.placer.is_enabled),
    "embeddings": ("{split: false}", lambda app: not app.gateway.splits_embeddings),
    "stores": ("{shared: {path: /models}}", lambda app: str(app._known_stores()[2].get("shared")) == "/models"),
    "timeouts": (
        "{connect_s: 1.5, head_s: 3, drain_s: 4, stall_s: 5, idle_s: 6}",
        lambda app: (
            app.gateway.pool.connect_s == 1.5
            and msgspec.structs.astuple(app.gateway.timeouts) == (1.5, 3, 4, 5, 6)
            and app._config.timeouts.drain_s == 4
        ),
    ),
    "limits": ("{max_body_bytes: 2048}", lambda app: app.gateway.limits.max_body_bytes == 2048),
    "origins": (
        "['https://chat.example']",
        lambda app: app.gateway.rules.origin_allowed(b"https://chat.example", b"127.0.0.1:11434"),
    ),
    "hosts": ("[corral.example]", lambda app: app.gateway.rules.host_allowed(b"corral.example")),
    "access_log": ("{format: text, path: /dev/null}", lambda app: len(app.gateway.listeners) == 3),
    "load_report": ("always", lambda app: app.gateway.load_report is not None),
    "discovery": (
        "{dns: {name: nodes.invalid, server: '127.0.0.1:1'}, slots: 3}",
        lambda app: app.discovery._config.slots == 3 and len(app.discovery._tasks) == 1,
    ),
}


OWNED = {"gpus", "large_models", "memory_reserve_bytes", "ollama", "warmup", "restart", "replica_logs"}
"""What concerns the Ollamas that Corral runs is reloaded end to end, in tests/e2e/test_owned.py."""


@pytest.mark.parametrize("group", RELOADS)
async def test_a_reload_applies_this_group_of_keys(group: str, tmp_path: Path) -> None:
    values, applied = RELOADS[group]
    async with fake_ollama() as ollama, serving(written(tmp_path / "corral.yaml", ollama)) as (app, _):
        assert not applied(app)
        written(tmp_path / "corral.yaml", ollama, more=f"{group}: {values}\n")
        app.reload()
        await until(lambda: applied(app))


async def test_a_reload_applies_the_keys_of_a_replica(tmp_path: Path) -> None:
    async with fake_ollama() as ollama, serving(written(tmp_path / "corral.yaml", ollama)) as (app, _):
        written(tmp_path / "corral.yaml", ollama, "slots: 2, weight: 3")
        app.reload()
        await until(lambda: (state(app).slots, state(app).weight) == (2, 3))


async def test_a_reload_applies_the_interval_of_the_probes_also_to_who_is_being_watched(tmp_path: Path) -> None:
    async with fake_ollama() as ollama:
        path = written(tmp_path / "corral.yaml", ollama, more="probes: {ollama_interval_s: 600}\n")
        async with serving(path) as (app, _):
            await until(lambda: state(app).health is Health.UP)
            asked = ollama.asked["/api/version"]
            written(path, ollama, more="probes: {ollama_interval_s: 0.05}\n")
            app.reload()
            await until(lambda: ollama.asked["/api/version"] >= asked + 5)


async def test_what_the_scheduler_wants_loaded_is_loaded_and_seen_at_once(tmp_path: Path) -> None:
    path = tmp_path / "corral.yaml"
    async with emulated_ollama() as ollama:
        url = f"http://127.0.0.1:{ollama.port}"
        path.write_text(f"replicas: [{{id: a, url: '{url}'}}]\nprobes: {{ollama_interval_s: 600}}\n")
        async with serving(path) as (app, _):
            await until(lambda: state(app).loaded == ())
            app.gateway.carrier.apply([Load(app.replicas[0], CHAT, "", 1)])
            await until(lambda: state(app).loaded == (CHAT,))
            assert app.metrics.loads == {("a", CHAT, "ok"): 1}
            app.gateway.carrier.apply([Unload(app.replicas[0], CHAT, 2)])
            await until(lambda: state(app).loaded == ())


async def test_a_load_under_way_ends_with_its_replica_and_with_the_gateway(tmp_path: Path) -> None:
    path = tmp_path / "corral.yaml"
    async with emulated_ollama(load_s=600.0) as ollama, emulated_ollama(load_s=600.0) as other:
        path.write_text(f"replicas: [{{id: a, url: 'http://127.0.0.1:{ollama.port}'}}]\n")
        async with serving(path) as (app, _):
            app.gateway.carrier.apply([Load(app.replicas[0], CHAT, "", 1)])
            await until(lambda: ollama.runners)
            path.write_text(f"replicas: [{{id: a, url: 'http://127.0.0.1:{other.port}'}}]\n")
            app.reload()
            await until(lambda: app.metrics.loads == {("a", CHAT, "failed"): 1} and not ollama.runners)
            app.gateway.carrier.apply([Load(app.replicas[0], CHAT, "", 2)])
            await until(lambda: other.runners)
        await until(lambda: not other.runners)
        assert app.metrics.loads == {("a", CHAT, "failed"): 1}


def refusals_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "reload_refused" in record.getMessage()]


async def test_a_policy_that_cannot_be_made_leaves_the_old_one_and_is_told_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mine.py").write_text("raise KeyboardInterrupt\n")
    async with fake_ollama() as ollama, serving(written(tmp_path / "corral.yaml", ollama)) as (app, _):
        more = "policy: {path: mine.py, name: Mine}\nqueue: {max_request: 3}\n"
        written(tmp_path / "corral.yaml", ollama, more=more)
        app.reload()
        await until(lambda: refusals_in(caplog))
        assert app.gateway.snapshot().policy == "weighted-least-load"
    refusals = refusals_in(caplog)
    assert len(refusals) == 1
    assert "\n" not in refusals[0]
    assert "KeyboardInterrupt" in refusals[0]
    assert "did you mean 'max_requests'" in refusals[0]


@pytest.mark.parametrize("path", ["/api/version", "/api/tags"])
async def test_pages_say_that_no_replica_serves_once_one_has_answered(path: str, tmp_path: Path) -> None:
    async with fake_ollama() as ollama, serving(written(tmp_path / "corral.yaml", ollama)) as (app, _):
        await until(lambda: state(app).health is Health.UP)
        app.gateway.set_enabled("a", False)
        assert app._server is not None
        host, port = app._server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n" % path.encode())
        answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"all are down, drained or starting" in answer
        writer.close()


async def test_a_reload_during_the_start_is_not_undone_by_it(tmp_path: Path) -> None:
    async with fake_ollama() as ollama, probe_session() as session:
        sources = Sources(written(tmp_path / "corral.yaml", ollama), {})
        app = App(sources, sources.settle(), asyncio.get_running_loop(), session)
        start, reload, reloaded = app.owner.start, app.owner.reload, asyncio.Event()

        async def slow(config: Config) -> None:
            written(tmp_path / "corral.yaml", ollama, "slots: 2")
            app.reload()
            with suppress(TimeoutError):
                await asyncio.wait_for(reloaded.wait(), 0.3)
            await start(config)

        async def noted(config: Config) -> None:
            await reload(config)
            reloaded.set()

        app.owner.start, app.owner.reload = slow, noted  # type: ignore[method-assign]
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as admin:
            for each in (listener, admin):
                each.setblocking(False)
            await app.start(listener, admin)
            await asyncio.wait_for(reloaded.wait(), PATIENCE_S)
            assert state(app).slots == 2
            app.stop()
            await app.until_stopped(lambda requests, drain_s: None)


async def test_what_is_to_be_read_again_during_the_end_is_left(tmp_path: Path) -> None:
    """What it would start, nobody would end."""
    async with fake_ollama() as ollama, serving(written(tmp_path / "corral.yaml", ollama)) as (app, _):
        end_ollamas = app.owner.close

        async def meanwhile() -> None:
            app.reload()
            await until(lambda: not app.gateway._tasks)
            await end_ollamas()

        app.owner.close = meanwhile  # type: ignore[method-assign]
        app.stop()
        await app.until_stopped(lambda requests, drain_s: None)
        assert app.metrics.reloads == {True: 0, False: 0}


def test_each_group_of_keys_has_its_reload() -> None:
    names = {field.name for field in msgspec.structs.fields(Config)}
    assert names == {*RELOADS, *NEEDS_RESTART, *OWNED, "replicas", "probes"}


async def test_an_admin_reader_that_stalls_does_not_hold_up_the_end(tmp_path: Path) -> None:
    async with fake_ollama() as ollama, serving(written(tmp_path / "corral.yaml", ollama)) as (app, admin_port):
        asked = asyncio.Event()

        def stuck() -> tuple[bool, str]:
            asked.set()
            return True, "x" * (64 << 20)  # more than any socket buffer takes

        app.gateway.ready = stuck  # type: ignore[method-assign]
        reader, writer = await asyncio.open_connection("127.0.0.1", admin_port, limit=1024)
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        async with asyncio.timeout(PATIENCE_S):
            await asked.wait()
            await reader.readuntil(b"\r\n\r\n")
        began_s = time.monotonic()
        app.stop()
        await app.until_stopped(lambda requests, drain_s: None)
        took_s = time.monotonic() - began_s
        writer.transport.abort()
        await asyncio.wait([asyncio.ensure_future(reader.read())])
    assert took_s < 5
