"""The routes of embeddings: one answer, however many inputs."""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from corral.emulator import gpu
from corral.emulator.ask import Ask, Rejected, flag, keep_alive_of, options_of, parse, signature_of, text_of
from corral.emulator.cloud import CloudRefusal
from corral.emulator.defaults import filled
from corral.emulator.dialects import native, openai
from corral.emulator.dialects.base import JSON, PLAIN_JSON
from corral.emulator.faults import Fault, Faults, Moment
from corral.emulator.generation import LOST
from corral.emulator.inference import Inference
from corral.emulator.manifest import Entry
from corral.emulator.prefix import BYTES_PER_TOKEN, tokens_in
from corral.emulator.rig import Rig
from corral.emulator.runner import Runner
from corral.emulator.settings import Settings
from corral.emulator.store import Store
from corral.emulator.text import to_json, unit_of, vector
from corral.emulator.wire import Exchange


class EmbeddingRoutes:
    """``/api/embed``, ``/api/embeddings`` and ``/v1/embeddings``."""

    def __init__(self, settings: Settings, store: Store, rig: Rig, inference: Inference, faults: Faults) -> None:
        self._settings = settings
        self._store = store
        self._rig = rig
        self._inference = inference
        self._faults = faults

    async def embed(self, exchange: Exchange) -> None:
        began = time.monotonic()
        try:
            body = parse(exchange.body)
            inputs = _inputs(body)
            vectors, tokens, load_ns = await self._embed(exchange, body, inputs, unit=True)
        except Rejected as rejected:
            exchange.answer(rejected.status, native.error_body(rejected.message), JSON)
            return
        except CloudRefusal as refusal:
            exchange.answer(refusal.status, refusal.body, JSON)
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
        except CloudRefusal as refusal:
            exchange.answer(refusal.status, refusal.body, JSON)
            return
        exchange.answer(200, to_json({"embedding": vectors[0] if vectors else []}), JSON)

    async def openai_embeddings(self, exchange: Exchange) -> None:
        try:
            body = parse(exchange.body)
            inputs = _openai_inputs(body)
        except Rejected as rejected:
            exchange.answer(rejected.status, openai.error_body(rejected.status, rejected.message), JSON)
            return
        try:
            vectors, tokens, _ = await self._embed(exchange, body, inputs, unit=True)
        except Rejected as rejected:
            exchange.answer(rejected.status, openai.error_body(rejected.status, rejected.message) + b"\n", PLAIN_JSON)
            return
        except CloudRefusal as refusal:
            exchange.answer(refusal.status, refusal.body, JSON)
            return
        packed = text_of(body, "encoding_format").lower() == "base64"
        data = [
            {"object": "embedding", "embedding": _packed(found) if packed else found, "index": index}
            for index, found in enumerate(_cut(vectors, body))
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        answer = {"object": "list", "data": data, "model": text_of(body, "model"), "usage": usage}
        exchange.answer(200, to_json(answer) + b"\n", PLAIN_JSON)

    async def _embed(
        self, exchange: Exchange, body: dict[str, Any], inputs: list[str], *, unit: bool
    ) -> tuple[list[list[float]], int, int]:
        """The vectors, the tokens of all inputs, and how long the model took to be there."""
        name = text_of(body, "model")
        entry = self._store.find(name)
        if entry is None:
            raise Rejected(404, f'model "{name}" not found, try pulling it first' if name else "model '' not found")
        began = time.monotonic()
        self._inference.count()
        texts = [text.encode("utf-8", "surrogatepass") for text in inputs]
        ask = Ask(
            model=name,
            prompt=b"",
            stream=False,
            chat=False,
            keep_alive_s=keep_alive_of(body.get("keep_alive")),
            signature=signature_of(options_of(body), True),
        )
        truncate = flag(body, "truncate", True)
        async with self._model(exchange, entry, ask, wants_slot=bool(texts)) as runner:
            load_ns = max(1, int((time.monotonic() - began) * 1e9))
            slots, context = (1, entry.spec.context_length) if runner is None else (runner.slots, runner.context_tokens)
            texts = [_fitting(text, context, truncate=truncate) for text in texts]
            tokens = [tokens_in(text) for text in texts]
            seconds = sum(gpu.embedding_s(self._settings.gpu, entry.spec, count) for count in tokens)
            await self._rig.sleep(seconds / slots)
        return [vector(text, entry.spec.embedding_length, unit=unit) for text in texts], sum(tokens), load_ns

    @asynccontextmanager
    async def _model(
        self, exchange: Exchange, entry: Entry, ask: Ask, *, wants_slot: bool
    ) -> AsyncIterator[Runner | None]:
        """Has the model loaded and, where there is work for it, a slot. None: it runs in the cloud."""
        if entry.spec.remote:
            self._inference.enter_cloud()
            yield None
            return
        job = self._inference.job(entry, filled(ask, entry.recipe))
        self._inference.check_weights(job)
        fault = self._faults.take(Moment.RUN, exchange.path, ask.model)
        try:
            runner = await self._rig.runner(job)
            if wants_slot:
                await self._rig.slot(job)
            yield runner
            if fault is not None:
                self._strike(fault, exchange, runner)
        finally:
            self._rig.done(job, leak_slot=fault is not None and fault.kind == "slot-leak")

    def _strike(self, fault: Fault, exchange: Exchange, runner: Runner) -> None:
        """Embeddings are one answer: a fault in the middle of it is a failure before the first byte."""
        if fault.kind == "slot-leak":
            return
        if fault.kind == "crash-runner":
            self._rig.crash(runner, LOST)
        elif fault.kind == "oom":
            self._rig.out_of_memory()
        elif fault.kind in ("reset-mid-stream", "truncate", "bad-chunk"):
            exchange.connection.reset()
        raise Rejected(500, LOST)


def _inputs(body: dict[str, Any]) -> list[str]:
    given = body.get("input")
    if given is None or given == "":
        return []
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and all(isinstance(text, str) for text in given):
        return given
    raise Rejected(400, "invalid input type")


def _fitting(text: bytes, context: int, *, truncate: bool) -> bytes:
    """What the model sees of a text; Rejected where it may not be cut."""
    if tokens_in(text) <= context:
        return text
    if not truncate:
        raise Rejected(400, "the input length exceeds the context length")
    return text[: context * BYTES_PER_TOKEN]


def _openai_inputs(body: dict[str, Any]) -> list[str]:
    encoding = text_of(body, "encoding_format")
    if encoding.lower() not in ("", "float", "base64"):
        supported = "Supported values: ['float', 'base64']."
        raise Rejected(400, f"Invalid value for 'encoding_format' = {encoding}. {supported}")
    inputs = [""] if body.get("input") == "" else _inputs(body)
    if not inputs:
        raise Rejected(400, "invalid input")
    return inputs


def _cut(vectors: list[list[float]], body: dict[str, Any]) -> list[list[float]]:
    dimensions = body.get("dimensions")
    if not isinstance(dimensions, int) or dimensions <= 0:
        return vectors
    return [unit_of(values[:dimensions]) for values in vectors]


def _packed(values: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
