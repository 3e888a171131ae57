"""Ollama's cloud behind the gateway: one account for all, no slot, and the cloud's own answers."""

from __future__ import annotations

import json

import pytest

from tests.gateway.wire.conftest import Start
from tests.gateway.wire.harness import RunningGateway, post, until
from tests.gateway.wire.replica import MODEL, Call

STUB = "far:latest"
_LOCAL: dict[str, object] = {
    "name": MODEL,
    "model": MODEL,
    "modified_at": "2026-08-21T18:48:11.123456789Z",
    "size": 4920753328,
    "digest": "a" * 64,
    "details": {},
}
_REMOTE = {"remote_model": "far", "remote_host": "https://ollama.com:443", "size": 400, "digest": "b" * 64}
TAGS: dict[str, object] = {"models": [_LOCAL, {**_LOCAL, **_REMOTE, "name": STUB, "model": STUB}]}
CHAT_STUB = json.dumps({"model": STUB, "messages": [{"role": "user", "content": "hi"}], "stream": False}).encode()
CHAT_CLOUD = CHAT_STUB.replace(b'"far:latest"', b'"far:480b-cloud"')

ACCOUNT = {
    "me": post("/api/me", b""),
    "me in disguise": post("/api/%6de", b"{}"),
    "signout": post("/api/signout", b""),
    "keys": b"DELETE /api/user/keys/c3NoLWVkMjU1MTk HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "web search": post("/api/experimental/web_search", b'{"query":"x","model":"llama3.1:8b"}'),
    "web fetch": post("/api/experimental/web_fetch", b'{"url":"http://x"}'),
    "a model of the cloud": b"GET /v1/models/far:480b-cloud HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "show of a cloud model": post("/api/show", b'{"model":"other:cloud","verbose":true}'),
    "show of a stub": post("/api/show", b'{"model":"far","verbose":true}'),
    "chat with a stub": post("/api/chat", CHAT_STUB),
    "letting go of a stub": post("/api/generate", b'{"model":"far","keep_alive":0}'),
    "chat with a cloud model": post("/api/chat", CHAT_CLOUD),
    "openai chat": post("/v1/chat/completions", CHAT_CLOUD),
    "responses": post("/v1/responses", CHAT_CLOUD),
    "messages": post("/v1/messages", CHAT_CLOUD),
}


async def gateway_with_stubs(start: Start, count: int = 3, extra: str = "", slots: int = 1) -> RunningGateway:
    """Replicas that answer anything, each with its own name."""
    gateway = await start(count, extra, slots)
    for number, replica in enumerate(gateway.replicas):
        replica.tags = TAGS

        async def answer(call: Call, name: str = f"account {number}") -> None:
            await call.json({"name": name, "done": True})

        replica.answer = answer
    await gateway.app.poller.refresh(tags=True, ps=False, deadline_s=5.0)
    return gateway


@pytest.mark.parametrize("name", list(ACCOUNT))
async def test_one_account_answers_for_all(start: Start, name: str) -> None:
    gateway = await gateway_with_stubs(start)
    for _ in range(5):
        status, headers, body = await gateway.ask(ACCOUNT[name])
        assert (status, json.loads(body)["name"]) == (200, "account 0")
        assert headers["x-corral-replica"] == "r0"
    gateway.app.gateway.set_enabled("r0", False)
    assert json.loads((await gateway.ask(ACCOUNT[name]))[2])["name"] == "account 1"
    gateway.assert_nothing_held()


@pytest.mark.parametrize("extra", ["", "placement: {enabled: true}\n"])
async def test_cloud_requests_run_beside_full_slots_and_load_nothing(start: Start, extra: str) -> None:
    gateway = await gateway_with_stubs(start, 1, extra)
    for replica in gateway.replicas:
        replica.answer = Call.gone
    names = ["chat with a stub"] * 3 + ["chat with a cloud model"] * 3 + ["me"] * 3
    clients = [await gateway.connect() for _ in names]
    for client, name in zip(clients, names, strict=True):
        await client.send(ACCOUNT[name])
    await until(lambda: len(gateway.replicas[0].calls) == len(names))
    assert {call.line.split()[1] for call in gateway.replicas[0].calls} == {"/api/chat", "/api/me"}
    assert all(call.body in (CHAT_STUB, CHAT_CLOUD, b"") for call in gateway.replicas[0].calls), "no load of its own"
    assert gateway.states[0].inflight_by_model == {}
    assert (gateway.states[0].inflight, gateway.states[0].changing) == (len(names), None)


