"""What a proxy in front is told of the load, as Envoy reads it."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest

from corral.gateway.ended import Ended
from corral.gateway.serve.orca import KEPT_S, Load, LoadReport, as_binary, as_json, as_text, load_of
from corral.model import Health, ReplicaState, Snapshot
from tests.gateway.wire.conftest import Start
from tests.gateway.wire.harness import CHAT, CHAT_WHOLE, post, until
from tests.gateway.wire.replica import MODEL, Call

LOAD = Load(0.625, 3.2, 0.0, {"queue_seconds": 0.125, "slots": 8.0})
HEADER = "endpoint-load-metrics"


def state(id: str, running: int = 0, slots: int | None = 4, **more: Any) -> ReplicaState:
    said: dict[str, Any] = {"health": Health.UP, "enabled": True, "held": None, **more}
    return ReplicaState(
        id=id,
        weight=1.0,
        slots=slots,
        reason="",
        inflight=running,
        inflight_by_model={MODEL: running} if running else {},
        version=None,
        installed=None,
        loaded=None,
        sample_age_s=None,
        **said,
    )


def snapshot(*replicas: ReplicaState, queued: int = 0, oldest_s: float | None = None) -> Snapshot:
    running = sum(replica.inflight for replica in replicas)
    return Snapshot(0.0, "p", replicas, queued, {}, oldest_s, running)


def parsed(line: str) -> dict[str, float]:
    """As Envoy reads TEXT: names it does not know, a name twice and what is no number make it drop the whole."""
    assert line.startswith("TEXT ")
    known = {"application_utilization", "rps_fractional", "eps"}
    found: dict[str, float] = {}
    for part in line[5:].split(","):
        name, value = part.strip().split("=")
        assert name in known or name.startswith("named_metrics.")
        assert name not in found
        found[name] = float(value)
    return found


def test_the_three_formats_say_the_same() -> None:
    said = {"application_utilization": 0.625, "rps_fractional": 3.2, "eps": 0.0}
    named = {"queue_seconds": 0.125, "slots": 8.0}
    flat = {**said, **{f"named_metrics.{name}": value for name, value in named.items()}}
    assert parsed(f"TEXT {as_text(LOAD).decode()}") == flat
    assert json.loads(as_json(LOAD)) == {**said, "named_metrics": named}
    assert message(as_binary(LOAD)) == {**said, "named_metrics": named}


def message(text: bytes) -> dict[str, Any]:
    """The report as protobuf itself reads it, by the numbers and types of ``orca_load_report.proto``."""
    descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
    descriptor_pool = pytest.importorskip("google.protobuf.descriptor_pool")
    message_factory = pytest.importorskip("google.protobuf.message_factory")
    file = descriptor_pb2.FileDescriptorProto(name="orca.proto", package="orca", syntax="proto3")
    report = file.message_type.add(name="Report")
    entry = report.nested_type.add(name="NamedMetricsEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=9, label=1)
    entry.field.add(name="value", number=2, type=1, label=1)
    for name, number in (("rps_fractional", 6), ("eps", 7), ("application_utilization", 9)):
        report.field.add(name=name, number=number, type=1, label=1)
    report.field.add(name="named_metrics", number=8, type=11, label=3, type_name=".orca.Report.NamedMetricsEntry")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = message_factory.GetMessageClass(pool.FindMessageTypeByName("orca.Report")).FromString(
        base64.b64decode(text, validate=True)
    )
    names = ("application_utilization", "rps_fractional", "eps")
    return {**{name: getattr(found, name) for name in names}, "named_metrics": dict(found.named_metrics)}


@pytest.mark.parametrize(
    ("now", "utilization"),
    [
        (snapshot(state("a")), 0.0),
        (snapshot(state("a", 1), state("b", 4)), 0.625),
        (snapshot(state("a", 4), state("b", 4), queued=4), 1.5),
        (snapshot(state("a", 1, slots=None)), 1.0),
        (snapshot(state("a", 4), state("b", 0, enabled=False), state("c", health=Health.DOWN)), 1.0),
        (snapshot(state("a", held="starting")), 1.0),
        (snapshot(), 1.0),
    ],
)
def test_the_utilization_is_the_busy_share_of_usable_slots_and_the_queue_on_top(
    now: Snapshot, utilization: float
) -> None:
    assert load_of(now, 0.0, 0.0, 0.0).utilization == pytest.approx(utilization)


class Told:
    """A report, its clock, and how often it was worked out."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.looks = 0
        self.listeners: list[Any] = []
        self.report = LoadReport(self.look, self.listeners, lambda: self.now_s)

    def look(self) -> Snapshot:
        self.looks += 1
        return snapshot(state("a", 1), oldest_s=0.5)

    def end(self, outcome: str = "ok", queue_s: float = 0.0, *, is_page: bool = False) -> None:
        ended = Ended(
            id="x", at=0.0, kind="chat", method="POST", path="/", outcome=outcome, queue_s=queue_s, is_page=is_page
        )
        for listener in self.listeners:
            listener(ended)

    def values(self) -> dict[str, float]:
        name, _, value = self.report.line(b"").decode().partition(": ")
        assert name == HEADER
        return parsed(value.removesuffix("\r\n"))


