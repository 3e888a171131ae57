"""The model of an uploaded form: found by its boundaries, wherever it stands, and only where Ollama finds it, too."""

from __future__ import annotations

import json
import os
import tracemalloc

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.gateway.wire.fields import route_request
from corral.gateway.wire.multipart import MOST_VALUE_BYTES, form_value
from corral.gateway.wire.routes import find_route
from corral.model import RequestKind, RouteRequest
from tests.gateway.wire.conftest import Start
from tests.gateway.wire.harness import RunningGateway, post, until
from tests.gateway.wire.replica import MODEL, Call

PATH = "/v1/audio/transcriptions"
TYPE = b"multipart/form-data; boundary=b"
FILE = b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n'
NAMED = b'Content-Disposition: form-data; name="model"\r\n'


def form(*parts: tuple[bytes, bytes], boundary: bytes = b"b", end: bytes = b"--\r\n") -> bytes:
    """Heads (each line with its CRLF) and contents."""
    return b"".join(b"--%b\r\n%b\r\n%b\r\n" % (boundary, *part) for part in parts) + b"--" + boundary + end


def model_of(body: bytes | bytearray, content_type: bytes = TYPE) -> bytes | None:
    return form_value(body, content_type, b"model")


def request(body: bytes, content_type: bytes = TYPE, target: bytes = b"") -> RouteRequest:
    return route_request(find_route(b"POST", PATH), body, content_type, "t", target=target)


@pytest.mark.parametrize(
    "parts",
    [
        [(NAMED, b"m"), (FILE, b"RIFF")],
        [(FILE, b"RIFF"), (NAMED, b"m")],
        [(FILE, b""), (NAMED, b"m")],
        [(FILE, b"\r\n--\r\n--a\r\n--bb\r\n\r\n"), (NAMED, b"m")],
        [(b"X-Other: 1\r\n" + NAMED + b"Content-Type: text/plain; charset=utf-8\r\n", b"m")],
        [(b"", b"nobody's"), (NAMED, b"m"), (NAMED, b"second")],
        [(b"Content-Disposition: attachment; name=model\r\n", b"x"), (NAMED, b"m")],
        [(b'content-disposition: Form-Data; filename=""; name="model"\r\n', b"m")],
        [(b"CONTENT-DISPOSITION:form-data;name=model;\r\n", b"m")],
        [(NAMED + b"Content-Transfer-Encoding: binary\r\n", b"m")],
        [(b'Content-Disposition: form-data; name="file"; filename="\xc3\xa4;\\"b.wav"\r\n', b""), (NAMED, b"m")],
    ],
)
def test_the_model_is_found_wherever_it_stands(parts: list[tuple[bytes, bytes]]) -> None:
    assert model_of(form(*parts)) == b"m"
    assert model_of(bytearray(form(*parts))) == b"m"
    assert model_of(b"\r\n" + form(*parts)) == b"m"


@pytest.mark.parametrize(
    "inside",
    [
        NAMED + b"\r\nevil",
        b"\r\n" + NAMED + b"\r\nevil\r\n",
        b"--b\r\n" + NAMED + b"\r\nevil",  # not at the beginning of a line
        b"\n--b\r\n" + NAMED + b"\r\nevil",
        b"\r\n--bb\r\n" + NAMED + b"\r\nevil\r\n--bb--",
        b"\r\n --b\r\n" + NAMED + b"\r\nevil",
        b"\r\n--B\r\n" + NAMED + b"\r\nevil",
    ],
)
@pytest.mark.parametrize("behind", [True, False])
def test_what_stands_in_a_file_is_no_field(inside: bytes, behind: bool) -> None:
    parts = [(FILE, b"RIFF" + inside), (NAMED, b"m")]
    assert model_of(form(*(parts if behind else parts[::-1]))) == b"m"
    assert model_of(form(parts[0])) is None


