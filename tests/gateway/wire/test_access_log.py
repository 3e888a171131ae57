"""One line for each request that is over, whatever became of it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shlex
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from corral.gateway.config.telling import AccessLogConfig
from corral.gateway.ended import Attempt, Ended
from corral.gateway.serve import access_log as module
from corral.gateway.serve.access_log import AccessLog, json_line, text_line
from corral.gateway.trace import Trace
from corral.gateway.wire.client import State
from corral.model import Figures
from tests.gateway.wire.conftest import Start
from tests.gateway.wire.harness import CHAT, CHAT_WHOLE, RunningGateway, post, until
from tests.gateway.wire.replica import MODEL, Call

ENDED = Ended(
    id="run-1",
    at=1_764_072_000.5,
    kind="chat",
    method="POST",
    path="/api/chat",
    outcome="ok",
    status=200,
    model=MODEL,
    tenant="key:0123456789ab",
    rank=2,
    replica="r0",
    reason="least load",
    failed=(Attempt("r1", "reset", 0.0, 0.1),),
    queue_s=0.25,
    first_byte_s=0.5,
    total_s=1.0,
    request_bytes=99,
    figures=Figures(prompt_tokens=26, output_tokens=40),
    attempts=2,
)


def fields(line: bytes) -> dict[str, str]:
    """As a reader of the text takes it apart."""
    return dict(part.split("=", 1) for part in shlex.split(line.decode())[2:])


def test_text_and_json_have_the_same_names_in_the_same_order() -> None:
    assert list(json.loads(json_line(ENDED)))[1:-1] == list(fields(text_line(ENDED)))


def test_a_line_says_what_became_of_a_request() -> None:
    assert text_line(ENDED).decode() == (
        "2025-11-25T12:00:01.500Z request id=run-1 tenant=key:0123456789ab class=batch method=POST path=/api/chat "
        f'kind=chat model={MODEL} status=200 outcome=ok replica=r0 reason="least load" attempts=2 queue_s=0.250 '
        "first_byte_s=0.500 total_s=1.000 prompt_tokens=26 output_tokens=40 request_bytes=99\n"
    )
    said = json.loads(json_line(ENDED))
    assert (said["time"], said["class"], said["prompt_tokens"]) == ("2025-11-25T12:00:01.500Z", "batch", 26)
    assert said["trace_id"] is None


def test_a_traced_request_says_its_trace() -> None:
    traced = Ended(id="x", at=0.0, kind="tags", method="GET", path="/", outcome="ok", trace=Trace("ab", "c", (), True))
    assert fields(text_line(traced))["trace_id"] == json.loads(json_line(traced))["trace_id"] == "ab"


def test_what_is_not_known_is_said_so() -> None:
    said = fields(text_line(Ended(id="-", at=0.0, kind="bad_request", method="-", path="-", outcome="error_4xx")))
    assert {said[name] for name in ("model", "status", "replica", "reason", "first_byte_s", "output_tokens")} == {"-"}


HOSTILE = [
    "/a\nrequest id=forged",
    "/a\r\n2025-11-25T12:00:00.000Z request id=forged",
    '/"\\" outcome=ok "',
    "/\x1b[2J\x1b[31m",
    "/\x9b31m",
    "/\x7f\b\b",
    "/\u2028\u2029\u0085",
    "/\u202egnp.exe",
    "/name=value other=1",
    "/\ud800",
    "/" + "x" * 100_000,
    "/" + "\x00" * 1000,
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("shaped", [text_line, json_line])
def test_no_client_forges_a_line_or_speaks_to_the_terminal(shaped: Callable[[Ended], bytes], text: str) -> None:
    line = shaped(
        Ended(id="run-1", at=0.0, kind="other", method="GET", path=text, outcome="ok", model=text, tenant="10.0.0.1")
    )
    assert re.fullmatch(rb"[\x20-\x7e]+\n", line)
    assert len(line) < 6_000
    if shaped is json_line:
        said = json.loads(line)
        assert said["path"] == said["model"] == (text if len(text) <= 256 else text[:256] + "…")
        assert said["outcome"] == "ok"
    else:
        assert line.count(b" request id=run-1 tenant=10.0.0.1 class=normal ") == 1
        quoted = rb'(?:[A-Za-z0-9._:/@+,%~-]+|"(?:[^"\\]|\\.)*")'
        assert re.fullmatch(rb"\S+ request(?: [a-z0-9_]+=" + quoted + rb")+\n", line)


# ---- through the gateway


class Log:
    """The file of a gateway's access log."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = f"access_log: {{format: json, path: {path}}}\n"

    def lines(self) -> list[dict[str, Any]]:
        text = self.path.read_text() if self.path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    async def after(self, gateway: RunningGateway) -> list[dict[str, Any]]:
        """All lines, those included that are still to be written."""
        await gateway.app.tellers.close()
        return self.lines()


