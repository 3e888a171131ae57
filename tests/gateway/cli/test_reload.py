"""``corral reload`` and ``corral serve --watch`` as processes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.gateway.cli.shell import corral, running
from tests.gateway.cli.test_serve import urls
from tests.probes.fake_ollama import FakeOllama, fake_ollama


@pytest_asyncio.fixture
async def ollama() -> AsyncIterator[FakeOllama]:
    async with fake_ollama() as found:
        yield found


def written(folder: Path, ollama: FakeOllama, more: str = "") -> Path:
    path = folder / "corral.yaml"
    url = f"http://127.0.0.1:{ollama.replica().port}"
    text = f"listen: 127.0.0.1:0\nadmin_listen: 127.0.0.1:0\nreplicas:\n  - {{id: a, url: {url!r}}}\n{more}"
    (folder / "next").write_text(text)
    os.replace(folder / "next", path)
    return path


async def test_a_reload_prints_what_changed_and_a_refused_one_exits_78(tmp_path: Path, ollama: FakeOllama) -> None:
    path = written(tmp_path, ollama)
    async with running("serve", "--config", str(path)) as gateway:
        _, admin = await urls(gateway)
        written(tmp_path, ollama, "queue: {max_requests: 7}\n")
        checked = await corral("reload", "--check", "--admin", admin)
        assert (checked.code, checked.out) == (
            0,
            "checked: 1 value would change\n  queue.max_requests: 512 → 7\n",
        )
        done = await corral("reload", CORRAL_ADMIN=admin)
        assert (done.code, done.out) == (0, "reloaded: 1 value changed\n  queue.max_requests: 512 → 7\n")
        again = await corral("reload", "--json", "--admin", admin)
        assert json.loads(again.out) == {"schema": 1, "used": True, "changes": [], "needs_restart": []}
        written(tmp_path, ollama, "queue: {max_request: 7}\nlisten: 1\n")
        refused = await corral("reload", "--admin", admin)
        assert (refused.code, refused.out) == (78, "")
        assert f"{path}:5:9: queue.max_request: unknown key; did you mean 'max_requests'?" in refused.err
        assert f"{path}:6:1: listen: given twice" in refused.err
        assert "nothing was changed" in refused.err
        page = await corral("reload", "--json", "--check", "--admin", admin)
        assert page.code == 78
        assert [each["key"] for each in json.loads(page.out)["problems"]] == ["queue.max_request", "listen"]
        shown = await corral("config", "show", "--running", "--origin", "--changed", "--admin", admin)
        assert f"max_requests: 7                         # {path}:5" in shown.out
        gateway.process.send_signal(signal.SIGTERM)
        assert await gateway.ended() == 0


async def test_a_watched_file_is_read_again_by_itself_and_flags_stay_in_force(
    tmp_path: Path, ollama: FakeOllama
) -> None:
    path = written(tmp_path, ollama)
    flags = ("--watch", "--listen", "127.0.0.2:0", "--admin-listen", "127.0.0.1:0")
    async with running("serve", "--config", str(path), *flags, OLLAMA_NUM_PARALEL="2") as gateway:
        await gateway.until("OLLAMA_NUM_PARALEL is set, but neither Ollama nor Corral knows it; did you mean")
        client, _ = await urls(gateway)
        assert client.startswith("http://127.0.0.2:")
        written(tmp_path, ollama, "policy: {name: random}\nqueue: {max_request: 3}\n")
        await gateway.until("reload_refused")
        written(tmp_path, ollama, "policy: {name: random}\n")
        await gateway.until("reloaded changes=1")
        await gateway.until("policy: weighted-least-load → random")


async def test_without_a_gateway_a_reload_says_so() -> None:
    ended = await corral("reload", "--admin", "http://127.0.0.1:9")
    assert ended.code == 1
    assert "no gateway answers on http://127.0.0.1:9" in ended.err


async def test_an_address_that_a_variable_gave_is_told_with_it_where_it_cannot_be_used(
    tmp_path: Path, ollama: FakeOllama
) -> None:
    path = written(tmp_path, ollama)
    path.write_text(path.read_text().replace("listen: 127.0.0.1:0\n", "", 1))
    ended = await corral("serve", "--config", str(path), OLLAMA_HOST="192.0.2.1:80")
    assert ended.code == 1
    assert ended.err.startswith("error: cannot listen on 192.0.2.1:80")
    assert "  OLLAMA_HOST says to listen there; --listen or CORRAL_LISTEN goes before it\n" in ended.err


async def test_where_it_listens_comes_from_the_environment(tmp_path: Path, ollama: FakeOllama) -> None:
    path = written(tmp_path, ollama)
    path.write_text(path.read_text().partition("replicas:")[2].join(("replicas:", "")))
    environ = {"OLLAMA_HOST": "127.0.0.2:0", "CORRAL_ADMIN_LISTEN": "127.0.0.1:0"}
    async with running("serve", "--config", str(path), **environ) as gateway:
        client, admin = await urls(gateway)
        assert client.startswith("http://127.0.0.2:")
        shown = await corral("config", "show", "--running", "--origin", "--admin", admin)
        assert "# OLLAMA_HOST" in shown.out
        assert "# CORRAL_ADMIN_LISTEN" in shown.out