@pytest.mark.parametrize(
    "head",
    [
        b'Content-Disposition: form-data; name="models"\r\n',
        b'Content-Disposition: form-data; name="Model"\r\n',
        b'Content-Disposition: form-data; name="model "\r\n',
        b'Content-Disposition: form-data; name="\\model"\r\n',
        b'Content-Disposition: form-data; x="; name=\\"model\\""\r\n',
        b'Content-Disposition: form-data; name="model"; filename="a.wav"\r\n',
        b"Content-Disposition: form-data\r\n",
        b"Content-Type: form-data; name=model\r\n",
    ],
)
def test_only_a_plain_value_of_just_that_name_counts(head: bytes) -> None:
    assert model_of(form((head, b"evil"))) is None
    assert model_of(form((head, b"evil"), (NAMED, b"m"))) == b"m"


ODD = {
    "no form": b"RIFF",
    "nothing": b"",
    "something before it": b"preamble\r\n" + form((NAMED, b"m")),
    "a line before it, by its line feed": b"x\n" + form((NAMED, b"m")),
    "line feeds alone": form((NAMED, b"m")).replace(b"\r\n", b"\n"),
    "a line feed alone in a head": form((NAMED.replace(b"\r\n", b"\n\r\n"), b"m")),
    "a folded header": form((b'Content-Disposition: form-data;\r\n name="model"\r\n', b"m")),
    "a space before the colon": form((b"Content-Disposition : form-data; name=model\r\n", b"m")),
    "two dispositions": form((NAMED + NAMED, b"m")),
    "two names": form((b"Content-Disposition: form-data; name=a; name=model\r\n", b"m")),
    "a name in another character set": form((b"Content-Disposition: form-data; name*=utf-8''model\r\n", b"m")),
    "a name in pieces": form((b"Content-Disposition: form-data; name*0=mo; name*1=del\r\n", b"m")),
    "perhaps a file": form((b"Content-Disposition: form-data; name=model; filename*=utf-8''\r\n", b"m")),
    "a value in another encoding": form((NAMED + b"Content-Transfer-Encoding: Quoted-Printable\r\n", b"=6d")),
    "a name without its quote": form((b'Content-Disposition: form-data; name="model\r\n', b"m")),
    "nothing between semicolons": form((b"Content-Disposition: form-data;; name=model\r\n", b"m")),
    "too many parameters": form((b"Content-Disposition: form-data%b; name=model\r\n" % (b"; a=b" * 20), b"m")),
    "an endless head": form((b"X: %b\r\n" % (b"x" * 9000) + NAMED, b"m")),
    "a head that does not end": b"--b\r\n" + NAMED,
    "a part that does not end": b"--b\r\n" + NAMED + b"\r\nm",
    "a boundary that does not end": b"--b\r\n" + NAMED + b"\r\nm\r\n--b",
    "something behind a boundary": b"--b\r\n" + FILE + b"\r\nx\r\n--b x\r\n" + NAMED + b"\r\nm\r\n--b--",
    "half an end": b"--b\r\n" + FILE + b"\r\nx\r\n--b-\r\n" + NAMED + b"\r\nm\r\n--b--",
    "half an end of the model": b"--b\r\n" + NAMED + b"\r\nm\r\n--b-\r\nx\r\n--b--",
    "a carriage return behind a boundary": b"--b\r\n" + FILE + b"\r\nx\r\n--b\rx\r\n\r\n" + form((NAMED, b"m")),
    "a model behind the end": form((FILE, b"x")) + form((NAMED, b"m")),
    "no parts": b"--b--\r\n",
    "too long a value": form((NAMED, b"m" * (MOST_VALUE_BYTES + 1))),
    "too many parts": form(*[(b"", b"")] * 100, (NAMED, b"m")),
}


@pytest.mark.parametrize("name", list(ODD))
def test_a_form_that_could_be_read_in_two_ways_names_no_model(name: str) -> None:
    body = ODD[name]
    assert model_of(body) is None
    assert request(body) == RouteRequest(RequestKind.OTHER, None, "", len(body), "t")


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=----WebKitFormBoundary7MA4YWx", b"----WebKitFormBoundary7MA4YWx"),
        (b'Multipart/Form-Data;charset=utf-8; Boundary="a b=c?d"', b"a b=c?d"),
        (b"multipart/form-data ; boundary=b; ", b"b"),
        (b"multipart/form-data; boundary=%b" % (b"x" * 70), b"x" * 70),
    ],
)
def test_the_boundary_is_that_of_the_content_type(content_type: bytes, boundary: bytes) -> None:
    assert model_of(form((FILE, b"RIFF"), (NAMED, b"m"), boundary=boundary), content_type) == b"m"
    assert model_of(form((NAMED, b"m"), boundary=boundary + b"x"), content_type) is None


