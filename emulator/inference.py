"""One inference request from its model's name to its last byte, in the order in which Ollama checks and waits."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from corral.emulator.ask import Ask, Rejected
from corral.emulator.breaking import show_error, strike
from corral.emulator.catalog import ModelSpec, calibration
from corral.emulator.cloud import Cloud, CloudRefusal
from corral.emulator.defaults import filled
from corral.emulator.dialects.base import JSON, Dialect
from corral.emulator.dialects.native import Native
from corral.emulator.faults import Fault, Faults, Moment
from corral.emulator.generation import Broken, Generation, Script, Struck
from corral.emulator.manifest import Entry
from corral.emulator.prefix import tokens_in
from corral.emulator.rig import Rig
from corral.emulator.runner import Job, Runner
from corral.emulator.script import script_for
from corral.emulator.store import Store
from corral.emulator.text import stamp, token_ids
from corral.emulator.websearch import Searching
from corral.emulator.wire import Exchange

TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; shorten the prompt, "
    "or increase the context length"
)

TOO_BIG = "model requires more system memory (9.6 GiB) than is available (1.2 GiB)"


class Engine(Protocol):
    """What produces tokens."""

    async def generate(self, generation: Generation, ask: Ask, runner: Runner) -> None:
        """Feed the generation until it is finished; raises what ``Generation.wait`` raises."""
        ...

    def script(self, ask: Ask, model: ModelSpec) -> Script:
        """What is known beforehand of the answer."""
        ...


@dataclass(slots=True)
class Counters:
    """What the emulator counts, for its operator."""

    requests: int = 0
    inferences: int = 0
    completed: int = 0
    aborted: int = 0
    failed: int = 0
    cloud: int = 0
    """Inferences that the cloud made."""
    search_chats: int = 0
    """Chats that this emulator asked of itself because a model wanted to search."""


class EmulatedEngine:
    """Tokens at the speed of the emulated GPU."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    def script(self, ask: Ask, model: ModelSpec) -> Script:
        return script_for(ask, model)

    async def generate(self, generation: Generation, ask: Ask, runner: Runner) -> None:
        cache = self._rig.cache(runner)
        slot, cached = cache.begin(ask.prompt)
        prompt_tokens = tokens_in(ask.prompt)
        ticker = self._rig.ticker(runner)
        sequence = ticker.add(generation, prompt_tokens - cached, prompt_tokens)
        connection = generation.exchange.connection

        def pause(paused: bool) -> None:
            sequence.paused = paused

        connection.on_paused = pause
        try:
            await generation.wait()
        finally:
            connection.on_paused = None
            ticker.remove(generation)
            said = "".join(generation.script.pieces[: generation.made])
            cache.end(slot, ask.prompt + said.encode("utf-8", "surrogatepass"))