@pytest.fixture
def kept(tmp_path: Path) -> Log:
    return Log(tmp_path / "access.log")


Deed = Callable[[RunningGateway], Awaitable[object]]


async def ask(gateway: RunningGateway) -> None:
    await gateway.ask(post("/api/chat?key=hush", CHAT, "Authorization: Bearer sk-hush", "X-Corral-Class: interactive"))


async def ask_page(gateway: RunningGateway) -> None:
    await gateway.ask(b"GET /api/tags HTTP/1.1\r\nHost: localhost\r\n\r\n")


async def ask_nonsense(gateway: RunningGateway) -> None:
    await gateway.ask(b"hush\r\n\r\n")


async def ask_from_a_foreign_page(gateway: RunningGateway) -> None:
    await gateway.ask(b"GET /api/tags HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\n\r\n")


async def ask_too_much(gateway: RunningGateway) -> None:
    await gateway.ask(post("/api/chat", CHAT).replace(b"Content-Length: ", b"Content-Length: 999999999"))


async def be_refused(gateway: RunningGateway) -> None:
    gateway.gateway.set_enabled("r0", False)
    await gateway.ask(post("/api/chat", CHAT))


async def leave(gateway: RunningGateway) -> None:
    async def wait(call: Call) -> None:
        await call.gone()

    gateway.replicas[0].answer = wait
    client = await gateway.connect()
    await client.send(post("/api/chat", CHAT))
    await until(lambda: gateway.replicas[0].calls)
    client.reset()
    await until(lambda: not gateway.gateway.connections)


async def leave_amid_the_body(gateway: RunningGateway) -> None:
    client = await gateway.connect()
    await client.send(post("/api/chat", CHAT)[:-5])
    await until(lambda: any(each.state is State.BODY for each in gateway.gateway.connections))
    client.reset()
    await until(lambda: not gateway.gateway.connections)


async def see_it_break(gateway: RunningGateway) -> None:
    async def break_off(call: Call) -> None:
        await call.start_stream()
        await call.line_of(message={"role": "assistant", "content": "hel"}, done=False)
        call.reset()

    gateway.replicas[0].answer = break_off
    await gateway.ask(post("/api/chat", CHAT))


async def upload_nonsense(gateway: RunningGateway) -> None:
    """The body turns out to be malformed when the request is already on its way."""
    client = await gateway.connect()
    digest = "sha256:" + "0" * 64
    head = f"POST /api/blobs/{digest} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    await client.send(head.encode() + b"5\r\nhello\r\nnonsense\r\n")
    await client.rest()


DEEDS: dict[str, tuple[Deed, dict[str, Any]]] = {
    "answered": (ask, {"outcome": "ok", "status": 200, "replica": "r0", "attempts": 1, "output_tokens": 2}),
    "page": (ask_page, {"outcome": "ok", "status": 200, "kind": "tags", "replica": None, "attempts": 0}),
    "nonsense": (ask_nonsense, {"outcome": "error_4xx", "status": 400, "kind": "bad_request"}),
    "foreign page": (ask_from_a_foreign_page, {"outcome": "error_4xx", "status": 403}),
    "too much": (ask_too_much, {"outcome": "error_4xx", "status": 413, "path": "/api/chat"}),
    "refused": (be_refused, {"status": 503, "replica": None, "attempts": 0}),
    "left": (leave, {"outcome": "client_gone", "status": None, "attempts": 1}),
    "left amid the body": (leave_amid_the_body, {"outcome": "client_gone", "status": None, "path": "/api/chat"}),
    "broken": (see_it_break, {"outcome": "broken", "status": 200}),
    "malformed upload": (upload_nonsense, {"outcome": "error_4xx", "status": 400}),
}


@pytest.mark.parametrize("deed", DEEDS)
async def test_every_request_is_one_line_whatever_becomes_of_it(start: Start, kept: Log, deed: str) -> None:
    do, wanted = DEEDS[deed]
    gateway = await start(1, kept.config)
    await do(gateway)
    lines = await kept.after(gateway)
    assert len(lines) == 1
    assert {name: lines[0][name] for name in wanted} == wanted
    assert "hush" not in kept.path.read_text()
    assert not any(word in kept.path.read_text() for word in ("messages", '"hi"', "content"))