@pytest.mark.parametrize(
    "content_type",
    [
        b"",
        b"application/json",
        b"multipart/form-data",
        b"multipart/mixed; boundary=b",
        b"multipart/form-data; boundary=",
        b'multipart/form-data; boundary=""',
        b'multipart/form-data; boundary="b',
        b'multipart/form-data; boundary="b "',
        b'multipart/form-data; boundary="\\b"',
        b"multipart/form-data; boundary=b; boundary=c",
        b"multipart/form-data; boundary*=utf-8''b",
        b"multipart/form-data; boundary=b c",
        b"multipart/form-data, boundary=b",
        b"multipart/form-data; boundary=" + b"b" * 71,
    ],
)
def test_without_a_proper_boundary_there_is_no_form(content_type: bytes) -> None:
    for boundary in (b"b", b"", b"b ", b"b" * 71):
        assert model_of(form((NAMED, b"m"), boundary=boundary), content_type) is None


def test_a_file_of_25_mb_is_searched_in_place() -> None:
    body = form((FILE, os.urandom(25_000_000)), (NAMED, b"m"))
    tracemalloc.start()
    try:
        assert model_of(body) == b"m"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


@given(
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.binary(max_size=60) | st.just(form((NAMED, b"evil"))),
    st.dictionaries(st.sampled_from(["language", "prompt", "models", "response_format"]), st.text(max_size=20)),
)
def test_it_reads_what_a_client_library_writes(filename: str, content: bytes, others: dict[str, str]) -> None:
    files = {"file": (filename or "f", content, "audio/wav")}
    asked = httpx.Request("POST", f"http://localhost{PATH}", data={**others, "model": "m"}, files=files)
    assert model_of(asked.read(), asked.headers["content-type"].encode()) == b"m"
    without = httpx.Request("POST", f"http://localhost{PATH}", data=others, files=files)
    assert model_of(without.read(), without.headers["content-type"].encode()) is None


def test_a_part_without_content_may_end_with_its_head() -> None:
    """So Go reads it: the empty line of the head is the one before the boundary, too."""
    assert model_of(b"--b\r\n" + FILE + b"\r\n" + form((NAMED, b"m"))) == b"m"
    assert model_of(b"--b\r\n" + NAMED + b"\r\n" + form((NAMED, b"m"))) == b""
    assert request(b"--b\r\n" + NAMED + b"\r\n" + form((NAMED, b"m"))).model is None


def test_a_query_that_names_the_model_comes_before_the_form_as_in_go() -> None:
    body = form((NAMED, b"m"))
    assert request(body, target=b"/v1/audio/transcriptions?model=n").model == "n:latest"
    assert request(body, target=b"/x?a=1&%6dodel=hf.co%2Fa%2Fb&model=n").model == "hf.co/a/b:latest"
    assert request(body, target=b"/x?Model=n&xmodel=n").model == "m:latest"
    assert request(body, target=b"/x?model=").model is None
    assert request(body, target=b"/x?" + b"a=b&" * 200).model is None


def test_a_cloud_model_takes_no_slot_here_either() -> None:
    assert request(form((NAMED, b"whisper:cloud"))).kind is RequestKind.CLOUD


# ---- through the gateway


def upload(body: bytes, *headers: str) -> bytes:
    return post(PATH, body, f"Content-Type: {TYPE.decode()}", *headers)


async def transcribe(call: Call) -> None:
    await call.json({"text": "hello"})


async def test_the_form_is_forwarded_as_it_came_and_takes_a_slot(start: Start) -> None:
    gateway = await start(1)
    taken: list[dict[str, int]] = []

    async def answer(call: Call) -> None:
        taken.append(gateway.states[0].inflight_by_model)
        await transcribe(call)

    gateway.replicas[0].answer = answer
    body = form((FILE, os.urandom(3_000_000)), (NAMED, MODEL.encode()))
    status, _, text = await gateway.ask(upload(body))
    assert (status, json.loads(text)) == (200, {"text": "hello"})
    assert gateway.replicas[0].calls[0].body == body
    assert taken == [{MODEL: 1}]
    assert ("openai_audio", MODEL) in gateway.app.metrics.series
    gateway.assert_nothing_held()


