"""The environment of one replica, as a table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from corral.gateway.layout.environment import Setting, environment, shares_of
from tests.gateway.layout.machines import GIB, MIB, amd, mig, nvidia

A, B = nvidia(0, "NVIDIA GeForce RTX 4090"), nvidia(1, "NVIDIA GeForce RTX 3060")
PLAIN = Setting(
    gpus=(A,), context_length=32768, slots=2, keep_alive="-1", takes_llama_args=True, host_cache_bytes=8 * GIB
)
OLD: dict[str, Any] = {"takes_llama_args": False}
CASES: list[tuple[str, dict[str, Any], dict[str, str | None]]] = [
    (
        "one NVIDIA GPU",
        {},
        {
            "CUDA_VISIBLE_DEVICES": A.uuid,
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "ROCR_VISIBLE_DEVICES": "-1",
            "HIP_VISIBLE_DEVICES": None,
            "OLLAMA_VULKAN": "0",
            "OLLAMA_NOPRUNE": "1",
            "OLLAMA_CONTEXT_LENGTH": "32768",
            "OLLAMA_NUM_PARALLEL": "2",
            "OLLAMA_KEEP_ALIVE": "-1",
            "LLAMA_ARG_CACHE_RAM": "8192",
            "OLLAMA_MODELS": None,
            "OLLAMA_HOST": None,
            "OLLAMA_SCHED_SPREAD": None,
            "OLLAMA_IGPU_ENABLE": None,
            "NO_PROXY": None,
            "LLAMA_ARG_FIT_TARGET": None,
            "OLLAMA_GPU_OVERHEAD": None,
        },
    ),
    (
        "AMD: HIP obeys CUDA's variable unless its own is set",
        {"gpus": (amd(0), amd(3))},
        {
            "ROCR_VISIBLE_DEVICES": f"{amd(0).uuid},{amd(3).uuid}",
            "HIP_VISIBLE_DEVICES": "0,1",
            "CUDA_VISIBLE_DEVICES": "-1",
            "CUDA_DEVICE_ORDER": None,
        },
    ),
    (
        "CPU: both vendors are hidden",
        {"gpus": (), "reserve_bytes": GIB},
        {
            "CUDA_VISIBLE_DEVICES": "-1",
            "ROCR_VISIBLE_DEVICES": "-1",
            "OLLAMA_VULKAN": "0",
            "LLAMA_ARG_FIT_TARGET": None,
        },
    ),
    ("a MIG device", {"gpus": (mig(A, 0, GIB),)}, {"CUDA_VISIBLE_DEVICES": mig(A, 0, GIB).uuid}),
    ("shared memory", {"gpus": (amd(0, None, unified=True),)}, {"OLLAMA_IGPU_ENABLE": "1"}),
    ("a store", {"store": "/models"}, {"OLLAMA_MODELS": "/models"}),
    ("a proxy", {"no_proxy": "a,127.0.0.1"}, {"NO_PROXY": "a,127.0.0.1", "no_proxy": "a,127.0.0.1"}),
    ("no prompt cache", {"host_cache_bytes": 0}, {"LLAMA_ARG_CACHE_RAM": "0"}),
    (
        "a small reserve, new: llama.cpp's own stays",
        {"reserve_bytes": 512 * MIB},
        {"LLAMA_ARG_FIT_TARGET": "1024", "OLLAMA_GPU_OVERHEAD": None},
    ),
    ("a reserve, new", {"reserve_bytes": 3 * GIB + 1}, {"LLAMA_ARG_FIT_TARGET": "3073", "OLLAMA_GPU_OVERHEAD": None}),
    (
        "a reserve, old",
        {"reserve_bytes": 3 * GIB, **OLD},
        {"OLLAMA_GPU_OVERHEAD": str(3 * GIB), "LLAMA_ARG_FIT_TARGET": None, "LLAMA_ARG_CACHE_RAM": None},
    ),
    (
        "an unequal group, new",
        {"gpus": (A, B), "shares": (2, 1), "split": "row"},
        {
            "CUDA_VISIBLE_DEVICES": f"{A.uuid},{B.uuid}",
            "OLLAMA_SCHED_SPREAD": "1",
            "LLAMA_ARG_SPLIT_MODE": "row",
            "LLAMA_ARG_TENSOR_SPLIT": "2,1",
        },
    ),
    (
        "an unequal group, old",
        {"gpus": (A, B), "shares": (2, 1), **OLD},
        {"OLLAMA_SCHED_SPREAD": "1", "LLAMA_ARG_SPLIT_MODE": None, "LLAMA_ARG_TENSOR_SPLIT": None},
    ),
    (
        "the group's env comes last",
        {"of_all": {"OLLAMA_VULKAN": "1", "X": "all"}, "of_group": {"X": "group"}},
        {"OLLAMA_VULKAN": "1", "X": "group"},
    ),
]


@pytest.mark.parametrize(("change", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_environment_follows_from_the_setting(change: dict[str, Any], expected: dict[str, str | None]) -> None:
    env = environment(replace(PLAIN, **change))
    assert {name: env.get(name) for name in expected} == expected


def test_shares_follow_free_memory_and_are_left_out_where_it_is_the_same() -> None:
    assert shares_of([24 * GIB, 12 * GIB]) == (24576, 12288)
    assert shares_of([24 * GIB, 24 * GIB - 20 * MIB]) == ()
    assert shares_of([24 * GIB]) == ()
