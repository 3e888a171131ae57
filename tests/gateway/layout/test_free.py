"""What is free of a GPU for Corral's own Ollamas."""

from __future__ import annotations

from corral.gateway.layout.fallback import fell_back
from corral.gateway.layout.free import free_bytes
from corral.model import GpuProcess, GpuSample, LoadedModel

GIB = 1 << 30


def sample(used: int | None, *processes: tuple[int, int | None], total: int | None = 24 * GIB) -> GpuSample:
    users = tuple(GpuProcess(pid, size) for pid, size in processes)
    return GpuSample("A", 0.0, memory_used_bytes=used, memory_total_bytes=total, processes=users)


def test_all_that_is_used_is_taken_where_nothing_of_corrals_runs() -> None:
    assert free_bytes([sample(4 * GIB, (7, 3 * GIB))], own_pids=()) == {"A": 20 * GIB}


def test_what_corrals_own_processes_hold_is_not_taken() -> None:
    assert free_bytes([sample(20 * GIB, (7, 3 * GIB), (8, 16 * GIB))], own_pids={8}) == {"A": 21 * GIB}


def test_what_is_not_known_is_left_out_and_not_taken_for_nothing() -> None:
    assert free_bytes([sample(None)], ()) == {}
    assert free_bytes([sample(1, total=None)], ()) == {}
    assert free_bytes([sample(20 * GIB, (7, None), (8, GIB))], own_pids={8}) == {}


def loaded(name: str, size: int, in_gpu: int) -> LoadedModel:
    return LoadedModel(name, size * GIB, in_gpu * GIB, None)


def test_a_model_that_spills_though_it_fits_has_fallen_back() -> None:
    model = loaded("m", 5, 0)
    assert fell_back([loaded("n", 8, 8), model], room_bytes=24 * GIB) is model


def test_a_model_that_spills_because_there_is_no_room_has_not() -> None:
    assert fell_back([loaded("m", 20, 18)], room_bytes=24 * GIB) is None, "Ollama leaves a fifth free"
    assert fell_back([loaded("n", 16, 16), loaded("m", 7, 2)], room_bytes=24 * GIB) is None, "the other is in its way"
    assert fell_back([loaded("m", 5, 0)], room_bytes=6 * GIB) is None, "other programs are"


def test_models_that_are_whole_have_not() -> None:
    assert fell_back([loaded("m", 5, 5)], room_bytes=24 * GIB) is None
    assert fell_back([], room_bytes=24 * GIB) is None
