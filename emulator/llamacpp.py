"""Real tokens of a real model on the CPU, through the optional package ``xllamacpp``."""

from __future__ import annotations

import asyncio
import importlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from corral.emulator.ask import Ask
from corral.emulator.catalog import ModelSpec
from corral.emulator.generation import Generation, Script
from corral.emulator.rig import Rig
from corral.emulator.runner import Runner
from corral.emulator.text import stamp
from corral.errors import OperatorError

_DEFAULT_CONTEXT = 2048


class LlamaEngine:
    """One model file, loaded once, that answers for every model of the emulator."""

    def __init__(self, gguf: Path, rig: Rig, slots: int, threads: int, context: int | None) -> None:
        self._rig = rig
        self._server = _load(gguf, slots, threads, (context or _DEFAULT_CONTEXT) * slots)
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="llama")

    def script(self, ask: Ask, model: ModelSpec) -> Script:
        """Nothing is known beforehand of what a real model says."""
        return Script([])

    async def generate(self, generation: Generation, ask: Ask, runner: Runner) -> None:
        loop = asyncio.get_running_loop()
        stopped = threading.Event()

        def heard(part: dict[str, Any]) -> None:
            if not stopped.is_set():
                before = generation.made
                _pass_on(generation, part)
                self._rig.tokens += generation.made - before

        def listen(part: dict[str, Any]) -> bool:
            """Called in the model's thread; True ends the generation after this token."""
            loop.call_soon_threadsafe(heard, part)
            return stopped.is_set()

        work = loop.run_in_executor(self._pool, self._call, ask, listen)
        work.add_done_callback(lambda done: None if stopped.is_set() else _end(generation, done))
        self._rig.outside += 1
        try:
            await generation.wait()
        finally:
            self._rig.outside -= 1
            stopped.set()

    def _call(self, ask: Ask, listen: Callable[[dict[str, Any]], bool]) -> None:
        request: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, "cache_prompt": True}
        if ask.num_predict is not None:
            request |= {"max_tokens": ask.num_predict, "n_predict": ask.num_predict}
        if ask.stop:
            request["stop"] = list(ask.stop)
        request |= {name: value for name, value in ask.sampling if value is not None}
        if ask.raw:
            self._server.handle_completions(request | {"prompt": ask.prompt.decode("utf-8", "replace")}, listen)
            return
        messages = [{"role": role, "content": content} for role, content in ask.messages]
        shape = ask.format
        if shape == "json":
            request["response_format"] = {"type": "json_object"}
        elif shape is not None:
            request["response_format"] = {"type": "json_schema", "json_schema": {"schema": shape}}
        self._server.handle_chat_completions(request | {"messages": messages}, listen)


def _load(gguf: Path, slots: int, threads: int, context: int) -> Any:
    try:
        xllamacpp: Any = importlib.import_module("xllamacpp")
    except ImportError:
        raise OperatorError(
            "--engine llamacpp needs the package xllamacpp, which is not installed; install corral[engine]"
        ) from None
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(gguf)
    parameters.n_ctx = context
    parameters.n_parallel = slots
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    parameters.verbosity = -1
    parameters.port = 0
    try:
        return xllamacpp.Server(parameters)
    except (RuntimeError, ValueError) as error:
        raise OperatorError(f"--gguf {gguf}: llama.cpp cannot load it: {error}") from None


def _pass_on(generation: Generation, part: dict[str, Any]) -> None:
    """One event of llama.cpp's own OpenAI stream, or of its completion stream."""
    usage = part.get("usage")
    if usage:
        generation.prompt_tokens = usage["prompt_tokens"]
    if "error" in part:
        generation.failed(str(part["error"].get("message", part["error"])))
        return
    for choice in part.get("choices", []):
        text = choice.get("text") or (choice.get("delta") or {}).get("content")
        if text:
            generation.add(text, stamp(time.time_ns()))
        if choice.get("finish_reason"):
            generation.done_reason = choice["finish_reason"]
    if part.get("content"):
        generation.add(part["content"], stamp(time.time_ns()))
    if part.get("stop"):
        generation.done_reason = "length" if part.get("stop_type") == "limit" else "stop"


def _end(generation: Generation, done: asyncio.Future[None]) -> None:
    error = None if done.cancelled() else done.exception()
    if error is not None:
        generation.failed(str(error))
    else:
        generation.finished()
