"""How much of each GPU is free for Corral's own Ollamas, those that already run there not counted as taken."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from corral.model import GpuSample


def free_bytes(samples: Iterable[GpuSample], own_pids: Collection[int]) -> dict[str, int]:
    """By uuid, of the GPUs that tell their memory. ``own_pids``: processes that Corral started."""
    return {
        sample.uuid: max(0, sample.memory_total_bytes - taken_bytes)
        for sample in samples
        if sample.memory_total_bytes is not None and (taken_bytes := _taken_bytes(sample, own_pids)) is not None
    }


def _taken_bytes(sample: GpuSample, own_pids: Collection[int]) -> int | None:
    """What others hold; None: not known.

    Where none of Corral's processes is on the GPU, it is all that is used; else what each of the others says.
    """
    processes = sample.processes or ()
    if not any(process.pid in own_pids for process in processes):
        return sample.memory_used_bytes
    foreign = [process.memory_bytes for process in processes if process.pid not in own_pids]
    return None if None in foreign else sum(size for size in foreign if size is not None)