async def test_it_waits_where_every_slot_is_taken(start: Start) -> None:
    gateway = await start(1, slots=1)
    gateway.replicas[0].answer = Call.gone
    first = await gateway.connect()
    await first.send(upload(form((NAMED, MODEL.encode()), (FILE, b"RIFF"))))
    await until(lambda: gateway.replicas[0].calls)
    second = await gateway.connect()
    await second.send(upload(form((FILE, b"RIFF"), (NAMED, MODEL.encode()))))
    await until(lambda: gateway.scheduler.queued == 1)
    assert len(gateway.replicas[0].calls) == 1


async def test_a_streamed_transcript_arrives_event_by_event_and_needs_no_end_of_a_dialect(start: Start) -> None:
    events = [b'data: {"type":"transcript.text.%b"}\n\n' % kind for kind in (b"delta", b"delta", b"done")]

    async def answer(call: Call) -> None:
        await call.start_stream("text/event-stream")
        for event in events:
            await call.chunk(event)
        await call.end()

    gateway = await start(1)
    gateway.replicas[0].answer = answer
    client = await gateway.connect()
    await client.send(upload(form((NAMED, MODEL.encode()), (FILE, b"RIFF"))))
    assert (await client.head())[0] == 200
    assert [piece async for piece in client.chunks()] == events
    assert outcomes(gateway) == {"ok": 1}


def outcomes(gateway: RunningGateway) -> dict[str, int]:
    return gateway.app.metrics.series["openai_audio", MODEL].outcomes


async def test_plain_text_answers_pass(start: Start) -> None:
    async def answer(call: Call) -> None:
        await call.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello")

    gateway = await start(1)
    gateway.replicas[0].answer = answer
    status, headers, text = await gateway.ask(upload(form((NAMED, MODEL.encode()), (FILE, b"RIFF"))))
    assert (status, headers["content-type"], text) == (200, "text/plain", b"hello")


async def test_a_form_above_the_cap_is_413_before_it_is_read(start: Start) -> None:
    gateway = await start(1, "limits: {max_body_bytes: 100000}\n")
    head, _, _ = upload(form((NAMED, MODEL.encode()), (FILE, b"x" * 200_000))).partition(b"\r\n\r\n")
    client = await gateway.connect()
    await client.send(head + b"\r\n\r\n")
    assert (await client.head())[0] == 413
    chunked = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: %b\r\n" % (PATH.encode(), TYPE)
    chunked += b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%b\r\n" % (60_000, b"x" * 60_000) * 2
    assert (await gateway.ask(chunked))[0] == 413
    assert not gateway.replicas[0].calls


async def test_a_malformed_form_gets_ollamas_own_answer(start: Start) -> None:
    async def own_400(call: Call) -> None:
        await call.json({"error": {"message": "failed to parse multipart form"}}, "400 Bad Request")

    gateway = await start(1)
    gateway.replicas[0].answer = own_400
    for body in (b"RIFF", form((NAMED, b"m"), end=b"")):
        status, _, text = await gateway.ask(upload(body))
        assert status == 400
        assert b"failed to parse" in text
    assert [call.body for call in gateway.replicas[0].calls] == [b"RIFF", form((NAMED, b"m"), end=b"")]


async def test_of_two_content_types_the_first_counts_as_in_go(start: Start) -> None:
    gateway = await start(1)
    gateway.replicas[0].answer = transcribe
    body = form((NAMED, MODEL.encode()), (FILE, b"RIFF"))
    other = form((NAMED, b"other:1b"), boundary=b"c") + body
    await gateway.ask(upload(body, "Content-Type: multipart/form-data; boundary=c"))
    await gateway.ask(upload(other, "Content-Type: multipart/form-data; boundary=c"))
    assert {model for _, model in gateway.app.metrics.series} == {MODEL, "none"}