def test_it_is_worked_out_a_few_times_a_second_at_most() -> None:
    told = Told()
    told.report.use("always")
    for _ in range(10):
        told.report.line(b"")
        told.report.line(b"endpoint-load-metrics-format: JSON\r\n")
    assert told.looks == 1
    told.now_s += KEPT_S
    told.report.line(b"")
    assert told.looks == 2


def test_rates_and_waits_are_of_the_last_seconds() -> None:
    told = Told()
    told.report.use("always")
    told.now_s += 10
    for outcome in ("ok", "ok", "error_5xx", "refused_busy", "broken", "error_4xx", "client_gone", "ok"):
        told.end(outcome, queue_s=0.5)
    told.end(is_page=True)
    values = told.values()
    assert (values["rps_fractional"], values["eps"]) == pytest.approx((0.8, 0.3))
    assert values["named_metrics.queue_seconds"] == pytest.approx(0.5)
    assert values["named_metrics.oldest_wait_seconds"] == 0.5
    told.now_s += 11
    assert told.values()["rps_fractional"] == 0.0


def test_just_after_the_start_rates_are_of_the_time_since() -> None:
    told = Told()
    told.report.use("always")
    told.now_s += 2
    for _ in range(8):
        told.end()
    assert told.values()["rps_fractional"] == pytest.approx(4.0)


def test_off_nobody_is_heard() -> None:
    told = Told()
    assert told.report.use("off") is None
    assert told.listeners == []
    told.report.use("asked")
    assert len(told.listeners) == 1
    told.report.use("always")
    assert len(told.listeners) == 1
    assert told.report.use("off") is None
    assert told.listeners == []


# ---- through the gateway

ASK = "Endpoint-Load-Metrics-Format: "


async def test_only_who_asks_is_told_where_it_is_to_be_so(start: Start) -> None:
    gateway = await start(1, "load_report: asked\n")
    _, headers, _ = await gateway.ask(post("/api/chat", CHAT))
    assert HEADER not in headers
    for format in ("TEXT", "json", "Bin"):
        _, headers, _ = await gateway.ask(post("/api/chat", CHAT, f"{ASK}{format}"))
        assert headers[HEADER].startswith(f"{format.upper()} ")
    _, headers, _ = await gateway.ask(post("/api/chat", CHAT, f"{ASK}XML"))
    assert HEADER not in headers


async def test_everybody_is_told_where_it_is_to_be_so_pages_and_refusals_too(start: Start) -> None:
    gateway = await start(1, "load_report: always\n")
    _, headers, _ = await gateway.ask(post("/api/chat", CHAT_WHOLE))
    assert parsed(headers[HEADER])["named_metrics.slots"] == 4
    _, headers, _ = await gateway.ask(b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert parsed(headers[HEADER])
    gateway.gateway.set_enabled("r0", False)
    async with asyncio.timeout(KEPT_S + 5):  # what was told before is told for a while
        while parsed(headers[HEADER])["application_utilization"] < 1:
            status, headers, _ = await gateway.ask(post("/api/chat", CHAT))
            assert status == 503


async def test_off_there_is_no_such_header_and_a_replicas_own_is_not_passed_on(start: Start) -> None:
    async def tell(call: Call) -> None:
        await call.write(
            b"HTTP/1.1 200 OK\r\nendpoint-load-metrics: TEXT cpu_utilization=0.1\r\nContent-Length: 2\r\n\r\n{}"
        )

    gateway = await start(1)
    gateway.replicas[0].answer = tell
    _, headers, _ = await gateway.ask(post("/api/chat", CHAT, f"{ASK}TEXT"))
    assert HEADER not in headers


async def test_a_busy_gateway_says_so(start: Start) -> None:
    release = asyncio.Event()

    async def wait(call: Call) -> None:
        await release.wait()
        await call.json({"done": True})

    gateway = await start(1, "load_report: always\n", slots=2)
    gateway.replicas[0].answer = wait
    waiting = [asyncio.create_task(gateway.ask(post("/api/chat", CHAT_WHOLE))) for _ in range(3)]
    await until(lambda: gateway.scheduler.inflight == 2 and gateway.scheduler.queued == 1)
    _, headers, _ = await gateway.ask(b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n")
    said = parsed(headers[HEADER])
    assert (said["application_utilization"], said["named_metrics.requests_waiting"]) == (1.5, 1)
    release.set()
    await asyncio.gather(*waiting)
