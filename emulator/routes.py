"""The inference routes: each dialect's request becomes an Ask, each answer is rendered in the same dialect."""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from corral.emulator import gpu
from corral.emulator.ask import Ask, Rejected, keep_alive_of, options_of, parse, signature_of, text_of, wrong_type
from corral.emulator.catalog import ModelSpec, model_named
from corral.emulator.dialects import anthropic, native, openai, responses
from corral.emulator.dialects.base import JSON, PLAIN_JSON, Dialect
from corral.emulator.faults import Faults, Moment
from corral.emulator.generation import LOST
from corral.emulator.inference import Inference
from corral.emulator.listing import remote_of
from corral.emulator.prefix import tokens_in
from corral.emulator.rig import Rig
from corral.emulator.settings import Settings
from corral.emulator.store import Entry, Store
from corral.emulator.text import to_json, vector
from corral.emulator.wire import Exchange
from corral.model import is_cloud_model, normalise_model

_ErrorBody = Callable[[int, str], bytes]


class InferenceRoutes:
    """POST routes that run a model."""

    def __init__(
        self, settings: Settings, store: Store, rig: Rig, inference: Inference, faults: Faults, random: Random
    ) -> None:
        self._settings = settings
        self._store = store
        self._rig = rig
        self._inference = inference
        self._faults = faults
        self._random = random

    async def chat(self, exchange: Exchange) -> None:
        try:
            body = parse(exchange.body)
            ask = native.read_chat(body)
            if not ask.model:
                raise Rejected(400, "model is required")
            model, remote = self._find(ask.model, f"model '{ask.model}' not found")
        except Rejected as rejected:
            exchange.answer(rejected.status, native.error_body(rejected.message), JSON)
            return
        dialect = native.Native(ask.model, chat=True, tools_early=self._legacy, remote=remote)
        await self._inference.run(exchange, ask, model, dialect)

    async def generate(self, exchange: Exchange) -> None:
        try:
            ask = native.read_generate(parse(exchange.body))
            model, remote = self._find(ask.model, f"model '{ask.model}' not found")
        except Rejected as rejected:
            exchange.answer(rejected.status, native.error_body(rejected.message), JSON)
            return
        dialect = native.Native(ask.model, chat=False, tools_early=self._legacy, remote=remote)
        await self._inference.run(exchange, ask, model, dialect)

    async def openai_chat(self, exchange: Exchange) -> None:
        await self._openai(exchange, openai.read_chat, chat=True)

    async def openai_completion(self, exchange: Exchange) -> None:
        await self._openai(exchange, openai.read_completion, chat=False)

    async def _openai(self, exchange: Exchange, read: Callable[[dict[str, Any]], Ask], *, chat: bool) -> None:
        def dialect(ask: Ask, body: dict[str, Any]) -> Dialect:
            number = self._random.randrange(999)
            usage = openai.wants_usage(body)
            created = int(time.time())
            return openai.OpenAI(ask.model, created, number, chat=chat, usage=usage, legacy=self._legacy)

        await self._foreign(exchange, read, dialect, openai.error_body)

    async def responses(self, exchange: Exchange) -> None:
        def dialect(ask: Ask, body: dict[str, Any]) -> Dialect:
            return responses.Responses(ask.model, int(time.time()), self._random.randrange(1_000_000), body)

        await self._foreign(exchange, responses.read_request, dialect, openai.error_body)

    async def messages(self, exchange: Exchange) -> None:
        number = f"{self._random.getrandbits(96):024x}"

        def dialect(ask: Ask, body: dict[str, Any]) -> Dialect:
            return anthropic.Anthropic(ask.model, number)

        def error(status: int, message: str) -> bytes:
            return anthropic.error_body(status, message, f"req_{number}")

        await self._foreign(exchange, anthropic.read_messages, dialect, error)

    async def _foreign(
        self,
        exchange: Exchange,
        read: Callable[[dict[str, Any]], Ask],
        dialect_for: Callable[[Ask, dict[str, Any]], Dialect],
        error: _ErrorBody,
    ) -> None:
        """A dialect that Ollama translates to its own before it looks for the model."""
        try:
            body = parse(exchange.body)
            ask = read(body)
        except Rejected as rejected:
            exchange.answer(rejected.status, error(rejected.status, rejected.message), JSON)
            return
        try:
            if not ask.model:
                raise Rejected(400, "model is required")
            model, _ = self._find(ask.model, f"model '{ask.model}' not found")
        except Rejected as rejected:
            exchange.answer(rejected.status, error(rejected.status, rejected.message) + b"\n", PLAIN_JSON)
            return
        if "thinking" not in model.capabilities:
            ask = replace(ask, think=None)
        await self._inference.run(exchange, ask, model, dialect_for(ask, body))

    # -- embeddings -----------------------------------------------------------------------------------------------

    async def embed(self, exchange: Exchange) -> None:
        began = time.monotonic()
        try:
            body = parse(exchange.body)
            inputs = _inputs(body)
            vectors, tokens, load_ns = await self._embed(exchange, body, inputs, unit=True)
        except Rejected as rejected:
            exchange.answer(rejected.status, native.error_body(rejected.message), JSON)
            return
        answer: dict[str, Any] = {"model": text_of(body, "model"), "embeddings": _cut(vectors, body)}
        if inputs:
            total_ns = max(1, int((time.monotonic() - began) * 1e9))
            answer |= {"total_duration": total_ns, "load_duration": load_ns, "prompt_eval_count": tokens}
        exchange.answer(200, to_json(answer), JSON)

    async def embeddings(self, exchange: Exchange) -> None:
        try:
            body = parse(exchange.body)
            prompt = text_of(body, "prompt")
            if not text_of(body, "model"):
                raise Rejected(400, "model is required")
            vectors, *_ = await self._embed(exchange, body, [prompt] if prompt else [], unit=False)
        except Rejected as rejected:
            exchange.answer(rejected.status, native.error_body(rejected.message), JSON)
            return
        exchange.answer(200, to_json({"embedding": vectors[0] if vectors else []}), JSON)

    async def openai_embeddings(self, exchange: Exchange) -> None:
        try:
            body = parse(exchange.body)
            encoding = text_of(body, "encoding_format")
            if encoding.lower() not in ("", "float", "base64"):
                supported = "Supported values: ['float', 'base64']."
                raise Rejected(400, f"Invalid value for 'encoding_format' = {encoding}. {supported}")
            inputs = [""] if body.get("input") == "" else _inputs(body)
            if not inputs:
                raise Rejected(400, "invalid input")
        except Rejected as rejected:
            exchange.answer(rejected.status, openai.error_body(rejected.status, rejected.message), JSON)
            return
        try:
            vectors, tokens, _ = await self._embed(exchange, body, inputs, unit=True)
        except Rejected as rejected:
            exchange.answer(rejected.status, openai.error_body(rejected.status, rejected.message) + b"\n", PLAIN_JSON)
            return
        data = [
            {
                "object": "embedding",
                "embedding": _packed(found) if encoding.lower() == "base64" else found,
                "index": index,
            }
            for index, found in enumerate(_cut(vectors, body))
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        answer = {"object": "list", "data": data, "model": text_of(body, "model"), "usage": usage}
        exchange.answer(200, to_json(answer) + b"\n", PLAIN_JSON)

    async def _embed(
        self, exchange: Exchange, body: dict[str, Any], inputs: list[str], *, unit: bool
    ) -> tuple[list[list[float]], int, int]:
        name = text_of(body, "model")
        missing = f'model "{name}" not found, try pulling it first' if name else "model '' not found"
        model, _ = self._find(name, missing)
        ask = Ask(
            model=name,
            prompt=b"",
            stream=False,
            chat=False,
            keep_alive_s=keep_alive_of(body.get("keep_alive")),
            signature=signature_of(options_of(body), True),
        )
        job = self._inference.job(model, model.name, ask)
        began = time.monotonic()
        fault = self._faults.take(Moment.RUN, exchange.path, name)
        self._inference.count()
        try:
            runner = await self._rig.runner(job)
            load_ns = max(1, int((time.monotonic() - began) * 1e9))
            texts = [text.encode("utf-8", "surrogatepass") for text in inputs]
            tokens = sum(tokens_in(text) for text in texts)
            if texts:
                await self._rig.slot(job)
                seconds = sum(gpu.embedding_s(self._settings.gpu, model, tokens_in(text)) for text in texts)
                await self._rig.sleep(seconds / runner.slots)
            if fault is not None:
                self._strike(fault.kind, exchange, runner)
            return [vector(text, model.embedding_length, unit=unit) for text in texts], tokens, load_ns
        finally:
            self._rig.done(job, leak_slot=fault is not None and fault.kind == "slot-leak")

    def _strike(self, kind: str, exchange: Exchange, runner: Any) -> None:
        """Embeddings are one answer: a fault in the middle of it is a failure before the first byte."""
        if kind == "slot-leak":
            return
        if kind == "crash-runner":
            self._rig.crash(runner, LOST)
        elif kind == "oom":
            self._rig.out_of_memory()
        elif kind in ("reset-mid-stream", "truncate", "bad-chunk"):
            exchange.connection.reset()
        raise Rejected(500, LOST)

    # -- models ---------------------------------------------------------------------------------------------------

    @property
    def _legacy(self) -> bool:
        return self._settings.version_numbers < (0, 30)

    def _find(self, name: str, missing: str) -> tuple[ModelSpec, dict[str, str]]:
        entry = self._store.get(name) if name else None
        if entry is not None:
            return entry.spec, remote_of(entry)
        plain = normalise_model(name) if name else ""
        cloud = model_named(plain) if is_cloud_model(plain) else None
        if cloud is None:
            raise Rejected(404, missing)
        return cloud, remote_of(Entry(plain, cloud, 0.0))


def _inputs(body: dict[str, Any]) -> list[str]:
    given = body.get("input")
    if given is None or given == "":
        return []
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and all(isinstance(text, str) for text in given):
        return given
    raise Rejected(400, "invalid input type") if not isinstance(given, dict) else wrong_type("input", given, "[]string")


def _cut(vectors: list[list[float]], body: dict[str, Any]) -> list[list[float]]:
    dimensions = body.get("dimensions")
    if not isinstance(dimensions, int) or dimensions <= 0:
        return vectors
    return [values[:dimensions] for values in vectors]


def _packed(values: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
