"""Compressed bodies, transcriptions, searches of the replica itself, and the cloud."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from corral.emulator.cloud import account_at
from tests.emulator.child import emulator
from tests.emulator.inloop import InLoop, emulated

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MODEL, CLOUD, HEARS = "llama3.2:1b", "gpt-oss:120b-cloud", "gemma3n:e2b"
SEARCH = {"type": "web_search_20250305", "name": "web_search"}


# -- compressed bodies ------------------------------------------------------------------------------------------------


async def send(child: InLoop, path: str, body: bytes, encoding: str = "zstd") -> tuple[int, Any]:
    headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
    async with child.session.post(child.url + path, data=body, headers=headers) as answer:
        return answer.status, json.loads(await answer.read())


@pytest.mark.parametrize("frames", [1, 3])
async def test_a_compressed_body_is_read_as_a_plain_one(frames: int) -> None:
    async with emulated(MODEL) as child:
        body = json.dumps({"model": MODEL, "input": "hi", "max_output_tokens": 3}).encode()
        size = -(-len(body) // frames)
        packed = b"".join(zstd.compress(body[start : start + size]) for start in range(0, len(body), size))
        status, found = await send(child, "/v1/responses", packed)
        plain = await child.post("/v1/responses", model=MODEL, input="hi", max_output_tokens=3)
        assert status == 200
        assert found["output"][0]["content"] == plain["output"][0]["content"]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"model":"m"}', "invalid input: magic number mismatch"),
        (zstd.compress(b"x" * 1000)[:-4], "unexpected EOF"),
        (zstd.compress(b" " * ((20 << 20) + 1)), "http: request body too large"),
        (zstd.compress(b" " * 1000, options={zstd.CompressionParameter.window_log: 27}), None),
    ],
)
async def test_a_compressed_body_that_is_broken_or_too_large_is_a_400(body: bytes, error: str | None) -> None:
    async with emulated(MODEL) as child:
        status, found = await send(child, "/v1/chat/completions", body)
        assert status == 400
        assert error is None or found == {"error": error}


async def test_ollamas_own_routes_take_no_notice_of_an_encoding() -> None:
    async with emulated(MODEL) as child:
        body = json.dumps({"model": MODEL, "prompt": "x", "stream": False}).encode()
        assert (await send(child, "/api/generate", body))[0] == 200
        assert (await send(child, "/api/generate", zstd.compress(body)))[0] == 400


# -- transcriptions ---------------------------------------------------------------------------------------------------


def form(**fields: Any) -> aiohttp.FormData:
    made = aiohttp.FormData(default_to_multipart=True)
    for name, value in fields.items():
        made.add_field(name, value, filename="x.wav" if name == "file" else None)
    return made


async def transcribe(child: InLoop, **fields: Any) -> tuple[int, str, bytes]:
    async with child.session.post(f"{child.url}/v1/audio/transcriptions", data=form(**fields)) as answer:
        return answer.status, answer.headers["Content-Type"], await answer.read()


async def test_sound_becomes_text_by_a_model_that_is_loaded_for_it() -> None:
    async with emulated(HEARS) as child:
        status, kind, body = await transcribe(child, model=HEARS, file=b"RIFF" + bytes(64000))
        assert (status, kind) == (200, "application/json")
        text = json.loads(body)["text"]
        assert text
        assert child.app.rig.machine.loads == 1
        assert child.app.rig.machine.max_active == {HEARS: 1}
        again = await transcribe(child, model=HEARS, file=b"RIFF" + bytes(64000), response_format="text")
        assert again == (200, "text/plain", text.encode())
        other = await transcribe(child, model=HEARS, file=b"RIFF" + bytes(64001))
        assert json.loads(other[2])["text"] != text


def test_openais_client_transcribes() -> None:
    with (
        emulator("--model", HEARS, "--speed", "50") as child,
        openai.OpenAI(base_url=f"{child.url}/v1", api_key="none", max_retries=0) as client,
    ):
        assert client.audio.transcriptions.create(model=HEARS, file=("a.wav", b"RIFF")).text
        with pytest.raises(openai.NotFoundError):
            client.audio.transcriptions.create(model="no-such-model", file=("a.wav", b"RIFF"))


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"file": b"x"}, 400, "model is required"),
        ({"model": HEARS, "language": "de"}, 400, "file is required: http: no such file"),
        ({"model": HEARS, "file": b""}, 400, "audio file is empty"),
        ({"model": "no-such-model", "file": b"x"}, 404, "model 'no-such-model' not found"),
        ({"model": MODEL, "file": b"x"}, 400, f'"{MODEL}" does not support audio'),
    ],
)
async def test_a_form_that_lacks_something_is_refused_in_openais_shape(
    fields: dict[str, Any], status: int, message: str
) -> None:
    async with emulated(MODEL, HEARS) as child:
        found, _, body = await transcribe(child, **fields)
        error = json.loads(body)["error"]
        assert (found, error["message"]) == (status, message)
        assert list(error) == ["message", "type", "param", "code"]


async def test_what_is_no_form_is_refused() -> None:
    async with emulated(HEARS) as child:
        for kind, body, why in (
            ("application/json", b"{}", "request Content-Type isn't multipart/form-data"),
            ("multipart/form-data", b"", "no multipart boundary param in Content-Type"),
            ("multipart/form-data; boundary=b", b"--b\r\nContent-Dispo", "multipart: NextPart: EOF"),
            ("multipart/form-data; boundary=b", bytes((25 << 20) + 1), "http: request body too large"),
        ):
            url, headers = f"{child.url}/v1/audio/transcriptions", {"Content-Type": kind}
            async with child.session.post(url, data=io.BytesIO(body), headers=headers) as answer:
                message = (await answer.json())["error"]["message"]
                assert (answer.status, message) == (400, f"failed to parse multipart form: {why}")


async def test_older_versions_do_not_transcribe() -> None:
    async with emulated(HEARS, version="0.19.0") as child:
        assert (await transcribe(child, model=HEARS, file=b"x"))[0] == 404


# -- searches ---------------------------------------------------------------------------------------------------------


def messages(text: str = "Who won?", **fields: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "max_tokens": 20,
        "messages": [{"role": "user", "content": text}],
        "tools": [SEARCH],
    } | fields


async def test_a_search_is_made_by_the_replica_itself_which_asks_itself_how_to_go_on() -> None:
    async with emulated(MODEL, parallel=1) as child:
        found = await child.post("/v1/messages", **messages())
        use, result, text = found["content"]
        assert (use["type"], use["name"]) == ("server_tool_use", "web_search")
        assert (result["type"], result["tool_use_id"]) == ("web_search_tool_result", use["id"])
        assert {"type", "url", "title"} == set(result["content"][0])
        assert text["type"] == "text"
        assert found["stop_reason"] == "max_tokens"
        counters = child.app.counters
        assert (counters.search_chats, counters.inferences, counters.requests) == (1, 2, 2)
        assert child.app.rig.machine.max_active == {MODEL: 1}


@pytest.mark.parametrize(("wanted", "made"), [(2, 2), (3, 3), (9, 3)])
async def test_it_searches_three_times_at_most(wanted: int, made: int) -> None:
    async with emulated(MODEL) as child:
        found = await child.post("/v1/messages", **messages(f"search {wanted} times"))
        assert child.app.counters.search_chats == made
        kinds = [block["type"] for block in found["content"]]
        if wanted > made:
            assert kinds == ["server_tool_use", "web_search_tool_result"] * (made + 1)
            assert found["content"][-1]["content"]["error_code"] == "max_uses_exceeded"
            assert found["stop_reason"] == "end_turn"
        else:
            assert kinds == ["server_tool_use", "web_search_tool_result"] * made + ["text"]


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # Ollama leaves out a field that the client expects
def test_anthropics_client_reads_a_streamed_search() -> None:
    with (
        emulator("--model", MODEL, "--speed", "50") as child,
        anthropic.Anthropic(base_url=child.url, api_key="none", max_retries=0) as client,
        client.messages.stream(
            model=MODEL,
            max_tokens=20,
            messages=[{"role": "user", "content": "Who won?"}],
            tools=[{"type": "web_search_20250305", "name": "web_search"}],
        ) as stream,
    ):
        final = stream.get_final_message()
    assert [block.type for block in final.content] == ["server_tool_use", "web_search_tool_result", "text"]


async def test_a_client_that_leaves_ends_the_search() -> None:
    async with emulated(MODEL, fixed_tok_s=50.0, speed=1.0, load_s=0.01) as child:
        asking = asyncio.create_task(child.post("/v1/messages", **messages(max_tokens=100_000)))
        await child.until(lambda: child.app.counters.inferences == 2)
        await child.until(lambda: child.app.rig.active_streams() == 1)
        asking.cancel()
        await child.until(lambda: child.app.rig.active_streams() == 0)
        await child.until(lambda: child.app.counters.aborted == 2)


async def test_without_an_account_there_is_no_search() -> None:
    async with emulated(MODEL, account="") as child:
        found = await child.post("/v1/messages", **messages())
        assert found["content"][-1]["content"]["error_code"] == "unavailable"
        assert child.app.counters.search_chats == 0


# -- the cloud --------------------------------------------------------------------------------------------------------


async def test_models_of_the_cloud_take_no_runner_and_no_slot_whatever_is_asked_of_them() -> None:
    async with emulated(CLOUD, parallel=1) as child:
        await child.post("/api/copy", source=CLOUD, destination="stub")
        for name in (CLOUD, "stub", "other:cloud"):
            await child.post("/api/generate", model=name)
            await child.post("/api/generate", model=name, keep_alive=0)
            await child.post("/api/embed", model=name, input="x")
            assert "completion" in (await child.post("/api/show", model=name))["capabilities"]
        both = [child.post("/api/generate", model=CLOUD, prompt="x", stream=False) for _ in range(2)]
        assert all(found["done"] for found in await asyncio.gather(*both))
        machine = child.app.rig.machine
        assert (machine.loads, machine.max_active, child.app.counters.cloud) == (0, {}, 11)


@pytest.mark.parametrize("path", ["/api/chat", "/api/embed", "/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize(
    ("settings", "status", "error"),
    [
        ({"account": ""}, 401, "unauthorized"),
        ({"no_cloud": True}, 403, "ollama cloud is disabled: remote model is unavailable"),
    ],
)
async def test_a_cloud_that_is_not_to_be_had_is_refused_in_ollamas_shape(
    path: str, settings: dict[str, Any], status: int, error: str
) -> None:
    async with emulated(**settings) as child:
        body = {"model": CLOUD, "input": "x", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
        found, answer = await child.ask("POST", path, body)
        assert (found, answer["error"]) == (status, error)
        assert answer.get("signin_url", "").startswith("https://ollama.com/connect?name=") == (status == 401)


async def test_accounts_are_told_apart_and_one_can_sign_out() -> None:
    async with emulated(account="anna") as anna, emulated(account="otto") as otto:
        names = [(await child.post("/api/me"))["name"] for child in (anna, otto)]
        assert names == ["anna", "otto"]
        assert await anna.ask("POST", "/api/signout") == (200, None)
        status, found = await anna.ask("POST", "/api/me")
        assert (status, found["error"]) == (401, "unauthorized")
        assert (await otto.post("/api/me"))["name"] == "otto"


def test_homes_with_one_key_have_one_account(tmp_path: Path) -> None:
    homes = [tmp_path / name for name in "abc"]
    assert len({account_at(home) for home in homes}) == 3
    for home in homes[:2]:
        (home / ".ollama").mkdir(parents=True)
        (home / ".ollama" / "id_ed25519.pub").write_bytes(hashlib.sha256(b"key").digest())
    assert account_at(homes[0]) == account_at(homes[1]) != account_at(homes[2])
