"""What is advised about models that are too big for where they may run."""

from __future__ import annotations

import pytest

from corral.gateway.config import parse_config
from corral.gateway.layout.advice import runtime_advice
from corral.gateway.layout.choose import make_plan
from corral.gateway.layout.plan import ReplicaPlan, StoredModel
from corral.model import LinkKind, LoadedModel
from tests.gateway.layout.machines import GIB, facts, links, nvidia

MIDDLE = "NVIDIA GeForce RTX 3090"
EIGHT = StoredModel("llama3.1:8b", 4_920_000_000, 131_072, 131_072)
THIRTY_TWO = StoredModel("qwen2.5:32b", 19_850_000_000, 262_144, 32_768)


def advice(text: str, count: int, *models: StoredModel) -> tuple[str, ...]:
    gpus = [nvidia(at, MIDDLE) for at in range(count)]
    found = facts(gpus, links(gpus, {}, LinkKind.PCIE_SWITCH), models=models)
    return make_plan(parse_config(text, "corral.yaml"), found).advice


def test_a_model_that_fits_needs_no_advice() -> None:
    assert advice("{}", 1, EIGHT) == ()


@pytest.mark.parametrize(
    ("text", "count", "way"),
    [
        ("ollama: {context_length: 4096}", 2, "spread it with large_models: [qwen2.5:32b]."),
        ("ollama: {context_length: 4096}\ngpus: [0, 1]", 2, "give it a group under gpus:, for instance GPUs 0 and 1."),
        ("ollama: {context_length: 4096}", 1, "take a smaller model, or a larger GPU."),
        ("ollama: {context_length: 4096, parallel: 32}\ngpus: [[0, 1]]", 2, "it fits with ollama.parallel: 1."),
    ],
)
def test_a_model_that_spills_is_named_with_sizes_and_a_way_out(text: str, count: int, way: str) -> None:
    said = advice(text, count, THIRTY_TWO)
    assert len(said) == 1
    assert said[0].startswith("qwen2.5:32b needs ")
    assert "it would run partly on the CPU" in said[0]
    assert said[0].endswith(way)


def test_only_the_first_few_models_are_named() -> None:
    many = [StoredModel(f"m{at}:latest", 90_000_000_000, 327_680, 8192) for at in range(12)]
    said = advice("{}", 1, *many)
    assert len(said) == 9
    assert said[-1] == "4 more models of the store do not fit their replicas either."


def replica(count: int) -> ReplicaPlan:
    gpus = tuple(nvidia(at, MIDDLE) for at in range(count))
    return ReplicaPlan("gpu0", ("ollama", "serve"), {}, gpus)


@pytest.mark.parametrize(
    ("count", "size", "vram", "said"),
    [
        (1, 10 * GIB, 10 * GIB, None),
        (1, 22 * GIB, 22 * GIB, "m:latest on gpu0 takes 22 GiB of 24 GiB, more than 80 % of the GPU; spread it"),
        (2, 44 * GIB, 44 * GIB, None),
        (1, 30 * GIB, 20 * GIB, "m:latest on gpu0 runs partly on the CPU: 10 GiB of its 30 GiB are there; spread it"),
        (2, 60 * GIB, 40 * GIB, "m:latest on gpu0 runs partly on the CPU: 20 GiB of its 60 GiB are there; spread it"),
        (0, 10 * GIB, 0, None),
    ],
)
def test_a_loaded_model_that_is_too_big_is_advised_about(count: int, size: int, vram: int, said: str | None) -> None:
    found = runtime_advice(LoadedModel("m:latest", size, vram, 4096), replica(count))
    assert found is None if said is None else (found is not None and found.startswith(said))
