"""What the gateway tells the scheduler of a request and its end, and the client of the decision."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import aiohttp
import pytest

from corral.gateway.carried import Carried
from corral.gateway.ended import Ended
from corral.gateway.wire.dialect import StreamEnd, read_ending
from corral.gateway.wire.request_head import parse_request_head
from corral.gateway.wire.tenant import tenant_of
from corral.gateway.wire.why import why
from corral.model import Figures, Prediction, RouteRequest
from tests.gateway.wire.conftest import Start
from tests.gateway.wire.harness import CHAT, CHAT_WHOLE, RunningGateway, post
from tests.gateway.wire.replica import MODEL, Call

SECRET = b"s" * 16
DONE = {
    "done": True,
    "total_duration": 5_000_000_000,
    "load_duration": 500_000_000,
    "prompt_eval_count": 26,
    "prompt_eval_duration": 1_000_000_000,
    "eval_count": 40,
    "eval_duration": 2_000_000_000,
}
FIGURES = Figures(26, 40, queued_s=1.5, load_s=0.5, prefill_s=1.0, decode_s=2.0)


def figures(fields: Mapping[str, object]) -> Figures | None:
    return read_ending(StreamEnd.DONE_TRUE, b"application/x-ndjson", json.dumps(fields).encode() + b"\n").figures


def test_the_final_line_tells_how_long_each_part_took() -> None:
    assert figures(DONE) == FIGURES
    whole = read_ending(StreamEnd.DONE_TRUE, b"application/json", json.dumps(DONE).encode())
    assert whole.figures == FIGURES


def test_what_the_final_line_leaves_out_is_not_known() -> None:
    assert figures({"done": True}) == Figures()
    without = {key: value for key, value in DONE.items() if key != "eval_duration"}
    assert figures(without) == Figures(26, 40, queued_s=None, load_s=0.5, prefill_s=1.0, decode_s=None)


def test_parts_longer_than_their_sum_mean_no_wait() -> None:
    told = figures({**DONE, "total_duration": 1_000_000_000})
    assert told is not None
    assert told.queued_s == 0.0


@pytest.mark.parametrize("odd", ["5s", -1, [], {}, None])
def test_an_odd_duration_is_not_known_and_the_stream_still_complete(odd: object) -> None:
    line = json.dumps({**DONE, "load_duration": odd}).encode()
    ending = read_ending(StreamEnd.DONE_TRUE, b"application/x-ndjson", line)
    assert ending.complete
    assert ending.figures == Figures(26, 40, queued_s=None, load_s=None, prefill_s=1.0, decode_s=2.0)


@pytest.mark.parametrize(
    ("end", "tail"),
    [
        (
            StreamEnd.DONE_EVENT,
            b'data: {"choices":[],"usage":{"prompt_tokens":26,"completion_tokens":40}}\n\ndata: [DONE]\n\n',
        ),
        (
            StreamEnd.MESSAGE_STOP,
            b'event: message_delta\ndata: {"type":"message_delta","usage":{"input_tokens":26,"output_tokens":40}}\n\n'
            b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
        ),
    ],
)
def test_openai_and_anthropic_tell_tokens_only(end: StreamEnd, tail: bytes) -> None:
    assert read_ending(end, b"text/event-stream", tail).figures == Figures(26, 40)


# ---- who asks, and how urgently


def head(*lines: str) -> bytes:
    return "\r\n".join(("POST /api/chat HTTP/1.1", "Host: x", *lines, "", "")).encode()


def tenant(*lines: str) -> str:
    return tenant_of(parse_request_head(head(*lines)).api_key, "10.0.0.1", SECRET)


def test_a_key_is_known_by_a_digest_that_tells_nothing_of_it() -> None:
    one = tenant("Authorization: Bearer sk-abc")
    assert re.fullmatch("key:[0-9a-f]{12}", one)
    assert tenant("authorization:  bearer  sk-abc ") == tenant("X-Api-Key: sk-abc") == one
    assert tenant("Authorization: Bearer sk-abd") != one
    assert tenant_of(b"sk-abc", "10.0.0.1", b"t" * 16) != one
    assert "sk-abc" not in repr(parse_request_head(head("Authorization: Bearer sk-abc")))


@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("Authorization: Bearer ollama",),
        ("Authorization: Bearer",),
        ("Authorization: Basic dXNlcjpwYXNz",),
        ("x-api-key: sk-no-key-required",),
        ("x-api-key: DUMMY",),
        ("x-api-key:",),
    ],
)
def test_without_a_key_of_its_own_a_client_is_its_address(lines: tuple[str, ...]) -> None:
    assert tenant(*lines) == "10.0.0.1"


@pytest.mark.parametrize("value", [b"k" * 1000, b"\xff\xfe", b"k" * 30000])
def test_a_key_of_any_bytes_has_a_digest(value: bytes) -> None:
    assert len(tenant_of(value, "10.0.0.1", SECRET)) == len("key:") + 12


@pytest.mark.parametrize(
    ("line", "rank"),
    [
        ("X-Corral-Class: interactive", 0),
        ("x-corral-class: Normal", 1),
        ("X-Corral-Class: batch", 2),
        ("X-Corral-Class: urgent", 1),
        ("X-Corral-Class:", 1),
        ("X-Other: batch", 1),
    ],
)
def test_the_class_of_a_request_is_its_rank(line: str, rank: int) -> None:
    parsed = parse_request_head(head(line))
    assert parsed.rank == rank
    assert b"corral" not in parsed.forward.lower()


# ---- why


def predicted(wait_s: float) -> Prediction:
    return Prediction(wait_s, 0.11, 0.31, others_s=9.0, saved_s=9.0, slowdown=1.0, cost_s=9.0)


@pytest.mark.parametrize(
    ("reason", "prediction", "line"),
    [
        ("least load", None, b"least load"),
        ("least load", predicted(0.0), b"least load; 0.42 s: prefill 0.11, decode 0.31"),
        ("least load", predicted(1.0), b"least load; 1.42 s: wait 1.00, prefill 0.11, decode 0.31"),
        ("näher\r\nSet-Cookie: x", None, b"n?her?Set-Cookie: x"),
        (" " + "x" * 500, None, b"x" * 79),
    ],
)
def test_the_reason_is_one_visible_line(reason: str, prediction: Prediction | None, line: bytes) -> None:
    assert why(reason, prediction) == line


# ---- through the gateway


async def answer_with_durations(call: Call) -> None:
    await call.json(DONE)


class Spy:
    """Notes what a gateway's scheduler is told."""

    def __init__(self, gateway: RunningGateway) -> None:
        self.requests: list[RouteRequest] = []
        self.figures: list[Figures | None] = []
        carrier = gateway.gateway.carrier
        finished, submit = carrier.finished, carrier.submit

        def note_end(ticket: Carried, *, ok: bool, figures: Figures | None) -> None:
            self.figures.append(figures)
            finished(ticket, ok=ok, figures=figures)

        def note_request(ticket: Carried) -> None:
            self.requests.append(ticket.request)
            submit(ticket)

        carrier.finished = note_end  # type: ignore[method-assign]
        carrier.submit = note_request  # type: ignore[method-assign]