@pytest.mark.parametrize("name", ["chat with a stub", "chat with a cloud model", "me"])
@pytest.mark.parametrize("status", ["503 Service Unavailable", "500 Internal Server Error", "401 Unauthorized"])
async def test_what_the_cloud_says_is_the_answer_and_no_other_account_is_asked(
    start: Start, name: str, status: str
) -> None:
    async def answer(call: Call) -> None:
        await call.json({"error": "model runner has unexpectedly stopped"}, status)

    gateway = await gateway_with_stubs(start)
    gateway.replicas[0].answer = answer
    for _ in range(7):
        found, _, body = await gateway.ask(ACCOUNT[name])
        assert (found, json.loads(body)) == (int(status[:3]), {"error": "model runner has unexpectedly stopped"})
    assert [len(replica.calls) for replica in gateway.replicas] == [7, 0, 0]
    assert gateway.states[0].health.value == "up"


async def test_a_stream_of_the_cloud_that_breaks_says_so_and_blames_nobody(start: Start) -> None:
    async def answer(call: Call) -> None:
        await call.start_stream()
        await call.line_of(done=False)
        await call.end()

    gateway = await gateway_with_stubs(start)
    gateway.replicas[0].answer = answer
    for _ in range(7):
        status, _, body = await gateway.ask(post("/api/chat", CHAT_CLOUD))
        assert status == 200
        assert "error" in json.loads(body.splitlines()[-1])
    assert gateway.states[0].health.value == "up"
    assert (await gateway.ask(ACCOUNT["me"]))[1]["x-corral-replica"] == "r0"


async def test_a_replica_that_dies_over_a_cloud_request_leaves_it_to_the_next_account(start: Start) -> None:
    async def reset(call: Call) -> None:
        call.reset()
        raise ConnectionResetError

    gateway = await gateway_with_stubs(start)
    gateway.replicas[0].answer = reset
    for name in ("chat with a cloud model", "web search", "me"):
        assert json.loads((await gateway.ask(ACCOUNT[name]))[2])["name"] == "account 1"


@pytest.mark.parametrize("name", ["signout", "keys"])
async def test_nobody_is_signed_out_in_anothers_place(start: Start, name: str) -> None:
    async def reset(call: Call) -> None:
        call.reset()
        raise ConnectionResetError

    gateway = await gateway_with_stubs(start)
    await gateway.ask(ACCOUNT["me"])  # leaves an idle connection, which is not taken for this
    connections = gateway.replicas[0].connections
    gateway.replicas[0].answer = reset
    assert (await gateway.ask(ACCOUNT[name]))[0] == 502
    assert [len(replica.calls) for replica in gateway.replicas] == [2, 0, 0]
    assert gateway.replicas[0].connections > connections
    await gateway.replicas[0].stop()
    assert (await gateway.ask(ACCOUNT[name]))[0] == 502, "nor while it is not known yet that it is down"
    assert [len(replica.calls) for replica in gateway.replicas] == [2, 0, 0]


@pytest.mark.parametrize(
    "line", ["GET /api/me", "GET /api/signout", "POST /api/user/keys/x", "DELETE /api/user/keys", "PUT /api/me"]
)
async def test_other_methods_get_ollamas_own_answer(start: Start, line: str) -> None:
    async def answer(call: Call) -> None:
        await call.json({"saw": call.line}, "405 Method Not Allowed")

    gateway = await gateway_with_stubs(start, 1)
    gateway.replicas[0].answer = answer
    status, _, body = await gateway.ask(f"{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
    assert (status, json.loads(body)["saw"]) == (405, f"{line} HTTP/1.1")


async def test_authorisation_for_the_cloud_reaches_the_replica(start: Start) -> None:
    gateway = await gateway_with_stubs(start, 1)
    await gateway.ask(post("/v1/chat/completions", CHAT_CLOUD, "Authorization: Bearer k"))
    assert gateway.replicas[0].calls[0].header("authorization") == "Bearer k"
