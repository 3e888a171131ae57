"""What a collector gets of requests through a real gateway, and what it cannot do to them."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from corral.errors import ConfigError
from corral.gateway.config.telling import TracingConfig
from corral.gateway.serve import tracing as module
from corral.gateway.serve.tracing import full_endpoint, make_tracing
from corral.gateway.wire.request_head import parse_request_head
from tests.gateway.wire.collector import Collector, attributes, collector
from tests.gateway.wire.conftest import Start
from tests.gateway.wire.harness import CHAT, CHAT_WHOLE, RunningGateway, post, until
from tests.gateway.wire.replica import MODEL, Call

pytest.importorskip("opentelemetry.sdk")
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"traceparent: 00-{TRACE}-{SPAN}-01"
CLIENT, SERVER, INTERNAL, ERROR = 3, 2, 1, 2


@pytest.fixture(autouse=True)
def quick_batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of the exporter is left behind: its threads draw random numbers where other tests draw theirs."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SDK_DISABLED", "OTEL_TRACES_SAMPLER", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)
    yield
    left = [thread for thread in threading.enumerate() if thread.name.startswith(("Otel", "last spans"))]
    for thread in left:
        thread.join(12.0)
    assert not any(thread.is_alive() for thread in left)


@pytest.fixture
def collected() -> Iterator[Collector]:
    with collector() as kept:
        yield kept


def to(kept: Collector, more: str = "") -> str:
    return f"tracing: {{endpoint: '{kept.url}'{more}}}\n"


async def spans_of(kept: Collector, count: int) -> list[Any]:
    await until(lambda: len(kept.spans) >= count)
    return kept.spans


def parent_said(call: Call) -> list[str]:
    lines = [line for line in call.head.decode().split("\r\n") if line.lower().startswith("traceparent:")]
    return [line.partition(":")[2].strip() for line in lines]


async def test_a_streamed_request_is_a_tree_that_hangs_below_the_clients_span(
    start: Start, collected: Collector
) -> None:
    gateway = await start(1, to(collected))
    sent_at = time.time()
    status, _, _ = await gateway.ask(post("/api/chat", CHAT, PARENT, "tracestate: vendor=a", "X-Corral-Class: batch"))
    assert status == 200
    found = {(span.name, span.kind): span for span in await spans_of(collected, 4)}
    root, attempt = found[f"chat {MODEL}", SERVER], found[f"chat {MODEL}", CLIENT]
    queue, generation = found["queue", INTERNAL], found["generation", INTERNAL]
    assert {span.trace_id.hex() for span in found.values()} == {TRACE}
    assert root.parent_span_id.hex() == SPAN
    assert root.trace_state == "vendor=a"
    assert queue.parent_span_id == attempt.parent_span_id == root.span_id
    assert generation.parent_span_id == attempt.span_id
    call = gateway.replicas[0].calls[0]
    assert parent_said(call) == [f"00-{TRACE}-{attempt.span_id.hex()}-01"]
    assert call.header("tracestate") == "vendor=a"
    assert [event.name for event in attempt.events] == ["first byte"]
    starts = [span.start_time_unix_nano for span in (root, attempt, generation)]
    assert starts == sorted(starts)
    assert all(span.end_time_unix_nano <= root.end_time_unix_nano for span in found.values())
    assert abs(root.start_time_unix_nano / 1e9 - sent_at) < 5
    said, answered = attributes(root), attributes(attempt)
    assert said["gen_ai.operation.name"] == answered["gen_ai.operation.name"] == "chat"
    assert said["gen_ai.request.model"] == MODEL
    assert (said["http.request.method"], said["url.path"], said["http.response.status_code"]) == (
        "POST",
        "/api/chat",
        200,
    )
    assert (said["corral.class"], said["corral.outcome"], said["corral.replica"]) == ("batch", "ok", "r0")
    assert answered["gen_ai.usage.output_tokens"] == 2
    assert not any(name.startswith("gen_ai.usage") for name in said)
    assert all(span.status.code != ERROR for span in found.values())
    assert collected.paths[0] == "/v1/traces"


async def test_a_trace_begins_here_where_the_client_says_none_or_nonsense(start: Start, collected: Collector) -> None:
    gateway = await start(1, to(collected))
    for lines in ((), ("traceparent: 00-nonsense",)):
        assert (await gateway.ask(post("/api/chat", CHAT_WHOLE, *lines)))[0] == 200
    roots = [span for span in await spans_of(collected, 6) if span.kind == SERVER]
    assert [span.parent_span_id for span in roots] == [b"", b""]
    assert len({span.trace_id for span in roots}) == 2
    assert all(len(parent_said(call)) == 1 for call in gateway.replicas[0].calls)


async def test_a_failed_attempt_is_a_span_with_its_fault_and_the_other_replica_has_a_parent_of_its_own(
    start: Start, collected: Collector
) -> None:
    async def reset(call: Call) -> None:
        call.reset()

    gateway = await start(2, to(collected))
    failing = gateway.replicas[0]
    failing.answer = reset
    while not failing.calls:
        assert (await gateway.ask(post("/api/chat", CHAT_WHOLE, PARENT)))[0] == 200
    await until(lambda: any(span.status.code == ERROR for span in collected.spans))
    failed = next(span for span in collected.spans if span.status.code == ERROR)
    assert failed.kind == CLIENT
    assert attributes(failed)["error.type"] == "reset"
    assert attributes(failed)["corral.replica"] == "r0"
    last = next(
        span
        for span in collected.spans
        if span.kind == CLIENT and span.parent_span_id == failed.parent_span_id and span is not failed
    )
    assert last.start_time_unix_nano >= failed.end_time_unix_nano
    assert parent_said(failing.calls[0]) == [f"00-{TRACE}-{failed.span_id.hex()}-01"]
    told = [parent for call in gateway.replicas[1].calls for parent in parent_said(call)]
    assert f"00-{TRACE}-{last.span_id.hex()}-01" in told


async def test_a_broken_stream_and_a_refusal_are_errors(start: Start, collected: Collector) -> None:
    async def break_off(call: Call) -> None:
        await call.start_stream()
        await call.line_of(message={"role": "assistant", "content": "hel"}, done=False)
        call.reset()

    gateway = await start(1, to(collected))
    gateway.replicas[0].answer = break_off
    await gateway.ask(post("/api/chat", CHAT))
    await until(lambda: collected.named("generation"))
    broken = [span for span in collected.spans if span.name == f"chat {MODEL}"]
    assert [(span.status.code, attributes(span)["error.type"]) for span in broken] == [(ERROR, "broken")] * 2
    gateway.gateway.set_enabled("r0", False)
    assert (await gateway.ask(post("/api/chat", CHAT)))[0] == 503
    await until(lambda: len([span for span in collected.spans if span.kind == SERVER]) == 2)
    refused = [span for span in collected.spans if span.kind == SERVER][-1]
    assert refused.status.code == ERROR
    assert attributes(refused)["error.type"].startswith("refused_")
    assert "corral.replica" not in attributes(refused)


async def test_a_client_that_leaves_is_no_error(start: Start, collected: Collector) -> None:
    async def wait(call: Call) -> None:
        await call.gone()

    gateway = await start(1, to(collected))
    gateway.replicas[0].answer = wait
    client = await gateway.connect()
    await client.send(post("/api/chat", CHAT))
    await until(lambda: gateway.replicas[0].calls)
    client.reset()
    await until(lambda: any(span.kind == SERVER for span in collected.spans))
    root = next(span for span in collected.spans if span.kind == SERVER)
    assert root.status.code != ERROR
    assert attributes(root)["corral.outcome"] == "client_gone"


async def test_what_is_not_kept_sends_no_spans_and_says_so_to_the_replica(start: Start, collected: Collector) -> None:
    gateway = await start(1, to(collected, ", sample_ratio: 0"))
    unkept = f"traceparent: 00-{TRACE}-{SPAN}-00"
    for lines in ((), (unkept,), (PARENT,)):
        assert (await gateway.ask(post("/api/chat", CHAT_WHOLE, *lines)))[0] == 200
    await spans_of(collected, 3)
    assert {span.trace_id.hex() for span in collected.spans} == {TRACE}
    assert len([span for span in collected.spans if span.kind == SERVER]) == 1
    flags = [parent_said(call)[0][-2:] for call in gateway.replicas[0].calls]
    assert flags == ["00", "00", "01"]


async def test_pages_and_bad_requests_have_no_spans(start: Start, collected: Collector) -> None:
    gateway = await start(1, to(collected))
    assert (await gateway.ask(b"GET /api/tags HTTP/1.1\r\nHost: localhost\r\n\r\n"))[0] == 200
    assert (await gateway.ask(b"nonsense\r\n\r\n"))[0] == 400
    assert (await gateway.ask(post("/api/chat", CHAT_WHOLE)))[0] == 200
    await spans_of(collected, 3)
    assert len([span for span in collected.spans if span.kind == SERVER]) == 1


async def test_clients_cannot_add_names_of_spans(start: Start, collected: Collector) -> None:
    gateway = await start(1, to(collected))
    body = CHAT_WHOLE.replace(MODEL.encode(), b"made-up-name")
    await gateway.ask(post("/api/chat", body))
    await until(lambda: any(span.kind == SERVER for span in collected.spans))
    assert {span.name for span in collected.spans} <= {"chat other", "queue", "generation"}
    assert attributes(collected.spans[0])["gen_ai.request.model"] == "made-up-name:latest"


async def test_without_tracing_the_clients_headers_pass_verbatim_even_malformed_ones(start: Start) -> None:
    gateway = await start(1)
    for parent in (f"00-{TRACE}-{SPAN}-01", "nonsense", f"00-{TRACE.upper()}-{SPAN}-01"):
        await gateway.ask(post("/api/chat", CHAT_WHOLE, f"traceparent: {parent}", "tracestate: vendor=a,b=2"))
        call = gateway.replicas[0].calls[-1]
        assert parent_said(call) == [parent]
        assert call.header("tracestate") == "vendor=a,b=2"


async def test_who_sends_and_with_what_headers_comes_from_the_environment(
    start: Start, collected: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collected.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-token=abc")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ranch")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "host.name=box")
    gateway = await start(1)
    await gateway.ask(post("/api/chat", CHAT_WHOLE))
    await spans_of(collected, 3)
    resource = attributes(collected.requests[0].resource_spans[0].resource)
    assert (resource["service.name"], resource["host.name"]) == ("ranch", "box")
    assert collected.headers[0]["x-token"] == "abc"
    assert collected.headers[0]["content-type"] == "application/x-protobuf"


async def last_words(gateway: RunningGateway) -> float:
    began_s = time.monotonic()
    await gateway.app.tellers.close()
    return time.monotonic() - began_s


async def test_the_last_spans_are_sent_at_the_end(
    start: Start, collected: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    gateway = await start(1, to(collected))
    await gateway.ask(post("/api/chat", CHAT_WHOLE))
    assert not collected.spans
    assert await last_words(gateway) < 1
    assert len(collected.spans) == 3


async def test_a_collector_that_hangs_holds_neither_requests_nor_the_end(start: Start, collected: Collector) -> None:
    collected.hold.clear()
    gateway = await start(1, to(collected))
    await gateway.ask(post("/api/chat", CHAT_WHOLE))
    await until(collected.asked.is_set)
    began_s = time.monotonic()
    for _ in range(20):
        assert (await gateway.ask(post("/api/chat", CHAT_WHOLE)))[0] == 200
    assert time.monotonic() - began_s < 2
    assert await last_words(gateway) < 2
    collected.hold.set()


async def test_a_collector_that_is_down_costs_a_line_of_the_log_and_no_request(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")  # so that many fail
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    gateway = await start(1, f"tracing: {{endpoint: 'http://127.0.0.1:{port}'}}\n")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert (await gateway.ask(post("/api/chat", CHAT_WHOLE)))[0] == 200
        await until(lambda: "traces_not_sent" in caplog.text)
        with collector(port) as back:
            while not back.spans:
                assert (await gateway.ask(post("/api/chat", CHAT_WHOLE)))[0] == 200
            await until(lambda: "traces_sent_again" in caplog.text)
    told = [record.name for record in caplog.records if record.name != "corral.probes.reader"]
    assert told == ["corral.gateway"] * 2, "the GPUs of this machine may have their own"


# ---- what is wanted


def label(model: str | None) -> str:
    return model or "none"


def test_off_opentelemetry_is_not_imported() -> None:
    code = (
        "import sys, corral.gateway.app\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_without_an_endpoint_or_where_opentelemetry_is_switched_off_there_are_no_traces() -> None:
    rng = Random(1)
    assert make_tracing(TracingConfig(), {}, label, rng) is None
    endpoint = TracingConfig(endpoint="http://127.0.0.1:1")
    assert make_tracing(endpoint, {"OTEL_SDK_DISABLED": "true"}, label, rng) is None
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"}
    assert make_tracing(TracingConfig(), environ, label, rng) is None


def test_without_the_extra_the_file_is_refused_and_the_environment_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_MODULES", ("corral_has_no_such_module.sdk",))
    with pytest.raises(ConfigError, match=r"pip install 'corral\[otel\]'"):
        make_tracing(TracingConfig(endpoint="http://127.0.0.1:1"), {}, label, Random(1))
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    assert make_tracing(TracingConfig(), environ, label, Random(1)) is None
    assert "tracing_off" in caplog.text


@pytest.mark.parametrize(
    ("endpoint", "full"),
    [
        ("http://h:4318", "http://h:4318/v1/traces"),
        ("http://h:4318/", "http://h:4318/v1/traces"),
        ("https://h/otlp/v1/traces", "https://h/otlp/v1/traces"),
    ],
)
def test_the_path_of_traces_is_added_where_there_is_none(endpoint: str, full: str) -> None:
    assert full_endpoint(endpoint) == full


KEPT_BY_CLIENT, NOT_KEPT, SAYS_NOTHING = PARENT, f"traceparent: 00-{TRACE}-{SPAN}-00", "x: y"


@pytest.mark.parametrize(
    ("config", "environ", "kept"),
    [
        (TracingConfig(), {}, (True, False, True)),
        (TracingConfig(sample_ratio=0.0), {"OTEL_TRACES_SAMPLER": "always_on"}, (True, False, False)),
        (TracingConfig(), {"OTEL_TRACES_SAMPLER": "always_on"}, (True, True, True)),
        (TracingConfig(), {"OTEL_TRACES_SAMPLER": "always_off"}, (False, False, False)),
        (TracingConfig(), {"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, (True, False, False)),
        (
            TracingConfig(),
            {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"},
            (True, False, False),
        ),
        (TracingConfig(), {"OTEL_TRACES_SAMPLER": "no_such"}, (True, False, True)),
    ],
)
async def test_what_is_kept(config: TracingConfig, environ: dict[str, str], kept: tuple[bool, ...]) -> None:
    with_endpoint = TracingConfig(endpoint="http://127.0.0.1:1", sample_ratio=config.sample_ratio)
    tracing = make_tracing(with_endpoint, environ, label, Random(1))
    assert tracing is not None
    try:
        found = []
        for line in (KEPT_BY_CLIENT, NOT_KEPT, SAYS_NOTHING):
            head = parse_request_head(f"GET / HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n".encode())
            tracing.begin(head)
            assert head.trace is not None
            found.append(head.trace.is_sampled)
    finally:
        await tracing.close()
    assert tuple(found) == kept


async def test_a_share_of_the_traces_is_kept_by_their_names() -> None:
    tracing = make_tracing(TracingConfig(endpoint="http://127.0.0.1:1", sample_ratio=0.25), {}, label, Random(1))
    assert tracing is not None
    try:
        kept = 0
        for _ in range(1000):
            head = parse_request_head(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            tracing.begin(head)
            kept += head.trace is not None and head.trace.is_sampled
    finally:
        await tracing.close()
    assert 200 < kept < 300
