"""Batches in parts, traced: one span for the request, which is the parent of what the replicas do for each part."""

from __future__ import annotations

from random import Random

import pytest

from corral.gateway.embed.question import headers_of
from corral.gateway.trace import Trail
from corral.gateway.wire.request_head import parse_request_head
from tests.gateway.embed.stage import MODEL, NATIVE, Build, body
from tests.gateway.wire.collector import attributes, collector
from tests.gateway.wire.harness import until

pytest.importorskip("opentelemetry.sdk")
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"traceparent: 00-{TRACE}-{SPAN}-01"


async def test_a_batch_in_parts_is_the_span_of_the_request_and_its_wait(
    stage: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    with collector() as kept:
        made = await stage(2, f"tracing: {{endpoint: '{kept.url}'}}\n")
        _, headers, _ = await made.ask(NATIVE, body(64), PARENT)
        assert int(headers["x-corral-parts"]) >= 2
        await until(lambda: len(kept.spans) >= 2)
        root = next(span for span in kept.spans if span.name == f"embed {MODEL}")
        assert {span.name for span in kept.spans} == {root.name, "queue"}
        assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, SPAN)
        assert attributes(root)["gen_ai.operation.name"] == "embeddings"
        await made.running.app.tellers.close()


def test_each_part_goes_with_the_requests_own_span_as_parent() -> None:
    head = parse_request_head(f"POST {NATIVE} HTTP/1.1\r\nHost: x\r\n{PARENT}\r\nAccept: */*\r\n\r\n".encode())
    head.trace = Trail(head.forward, Random(1), lambda parent, name: True)
    head.forward = head.trace.forward()
    headers = headers_of(head)
    assert headers is not None
    assert headers.getall("traceparent") == [f"00-{TRACE}-{head.trace.over().span_id}-01"]
