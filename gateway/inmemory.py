"""What the replicas have in memory, as ``/api/ps`` shows it: models too big for their GPU, and models on the CPU.

Rules of this file:

1. Advice on a model is given once.
2. A model that is on the CPU although its replica's GPUs have room restarts the replica, once: after a suspend or a
   driver fault only a new process finds the GPU again. It must be seen twice, with a reading of the GPUs in between:
   what another program took a moment ago does not show in a reading of a moment before.
3. A client, or the model's own file, may want it on the CPU: a replica is restarted again only when it has had a model
   on its GPU, and not within the hour.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from corral.gateway.layout.advice import runtime_advice
from corral.gateway.layout.fallback import fell_back
from corral.gateway.layout.plan import ReplicaPlan
from corral.gateway.serve.gpus import GpuBoard
from corral.model import LoadedModel

log: Final = logging.getLogger("corral.gateway")

PROBATION_S: Final = 3600.0


class InMemory:
    """Told of every reading of a replica that Corral runs."""

    def __init__(self, board: GpuBoard, clock: Callable[[], float], restart: Callable[[str, str], bool]) -> None:
        """``restart`` is asked to restart a replica, and why; it answers whether it will."""
        self.reserve_bytes = 0
        """What Ollama leaves free on every GPU."""
        self._board = board
        self._clock = clock
        self._restart = restart
        self._advice: dict[str, str] = {}
        self._restarted: dict[str, float] = {}
        """Replicas that were restarted because of a model on the CPU, and when; until they have proved well."""
        self._suspected: dict[str, tuple[str, float]] = {}
        """By replica, the model that seems to have fallen back, and since when."""

    @property
    def advice(self) -> tuple[str, ...]:
        return tuple(self._advice.values())

    def forget(self) -> None:
        """Another plan is carried out: what was said of the last one may not hold any more."""
        self._advice = {}

    def read(self, plan: ReplicaPlan, models: Sequence[LoadedModel]) -> None:
        """One reading of ``/api/ps``."""
        if not plan.gpus:
            return
        for model in models:
            self._advise(f"{plan.id} {model.name}", runtime_advice(model, plan))
        unused_bytes = self._unused_bytes(plan)
        if unused_bytes is None:
            return
        fallen = fell_back(models, unused_bytes + sum(model.size_vram_bytes for model in models))
        if fallen is None:
            self._suspected.pop(plan.id, None)
            if any(model.size_vram_bytes >= model.size_bytes > 0 for model in models):
                self._proved_well(plan.id)
        elif self._is_confirmed(plan, fallen):
            self._fell_back(plan.id, fallen)

    def _advise(self, key: str, text: str | None) -> None:
        if text is not None and key not in self._advice:
            log.warning('advice text="%s"', text)
            self._advice[key] = text

    def _is_confirmed(self, plan: ReplicaPlan, model: LoadedModel) -> bool:
        name, since_s = self._suspected.get(plan.id, ("", 0.0))
        if name != model.name:
            self._suspected[plan.id] = (model.name, self._clock())
            return False
        samples = (self._board.fresh(gpu.uuid) for gpu in plan.gpus)
        return all(sample is not None and sample.taken_at_s > since_s for sample in samples)

    def _fell_back(self, replica_id: str, model: LoadedModel) -> None:
        why = f"{model.name} ran on the CPU although it fits the GPU"
        if replica_id in self._restarted or not self._restart(replica_id, why):
            return
        self._restarted[replica_id] = self._clock()
        log.warning(
            'replica_fell_back_to_cpu replica=%s model=%s size=%d in_gpu=%d consequence="restarted once"',
            replica_id,
            model.name,
            model.size_bytes,
            model.size_vram_bytes,
        )

    def _proved_well(self, replica_id: str) -> None:
        since_s = self._restarted.get(replica_id)
        if since_s is not None and self._clock() - since_s >= PROBATION_S:
            del self._restarted[replica_id]

    def _unused_bytes(self, plan: ReplicaPlan) -> int | None:
        """What nobody uses of the replica's GPUs now, the reserve not counted; None: not known."""
        samples = [self._board.fresh(gpu.uuid) for gpu in plan.gpus]
        unused_bytes = 0
        for sample in samples:
            if sample is None or sample.memory_total_bytes is None or sample.memory_used_bytes is None:
                return None
            unused_bytes += sample.memory_total_bytes - sample.memory_used_bytes
        return unused_bytes - len(plan.gpus) * self.reserve_bytes
