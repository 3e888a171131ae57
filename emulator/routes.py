"""The inference routes: each dialect's request becomes an Ask, each answer is rendered in the same dialect."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from corral.emulator import audio, websearch
from corral.emulator.ask import Ask, Rejected, parse
from corral.emulator.cloud import Cloud
from corral.emulator.dialects import anthropic, native, openai, responses
from corral.emulator.dialects.base import JSON, PLAIN_JSON, Dialect
from corral.emulator.inference import Counters, Inference
from corral.emulator.listing import remote_of
from corral.emulator.manifest import Entry
from corral.emulator.settings import Settings
from corral.emulator.store import Store
from corral.emulator.wire import Exchange

_ErrorBody = Callable[[int, str], bytes]


class InferenceRoutes:
    """POST routes that run a model."""

    def __init__(
        self, settings: Settings, store: Store, inference: Inference, cloud: Cloud, counters: Counters, random: Random
    ) -> None:
        self._settings = settings
        self._store = store
        self._inference = inference
        self._cloud = cloud
        self._counters = counters
        self._random = random

    async def chat(self, exchange: Exchange) -> None:
        try:
            body = parse(exchange.body)
            ask = native.read_chat(body)
            if not ask.model:
                raise Rejected(400, "model is required")
            entry = self._find(ask.model)
        except Rejected as rejected:
            exchange.answer(rejected.status, native.error_body(rejected.message), JSON)
            return
        dialect = native.Native(ask.model, chat=True, tools_early=self._legacy, remote=remote_of(entry))
        await self._inference.run(exchange, ask, entry, dialect)

    async def generate(self, exchange: Exchange) -> None:
        try:
            ask = native.read_generate(parse(exchange.body))
            entry = self._find(ask.model)
        except Rejected as rejected:
            exchange.answer(rejected.status, native.error_body(rejected.message), JSON)
            return
        dialect = native.Native(ask.model, chat=False, tools_early=self._legacy, remote=remote_of(entry))
        await self._inference.run(exchange, ask, entry, dialect)

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

    async def transcriptions(self, exchange: Exchange) -> None:
        try:
            form = audio.read_form(exchange.headers.get("content-type", ""), exchange.body)
            ask = audio.ask_of(form)
        except Rejected as rejected:
            exchange.answer(rejected.status, openai.error_body(rejected.status, rejected.message), JSON)
            return
        dialect = audio.Transcription(form.response_format)
        try:
            entry = self._find(ask.model)
            if "audio" not in entry.spec.capabilities:
                raise Rejected(400, f'"{ask.model}" does not support audio')
        except Rejected as rejected:
            exchange.answer(rejected.status, dialect.error(rejected.status, rejected.message), PLAIN_JSON)
            return
        await self._inference.run(exchange, ask, entry, dialect)

    async def messages(self, exchange: Exchange) -> None:
        number = f"{self._random.getrandbits(96):024x}"
        searching: list[websearch.Search] = []

        def dialect(ask: Ask, body: dict[str, Any]) -> Dialect:
            if not anthropic.wants_search(body):
                return anthropic.Anthropic(ask.model, number)
            held = websearch.Searching(ask.model, number)
            searching.append(websearch.Search(exchange, ask, held, self._cloud))
            return held

        def error(status: int, message: str) -> bytes:
            return anthropic.error_body(status, message, f"req_{number}")

        await self._foreign(exchange, anthropic.read_messages, dialect, error)
        for search in searching:
            if search.dialect.held is not None:
                # the slot is free again: what follows are requests like any other
                await search.finish(search.dialect.held)
                self._counters.search_chats += search.follow_ups

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
            entry = self._find(ask.model)
        except Rejected as rejected:
            exchange.answer(rejected.status, error(rejected.status, rejected.message) + b"\n", PLAIN_JSON)
            return
        if "thinking" not in entry.spec.capabilities:
            ask = replace(ask, think=None)
        await self._inference.run(exchange, ask, entry, dialect_for(ask, body))

    @property
    def _legacy(self) -> bool:
        return self._settings.version_numbers < (0, 30)

    def _find(self, name: str) -> Entry:
        entry = self._store.find(name)
        if entry is None:
            raise Rejected(404, f"model '{name}' not found")
        return entry
