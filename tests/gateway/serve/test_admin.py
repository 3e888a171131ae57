"""The admin port over real sockets."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from corral.errors import CorralError
from corral.gateway.serve.admin import make_admin, make_runner
from corral.model import Choice, Order, ReplicaState, Snapshot
from tests.gateway.serve import history


class Gateway:
    """A gateway as far as the admin port sees one."""

    version = "1.2.3"

    def __init__(self) -> None:
        self.state = history.snapshot()
        self.choices = history.choices()
        self.readiness = (True, "2 of 3 replicas can serve")
        self.broken = False
        self.ordered: list[str] = []
        self.hosts: Collection[str] = ()

    def snapshot(self) -> Snapshot:
        if self.broken:
            raise ZeroDivisionError("secret detail")
        return self.state

    summary = snapshot

    def explain(self) -> tuple[Choice, ...]:
        return self.choices

    def ready(self) -> tuple[bool, str]:
        return self.readiness

    def set_enabled(self, replica_id: str, enabled: bool) -> None:
        if replica_id not in [one.id for one in self.state.replicas]:
            raise CorralError(f"unknown replica {replica_id}")
        self.state = replace(
            self.state, replicas=tuple(self._set(one, replica_id, enabled) for one in self.state.replicas)
        )

    def order(self, order: Order, replica_id: str) -> None:
        if replica_id not in [one.id for one in self.state.processes]:
            raise CorralError(f"{replica_id} is not run by Corral")
        self.ordered.append(f"{order.value} {replica_id}")

    def restart_all(self) -> None:
        self.ordered.append("restart all")

    @staticmethod
    def _set(one: ReplicaState, replica_id: str, enabled: bool) -> ReplicaState:
        return replace(one, enabled=enabled) if one.id == replica_id else one


class Admin:
    """A client of one admin port."""

    def __init__(self, gateway: Gateway, session: aiohttp.ClientSession, port: int) -> None:
        self.gateway = gateway
        self.session = session
        self.port = port

    async def ask(self, method: str, path: str, **headers: str) -> tuple[int, Any]:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self.session.request(method, url, headers=sent) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if answer.content_type == "application/json" else text


@pytest_asyncio.fixture
async def admin() -> AsyncIterator[Admin]:
    gateway = Gateway()
    runner = make_runner(make_admin(gateway, history.metrics(), hosts=lambda: gateway.hosts))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with aiohttp.ClientSession() as session:
        yield Admin(gateway, session, runner.addresses[0][1])
    await runner.cleanup()


async def test_healthz_says_that_the_process_is_alive_whatever_the_replicas_do(admin: Admin) -> None:
    admin.gateway.readiness = (False, "no replica can serve")
    assert await admin.ask("GET", "/healthz") == (200, {"status": "ok", "program": "corral", "version": "1.2.3"})


async def test_readyz_is_200_while_a_replica_can_serve_and_503_with_the_reason_otherwise(admin: Admin) -> None:
    assert await admin.ask("GET", "/readyz") == (200, {"ready": True, "reason": "2 of 3 replicas can serve"})
    admin.gateway.readiness = (False, "stopping")
    assert await admin.ask("GET", "/readyz") == (503, {"ready": False, "reason": "stopping"})


async def test_the_snapshot_has_its_documented_keys(admin: Admin) -> None:
    status, page = await admin.ask("GET", "/snapshot")
    assert status == 200
    assert page.pop("replicas")[0] == {
        "id": "a",
        "health": "up",
        "enabled": True,
        "held": None,
        "reason": "answers its probe",
        "weight": 2.5,
        "slots": 4,
        "in_flight": 1,
        "in_flight_by_model": {"llama3.1:8b": 1},
        "version": "0.32.15",
        "installed": ["llama3.1:8b"],
        "loaded": ["llama3.1:8b"],
        "changing": None,
        "loading": None,
        "leaving": [],
        "sample_age_s": 0.5,
        "models": None,
        "gpus": ["GPU-0a"],
        "found_by": None,
        "below": None,
        "process": {
            "state": "running",
            "reason": "answers",
            "for_s": 10.0,
            "pid": 4321,
            "port": 21001,
            "restarts": 1,
            "next_start_in_s": None,
            "adopted": True,
            "log": "/state/logs/a.log",
        },
    }
    assert page.pop("gpus")[0] == {
        "gpu": "0",
        "uuid": "GPU-0a",
        "name": "RTX 4090",
        "vendor": "nvidia",
        "memory_bytes": 24 << 30,
        "condition": "ok",
        "reason": "is read",
        "xid": None,
        "sample_age_s": 1.0,
        "sample": {
            "utilisation_ratio": 0.75,
            "memory_used_bytes": 6 << 30,
            "memory_total_bytes": 24 << 30,
            "temperature_celsius": 61.0,
            "slowdown_celsius": 88.0,
            "power_watts": 310.5,
            "power_limit_watts": 450.0,
            "energy_joules": 1000.0,
            "sm_clock_hz": 2.5e9,
            "max_sm_clock_hz": None,
            "throttles": ["power cap", "software thermal slowdown"],
            "uncorrected_ecc_errors": 0,
            "processes": [{"pid": 4321, "memory_bytes": 5 << 30}],
        },
    }
    waiting, running = page["requests"].pop("waiting"), page["requests"].pop("running")
    assert waiting[0] == {
        "number": 7,
        "model": "llama3.1:8b",
        "kind": "inference",
        "rank": 0,
        "waited_s": 1.25,
        "position": 1,
        "need": "a free slot",
        "replicas": ["a"],
    }
    assert running == [
        {
            "number": 3,
            "model": "llama3.1:8b",
            "kind": "inference",
            "rank": 1,
            "replica": "a",
            "for_s": 2.5,
            "waited_s": 0.25,
            "answering": True,
            "predicted_s": 4.0,
        }
    ]
    assert page == {
        "schema": 1,
        "version": "1.2.3",
        "ready": True,
        "reason": "2 of 3 replicas can serve",
        "policy": "weighted-least-load",
        "requests": {"in_flight": 3, "queued": 2, "queued_by_model": {"llama3.1:8b": 2}, "oldest_wait_s": 1.25},
        "advice": ["big:70b runs partly on the CPU"],
    }


async def test_what_is_not_known_is_null_in_the_snapshot(admin: Admin) -> None:
    _, page = await admin.ask("GET", "/snapshot")
    unknown = page["replicas"][2]
    assert (unknown["slots"], unknown["version"], unknown["loaded"], unknown["sample_age_s"]) == (None,) * 4


async def test_metrics_are_prometheus_text(admin: Admin) -> None:
    async with admin.session.get(f"http://127.0.0.1:{admin.port}/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        text = await answer.text()
    assert "corral_build_info{" in text
    assert "process_cpu_seconds_total" in text


async def test_a_replica_is_drained_and_resumed_and_the_answer_shows_it(admin: Admin) -> None:
    status, page = await admin.ask("POST", "/replicas/a/drain")
    assert (status, page["id"], page["enabled"], page["in_flight"]) == (200, "a", False, 1)
    status, page = await admin.ask("POST", "/replicas/a/resume")
    assert (status, page["enabled"]) == (200, True)


async def test_an_unknown_replica_is_answered_with_the_known_ones(admin: Admin) -> None:
    assert await admin.ask("POST", "/replicas/z/drain") == (404, {"error": "no replica 'z'; known: a, b, c"})


async def test_an_ollama_that_corral_runs_is_restarted_stopped_and_started(admin: Admin) -> None:
    for verb in ("restart", "stop", "start"):
        status, page = await admin.ask("POST", f"/replicas/a/{verb}")
        assert (status, page["id"], page["process"]["state"]) == (200, "a", "running")
    assert await admin.ask("POST", "/restart") == (200, {"id": None, "restarting": ["a", "c"]})
    assert admin.gateway.ordered == ["restart a", "stop a", "start a", "restart all"]


async def test_an_ollama_that_somebody_else_runs_is_not_restarted(admin: Admin) -> None:
    assert await admin.ask("POST", "/replicas/b/restart") == (409, {"error": "b is not run by Corral"})
    assert await admin.ask("POST", "/replicas/z/restart") == (404, {"error": "no replica 'z'; known: a, b, c"})


async def test_draining_needs_a_post(admin: Admin) -> None:
    assert await admin.ask("GET", "/replicas/a/drain") == (405, {"error": "/replicas/a/drain takes POST, not GET"})


async def test_an_unknown_route_says_where_the_routes_are(admin: Admin) -> None:
    assert await admin.ask("GET", "/metrix") == (404, {"error": "no such route: /metrix; GET / lists them"})
    status, index = await admin.ask("GET", "/")
    assert status == 200
    assert "/metrics" in index


async def test_a_bug_is_a_plain_500_without_a_traceback_and_the_port_stays_up(
    admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    admin.gateway.broken = True
    with caplog.at_level(logging.ERROR):
        assert await admin.ask("GET", "/snapshot") == (500, {"error": "internal error; the log says more"})
    assert "admin_failed path=/snapshot" in caplog.text
    assert (await admin.ask("GET", "/healthz"))[0] == 200


@pytest.mark.parametrize(
    "host", ["localhost:1", "127.0.0.1", "[::1]:11435", "10.1.2.3:80", "192.168.0.9", "box.local", "corral.internal"]
)
async def test_local_and_private_hosts_are_let_in(admin: Admin, host: str) -> None:
    assert (await admin.ask("GET", "/snapshot", Host=host))[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:11435", "8.8.8.8", "localhost.evil.example"])
@pytest.mark.parametrize("path", ["/snapshot", "/metrics", "/healthz", "/nothing"])
async def test_a_rebound_name_reads_nothing(admin: Admin, host: str, path: str) -> None:
    status, page = await admin.ask("GET", path, Host=host)
    assert status == 403
    assert "is not allowed; add it to hosts" in page["error"]


async def test_a_host_the_operator_named_is_let_in_as_soon_as_it_is_configured(admin: Admin) -> None:
    assert (await admin.ask("GET", "/snapshot", Host="corral.example.com"))[0] == 403
    admin.gateway.hosts = ("corral.example.com",)
    assert (await admin.ask("GET", "/snapshot", Host="corral.example.com:11435"))[0] == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost"])
async def test_another_web_page_can_neither_read_nor_drain(admin: Admin, origin: str) -> None:
    assert (await admin.ask("POST", "/replicas/a/drain", Origin=origin))[0] == 403
    assert (await admin.ask("GET", "/snapshot", Origin=origin))[0] == 403
    assert admin.gateway.state.replicas[0].enabled


async def test_the_admin_ports_own_pages_may_ask_it(admin: Admin) -> None:
    origin = f"http://127.0.0.1:{admin.port}"
    assert (await admin.ask("POST", "/replicas/a/drain", Origin=origin))[0] == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /healthz HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n", b"40"),
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
    ],
)
async def test_whatever_is_sent_the_answer_has_no_traceback(admin: Admin, sent: bytes, status: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", admin.port)
    writer.write(sent)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.split(b" ")[1].startswith(status)
    assert b"Traceback" not in answer
    assert b".py" not in answer


@pytest.mark.parametrize(("query", "ages"), [("", [12.0, 2.5, 1.0]), ("?n=1", [1.0]), ("?n=900000", [12.0, 2.5, 1.0])])
async def test_the_last_decisions_come_with_the_latest_last(admin: Admin, query: str, ages: list[float]) -> None:
    status, page = await admin.ask("GET", f"/explain{query}")
    assert (status, [decision["age_s"] for decision in page["decisions"]]) == (200, ages)


@pytest.mark.parametrize("count", ["0", "-1", "x", "", "1e3", "9" * 5000])
async def test_a_wrong_number_of_decisions_is_400(admin: Admin, count: str) -> None:
    status, page = await admin.ask("GET", f"/explain?n={count}")
    assert status == 400
    assert page == {"error": f"n={count[:20]} is not a whole number from 1 upwards"}