class Inference:
    """Runs inference requests of one emulator."""

    def __init__(
        self, rig: Rig, store: Store, engine: Engine, faults: Faults, counters: Counters, cloud: Cloud
    ) -> None:
        self._rig = rig
        self._store = store
        self._cloud = cloud
        self._engine = engine
        self._faults = faults
        self._counters = counters
        self._numbers = iter(range(1, 1 << 62))

    def job(self, entry: Entry, ask: Ask) -> Job:
        return Job(next(self._numbers), entry.spec, entry.name, ask.signature, ask.keep_alive_s, entry.digest)

    def count(self) -> None:
        """An inference that does not come through ``run`` (embeddings)."""
        self._counters.inferences += 1

    def enter_cloud(self) -> None:
        """Raises CloudRefusal where the cloud is not to be had."""
        self._cloud.check()
        self._counters.cloud += 1

    def check_weights(self, job: Job) -> None:
        """Rejected where they would have to be loaded and their file is gone."""
        shelf = self._store.shelf
        if not self._rig.is_loaded(job) and shelf.blob_bytes(job.key) is None:
            raise Rejected(500, f"stat {shelf.blob_path(job.key)}: no such file or directory")

    async def run(self, exchange: Exchange, ask: Ask, entry: Entry, dialect: Dialect) -> None:
        """Answer one chat or generate request whose model exists."""
        self._counters.inferences += 1
        began = time.monotonic()
        model = entry.spec
        try:
            ask = filled(ask, entry.recipe)
            if not _is_unload(ask, dialect):
                _check(ask, model)
            if model.remote:
                await self._run_in_cloud(exchange, ask, model, dialect, began)
            else:
                await self._run_here(exchange, ask, self.job(entry, ask), dialect, began)
        except Rejected as rejected:
            self._counters.failed += 1
            exchange.answer(rejected.status, dialect.error(rejected.status, rejected.message), dialect.whole_type)
        except CloudRefusal as refusal:
            self._counters.failed += 1
            exchange.answer(refusal.status, refusal.body, JSON)

    async def _run_here(self, exchange: Exchange, ask: Ask, job: Job, dialect: Dialect, began: float) -> None:
        if isinstance(dialect, Native) and _is_unload(ask, dialect):
            self._rig.expire(job.key)
            exchange.answer(200, dialect.only_done("unload", _now()), JSON)
            return
        only_loads = ask.empty and isinstance(dialect, Native)
        fault = None if only_loads else self._faults.take(Moment.RUN, exchange.path, ask.model)
        if not self._rig.is_loaded(job) and self._faults.take(Moment.LOAD, exchange.path, ask.model) is not None:
            raise Rejected(500, TOO_BIG)
        self.check_weights(job)
        try:
            runner = await self._rig.runner(job)
            loaded = time.monotonic()
            if not self._answered_without_tokens(exchange, ask, dialect, runner):
                await self._rig.slot(job)
                generation = self._generation(exchange, ask, job.model, dialect, fault)
                slot_at = time.monotonic()
                await self._generate(generation, ask, runner, dialect, (began, loaded, slot_at))
        finally:
            self._rig.done(job, leak_slot=fault is not None and fault.kind == "slot-leak")

    def _answered_without_tokens(self, exchange: Exchange, ask: Ask, dialect: Dialect, runner: Runner) -> bool:
        if tokens_in(ask.prompt) > runner.context_tokens and not (ask.truncate and ask.shift):
            raise Rejected(400, TOO_LONG)
        if not isinstance(dialect, Native) or not (ask.empty or ask.debug_render):
            return False
        if ask.empty:
            exchange.answer(200, dialect.only_done("load", _now()), JSON)
        else:
            exchange.answer(200, dialect.rendered(ask.prompt, ask.images, _now()), JSON)
        return True

    async def _run_in_cloud(
        self, exchange: Exchange, ask: Ask, model: ModelSpec, dialect: Dialect, began: float
    ) -> None:
        self.enter_cloud()
        if ask.empty and isinstance(dialect, Native):
            exchange.answer(200, dialect.only_done("load", _now()), JSON)
            return
        generation = self._generation(exchange, ask, model, dialect, None)
        await self._rig.sleep(calibration()["cloud"]["first_token_ms"] / 1e3)
        ticker = self._rig.ticker(None)
        ticker.add(generation, tokens_in(ask.prompt), 0)
        try:
            await generation.wait()
            self._close(generation, ask, dialect, (began, began, began))
        finally:
            ticker.remove(generation)

    def _generation(
        self, exchange: Exchange, ask: Ask, model: ModelSpec, dialect: Dialect, fault: Fault | None
    ) -> Generation:
        generation = Generation(
            exchange,
            dialect,
            self._engine.script(ask, model),
            stream=ask.stream,
            prompt_tokens=tokens_in(ask.prompt) + len(ask.context),
            logprobs=ask.top_logprobs if ask.logprobs else None,
        )
        if fault is not None and fault.kind not in ("slot-leak", "data-after-end"):
            generation.strike_at(fault, fault.after)
        elif fault is not None:
            generation.mark(fault)
        return generation

    async def _generate(
        self,
        generation: Generation,
        ask: Ask,
        runner: Runner,
        dialect: Dialect,
        times: tuple[float, float, float],
    ) -> None:
        try:
            fault = generation.struck
            if fault is not None and fault.after == 0 and fault.kind not in ("slot-leak", "data-after-end"):
                raise Struck
            await self._engine.generate(generation, ask, runner)
        except Struck:
            self._counters.failed += 1
            await strike(generation, ask, runner, dialect, self._rig)
            return
        except Broken as broken:
            self._counters.failed += 1
            show_error(generation, ask, dialect, str(broken))
            return
        self._close(generation, ask, dialect, times)

    def _close(self, generation: Generation, ask: Ask, dialect: Dialect, times: tuple[float, float, float]) -> None:
        began, loaded, slot_at = times
        result = generation.result()
        now = time.monotonic()
        result.total_ns = _ns(now - began)
        result.load_ns = _ns(loaded - began)
        result.prompt_ns = _ns(generation.first_at - slot_at)
        result.decode_ns = _ns(generation.last_at - generation.first_at)
        if not ask.chat and not ask.raw:
            said = (result.thinking + result.text).encode("utf-8", "surrogatepass")
            result.context = [*ask.context, *token_ids(ask.prompt), *token_ids(said)]
        self._counters.completed += 1
        exchange = generation.exchange
        if isinstance(dialect, Searching) and dialect.hold(result):
            return
        extra = b""
        fault = generation.struck
        if fault is not None and fault.kind == "data-after-end":
            extra = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nunasked"
        if not ask.stream:
            exchange.answer(200, dialect.whole(result, _now()), dialect.whole_type)
        else:
            generation.begin()
            exchange.send(dialect.closing(result, _now()) + b"0\r\n\r\n")
            exchange.finish()
        if extra:
            exchange.send(extra)


def _is_unload(ask: Ask, dialect: Dialect) -> bool:
    return ask.empty and ask.keep_alive_s == 0 and isinstance(dialect, Native)


def _check(ask: Ask, model: ModelSpec) -> None:
    """What Ollama refuses before it schedules."""
    if model.embedding_only:
        raise Rejected(400, f'"{ask.model}" does not support {"chat" if ask.chat else "generate"}')
    if ask.think and not ask.relax_thinking and "thinking" not in model.capabilities:
        raise Rejected(400, f'"{ask.model}" does not support thinking')
    if ask.tools and "tools" not in model.capabilities:
        raise Rejected(400, f"registry.ollama.ai/library/{model.name} does not support tools")


def _now() -> bytes:
    return stamp(time.time_ns())


def _ns(seconds: float) -> int:
    return max(1, int(seconds * 1e9))