async def test_the_scheduler_learns_who_asks_for_what_and_how_it_went(start: Start) -> None:
    gateway = await start(1)
    gateway.replicas[0].answer = answer_with_durations
    told = Spy(gateway)
    sent = ("Authorization: Bearer sk-abc", "X-Corral-Class: batch")
    status, headers, _ = await gateway.ask(post("/api/chat", CHAT, *sent))
    assert status == 200
    request = told.requests[0]
    assert (request.model, request.rank, request.text_bytes) == (MODEL, 2, len("\x02user\nhi"))
    assert request.tenant.startswith("key:")
    assert told.figures == [FIGURES]
    call = gateway.replicas[0].calls[0]
    assert call.header("authorization") == "Bearer sk-abc"
    assert call.header("x-corral-class") is None
    assert 0 <= float(headers["x-corral-queue-s"]) < 5
    assert re.fullmatch(r"[\x20-\x7e]+", headers["x-corral-reason"])


async def test_an_error_tells_no_figures(start: Start) -> None:
    async def refuse(call: Call) -> None:
        await call.json({"error": "no"}, "404 Not Found")

    gateway = await start(1)
    gateway.replicas[0].answer = refuse
    told = Spy(gateway)
    assert (await gateway.ask(post("/api/chat", CHAT)))[0] == 404
    assert told.figures == [None]
    assert told.requests[0].tenant == "127.0.0.1"