async def test_requests_on_one_connection_are_lines_in_the_order_of_their_ends(start: Start, kept: Log) -> None:
    gateway = await start(1, kept.config)
    client = await gateway.connect()
    ids = [f"mine-{number}" for number in range(20)]
    await client.send(b"".join(post("/api/chat", CHAT_WHOLE, f"X-Request-Id: {each}") for each in ids))
    for _ in ids:
        assert (await client.answer())[0] == 200
    assert [line["id"] for line in await kept.after(gateway)] == ids


async def test_a_failed_attempt_is_counted(start: Start, kept: Log) -> None:
    async def reset(call: Call) -> None:
        call.reset()

    gateway = await start(2, kept.config)
    gateway.replicas[0].answer = reset
    while not gateway.replicas[0].calls:
        await gateway.ask(post("/api/chat", CHAT_WHOLE))
    last = (await kept.after(gateway))[-1]
    assert (last["attempts"], last["replica"], last["status"]) == (2, "r1", 200)


async def test_nobody_answered_what_every_replica_failed(start: Start, kept: Log) -> None:
    async def reset(call: Call) -> None:
        call.reset()

    gateway = await start(2, kept.config)
    for replica in gateway.replicas:
        replica.answer = reset
    assert (await gateway.ask(post("/api/chat", CHAT_WHOLE)))[0] == 502
    (line,) = await kept.after(gateway)
    assert (line["attempts"], line["replica"], line["outcome"]) == (2, None, "refused_exhausted")


async def test_lines_are_written_soon_without_an_end(start: Start, kept: Log) -> None:
    gateway = await start(1, kept.config)
    await gateway.ask(post("/api/chat", CHAT_WHOLE))
    await until(kept.lines)


async def test_off_it_is_no_listener(start: Start) -> None:
    gateway = await start(1)
    usual = len(gateway.gateway.listeners)
    gateway.app.tellers.use(gateway.config)
    assert len(gateway.gateway.listeners) == usual == 2


async def test_lines_go_to_stderr_where_no_file_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    listeners: list[Any] = []
    access_log = AccessLog(listeners, asyncio.get_running_loop())
    access_log.use(AccessLogConfig(format="text"))
    listeners[0](ENDED)
    await access_log.close()
    assert "request id=run-1" in capfd.readouterr().err


async def test_another_format_or_file_is_used_at_once_and_no_line_is_lost(tmp_path: Path) -> None:
    listeners: list[Any] = []
    access_log = AccessLog(listeners, asyncio.get_running_loop())
    for number, shape in enumerate(("text", "json", "off")):
        access_log.use(AccessLogConfig(format=shape, path=tmp_path / f"{number}.log"))  # type: ignore[arg-type]
        for listener in listeners:
            listener(ENDED)
    await access_log.close()
    assert (tmp_path / "0.log").read_bytes() == text_line(ENDED)
    assert (tmp_path / "1.log").read_bytes() == json_line(ENDED)
    assert not (tmp_path / "2.log").exists()
    assert listeners == []


async def test_a_reload_opens_the_file_anew_with_nothing_to_write(tmp_path: Path) -> None:
    access_log = AccessLog([], asyncio.get_running_loop())
    config = AccessLogConfig(format="text", path=tmp_path / "access.log")
    access_log.use(config)
    assert not (tmp_path / "access.log").exists()
    access_log.use(config)
    await until((tmp_path / "access.log").exists)
    await access_log.close()


async def test_a_vanished_folder_harms_no_request_and_is_said_once(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = Log(folder / "access.log")
    gateway = await start(1, log.config)
    await gateway.ask(post("/api/chat", CHAT_WHOLE))
    await until(log.lines)
    log.path.unlink()
    folder.rmdir()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert (await gateway.ask(post("/api/chat", CHAT_WHOLE)))[0] == 200
            await until(lambda: "access_log_failed" in caplog.text)
        folder.mkdir()
        assert (await gateway.ask(post("/api/chat", CHAT_WHOLE)))[0] == 200
        gateway.app.tellers.use(gateway.config)  # as SIGHUP does: no need to wait for the next try
        await until(log.path.exists)
    failed = [record for record in caplog.records if "access_log_failed" in record.message]
    assert len(failed) == 1
    assert "No such file or directory" in failed[0].message


async def test_a_disk_that_takes_nothing_does_not_hold_the_end(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LAST_LINES_S", 0.05)
    path = tmp_path / "pipe"
    os.mkfifo(path)  # opening it waits for a reader, which never comes
    gateway = await start(1, f"access_log: {{format: text, path: {path}}}\n")
    for _ in range(3):
        assert (await gateway.ask(post("/api/chat", CHAT_WHOLE)))[0] == 200
    async with asyncio.timeout(1):
        await gateway.app.tellers.close()
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))  # lets the thread go
