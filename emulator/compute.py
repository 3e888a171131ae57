"""What the GPU of one Ollama works on, without a clock: a batch and a prompt cache for each model in its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from corral.emulator import gpu
from corral.emulator.batch import Batch
from corral.emulator.catalog import calibration
from corral.emulator.gpu import Speed
from corral.emulator.machine import MachineSpec
from corral.emulator.prefix import BYTES_PER_TOKEN, PrefixCache, Text
from corral.emulator.runner import Runner

T = TypeVar("T", bound=Text)


class Compute(Generic[T]):
    """The batches share the GPU: a step takes as many times as long as there are batches with work."""

    def __init__(self, spec: MachineSpec, common: Callable[[T, T], int], fixed_tok_s: float | None = None) -> None:
        self.slowdown = 1.0
        """Above 1 where the GPU is throttled."""
        self._spec = spec
        self._common = common
        self._fixed_tok_s = fixed_tok_s
        self._batches: dict[Runner, Batch] = {}
        self._caches: dict[Runner, PrefixCache[T]] = {}

    def batch(self, runner: Runner) -> Batch:
        batch = self._batches.get(runner)
        if batch is None:
            batch = self._batches[runner] = Batch(self.speed_of(runner))
        return batch

    def cache(self, runner: Runner) -> PrefixCache[T]:
        cache = self._caches.get(runner)
        if cache is None:
            cache = self._caches[runner] = PrefixCache(runner.slots, self._common, self._host_bytes(runner))
        return cache

    def forget(self, runner: Runner) -> None:
        """It left memory."""
        self._batches.pop(runner, None)
        self._caches.pop(runner, None)

    def speed_of(self, runner: Runner) -> Speed:
        return gpu.speed_of(self._spec.gpu, runner.model, runner.gpu_ratio, self._fixed_tok_s)

    def busy(self) -> int:
        """How many models share the GPU at this moment."""
        return sum([len(batch) > 0 for batch in self._batches.values()])

    def stretch(self) -> float:
        """A step that begins now takes so many times as long as it would alone on the unthrottled GPU."""
        return max(1, self.busy()) * self.slowdown

    def _host_bytes(self, runner: Runner) -> int:
        if self._spec.legacy:
            return 0
        per_token = max(1, runner.model.kv_bytes_per_token)
        return int(calibration()["host_prompt_cache"]["bytes"] // per_token * BYTES_PER_TOKEN)
