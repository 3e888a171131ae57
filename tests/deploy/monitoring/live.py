"""A demo that serves requests and a Prometheus that scrapes it: real programs, which end with the ``with``."""

from __future__ import annotations

import asyncio
import ctypes
import json
import re
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil
import yaml

from tests.deploy.monitoring.files import PROMETHEUS, RULES
from tests.gateway.cli.shell import environment

START_S: Final = 40.0
STOP_S: Final = 15.0
SCRAPE: Final = "200ms"
_PR_SET_PDEATHSIG: Final = 1
_libc: Final = ctypes.CDLL(None)


def until(holds: Callable[[], Any], within_s: float, what: str) -> Any:
    """Poll until there is an answer; fails where there is none in time."""
    deadline_s = time.monotonic() + within_s
    while not (found := holds()):
        assert time.monotonic() < deadline_s, f"no {what} after {within_s:g} s"
        time.sleep(0.02)
    return found


@contextmanager
def child(log: Path, *command: str) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """A program and what it has said so far; asked to end, and then made to, with all that it started."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment(), preexec_fn=_with_parent
        )
    try:
        yield process, log.read_text
        process.terminate()
        process.wait(STOP_S)
    finally:
        if process.poll() is None:
            own = psutil.Process(process.pid)
            for each in [*own.children(recursive=True), own]:
                each.kill()
            process.wait()


def _with_parent() -> None:
    """A test run that is killed leaves no child behind either."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def demo(folder: Path) -> Iterator[tuple[str, str]]:
    """The addresses of its clients and of its admin port."""
    options = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--speed", "20")
    with child(folder / "demo.log", sys.executable, "-m", "corral", "demo", *options) as (process, said):

        def card() -> re.Match[str] | None:
            assert process.poll() is None, said()
            return re.search(r"clients +(http://\S+)\n +admin +(http://[\d.:]+)", said())

        found = until(card, START_S, "card of the demo")
        yield found[1], found[2]


class Prometheus:
    """Asked through its HTTP API, as Grafana asks it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, **query: str) -> Any:
        """The data of the answer; an error of Prometheus fails with its own words."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                page = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode()}") from None
        assert page["status"] == "success", page
        assert not page.get("warnings"), page
        return page["data"]

    def now(self, query: str) -> list[Any]:
        found: list[Any] = self.ask("query", query=query)["result"]
        return found

    def lately(self, query: str) -> list[Any]:
        """Over the last seconds."""
        end_s = time.time()
        data = self.ask("query_range", query=query, start=f"{end_s - 15:.3f}", end=f"{end_s:.3f}", step="1")
        found: list[Any] = data["result"]
        return found


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """As it is delivered, but for its target and its pace."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": SCRAPE, "evaluation_interval": SCRAPE}
    config["rule_files"] = [str(path) for path in RULES]
    (job,) = config["scrape_configs"]
    job["static_configs"][0]["targets"] = [target]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    options = (f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}")
    listen = "--web.listen-address=127.0.0.1:0"
    with child(folder / "prometheus.log", "prometheus", *options, listen) as (process, said):

        def address() -> re.Match[str] | None:
            assert process.poll() is None, said()
            return re.search(r'msg="Listening on" address=(127\.0\.0\.1:\d+)', said())

        running = Prometheus(f"http://{until(address, START_S, 'listener of Prometheus')[1]}")
        until(lambda: "Server is ready" in said(), START_S, "Prometheus that is ready")
        yield running


async def play(url: str) -> None:
    """Requests of all classes and kinds, for as long as it takes until some were predicted and some went wrong."""
    async with aiohttp.ClientSession(url) as session:
        for _ in range(3):
            await asyncio.gather(
                *(_chat(session, name, words) for name in ("interactive", "normal", "batch") for words in (5, 40))
            )
        await asyncio.gather(_embed(session), _openai(session), _unknown(session), _leaves(session))
        await asyncio.gather(*(_chat(session, "normal", words, "qwen2.5:7b") for words in (5, 40, 80)))


async def _post(session: aiohttp.ClientSession, path: str, body: dict[str, Any], **headers: str) -> int:
    async with session.post(path, json=body, headers=headers) as answer:
        await answer.read()
        return answer.status


async def _chat(session: aiohttp.ClientSession, name: str, words: int, model: str = "llama3.1:8b") -> None:
    messages = [{"role": "user", "content": "Why is the sky blue? " * words}]
    body = {"model": model, "messages": messages, "options": {"num_predict": 60}}
    assert await _post(session, "/api/chat", body, **{"X-Corral-Class": name}) == 200


async def _openai(session: aiohttp.ClientSession) -> None:
    messages = [{"role": "user", "content": "Why?"}]
    body = {"model": "qwen2.5:7b", "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    assert await _post(session, "/v1/chat/completions", body) == 200


async def _embed(session: aiohttp.ClientSession) -> None:
    assert await _post(session, "/api/embed", {"model": "all-minilm", "input": ["a", "b"]}) == 200


async def _unknown(session: aiohttp.ClientSession) -> None:
    assert await _post(session, "/api/chat", {"model": "nobody-has-it", "messages": []}) == 404


async def _leaves(session: aiohttp.ClientSession) -> None:
    body = {"model": "llama3.1:8b", "prompt": "Go on for ever.", "options": {"num_predict": 2000}}
    async with session.post("/api/generate", json=body) as answer:
        await answer.content.readany()
