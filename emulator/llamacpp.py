"""Real tokens of a real model on the CPU, through the optional package ``xllamacpp``."""

from __future__ import annotations

from pathlib import Path

from corral.emulator.ask import Ask
from corral.emulator.catalog import ModelSpec
from corral.emulator.generation import Generation, Script
from corral.emulator.rig import Rig
from corral.emulator.runner import Runner
from corral.errors import OperatorError


class LlamaEngine:
    """Not there yet."""

    def __init__(self, gguf: Path, rig: Rig, slots: int, threads: int) -> None:
        raise OperatorError("--engine llamacpp is not available in this build")

    def script(self, ask: Ask, model: ModelSpec) -> Script:
        raise NotImplementedError

    async def generate(self, generation: Generation, ask: Ask, runner: Runner) -> None:
        raise NotImplementedError