async def test_a_replica_cannot_speak_for_the_gateway(start: Start) -> None:
    async def pretend(call: Call) -> None:
        own = "x-corral-reason: evil\r\nx-corral-queue-s: 9\r\nx-corral-replica: evil"
        await call.write(f"HTTP/1.1 200 OK\r\n{own}\r\nContent-Length: 2\r\n\r\n{{}}".encode())

    gateway = await start(1)
    gateway.replicas[0].answer = pretend
    client = await gateway.connect()
    await client.send(post("/api/chat", CHAT, "X-Corral-Queue-S: 5"))
    raw = await client.reader.readuntil(b"\r\n\r\n")
    assert b"evil" not in raw
    assert raw.lower().count(b"x-corral-queue-s") == raw.lower().count(b"x-corral-reason") == 1
    assert gateway.replicas[0].calls[0].header("x-corral-queue-s") is None


async def test_with_one_context_length_for_all_the_replica_gets_it_in_a_body_of_its_length(start: Start) -> None:
    gateway = await start(1, f"placement: {{enabled: false, canonicalise: {{num_ctx: {{'{MODEL}': 8192}}}}}}\n")
    told = Spy(gateway)
    for options in ({"num_ctx": 4096, "seed": 1}, {"num_ctx": 16384}, {}):
        body = json.dumps({"model": MODEL, "messages": [], "stream": False, "options": options}).encode()
        assert (await gateway.ask(post("/api/chat", body)))[0] == 200
    bodies = [json.loads(call.body) for call in gateway.replicas[0].calls]
    assert [body["options"] for body in bodies] == [{"num_ctx": 8192, "seed": 1}, {"num_ctx": 8192}, {"num_ctx": 8192}]
    assert {request.signature for request in told.requests} == {"num_ctx=8192"}


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/9\r\n\r\n",
        b"GET /api/tags HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999\r\n\r\n",
        b"GET /api/tags HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    ],
)
async def test_a_request_that_is_none_is_told_by_the_id_that_its_answer_has(start: Start, request_bytes: bytes) -> None:
    gateway = await start(1, "timeouts: {head_s: 0.3}\n")
    ended: list[Ended] = []
    gateway.gateway.listeners.append(ended.append)
    _, headers, _ = await gateway.ask(request_bytes)
    (record,) = ended
    assert record.kind == "bad_request"
    assert record.id == headers["x-request-id"] != "-"


async def test_of_a_path_that_a_client_made_up_only_the_beginning_is_told(start: Start) -> None:
    gateway = await start(1)
    ended: list[Ended] = []
    gateway.gateway.listeners.append(ended.append)
    for head in (b"GET /%b HTTP/1.1", b"GET /v1/models/%b HTTP/1.1"):
        await gateway.ask(head % (b"a" * 20_000) + b"\r\nHost: 127.0.0.1\r\n\r\n")
    assert [len(each.path) for each in ended] == [1000, 1000]


async def test_pages_and_what_browsers_ask_beforehand_are_no_requests_that_are_counted_or_kept(start: Start) -> None:
    gateway = await start(1)
    ended: list[Ended] = []
    gateway.gateway.listeners.append(ended.append)
    asks = b"OPTIONS /api/chat HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://localhost:3000\r\n\r\n"
    client = await gateway.connect()
    await client.send(asks)
    assert (await client.head())[0] == 204
    assert (await gateway.ask(b"GET /api/version HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"))[0] == 200
    assert [(each.kind, each.is_page) for each in ended] == [("preflight", True), ("version", True)]
    await gateway.ask(post("/api/chat", CHAT_WHOLE))
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{gateway.admin_port}/requests") as answer,
    ):
        page = await answer.json()
    assert [each["kind"] for each in page["requests"]] == ["chat"]
    assert {kind for kind, _ in gateway.app.metrics.series} == {"chat"}
