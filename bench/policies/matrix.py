"""The scenarios of the matrix: every box, number of models, slot count, incident and kind of workload."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from corral.laboratory.boxes import ONE_OLLAMA, BoxSpec
from corral.laboratory.campaign import Scenario
from corral.laboratory.traces import find_traces
from corral.laboratory.workloads import Work

UNEQUAL, SIX_MODELS, SIX_BUSY = "unequal-4, load 0.7", "equal-4, 6 models, load 0.4", "equal-4, 6 models, load 0.7"
SIX_COLD, SIX_COLD_BUSY = "equal-4, 6 models, slow disk, load 0.4", "equal-4, 6 models, slow disk, load 0.7"
"""Loads take 6 to 15 s, where from the page cache they take 1.5 to 2.5."""
EIGHT, ONE = "throughput, a100-8", "throughput, one Ollama"
MOONCAKE, FLOODED, NOT_FLOODED = "mooncake, equal-4", "servegen, a flooder", "servegen, without it"
LOADS = (0.3, 0.5, 0.7, 0.8, 0.9)
TRACES = {
    "azure-conv": ("azure*conv*", "poisson"),
    "azure-code": ("azure*code*", "bursty"),
    "mooncake": ("mooncake*", "sessions"),
    "servegen": ("servegen_m-*", "tenants"),
    "reasoning": ("servegen_deepseek*", "poisson"),
}
"""Where a folder lacks the trace, the generated workload most like it takes its place."""


def works(folder: Path | None, requests: int) -> dict[str, Work]:
    found = {} if folder is None else find_traces(folder, {name: glob for name, (glob, _) in TRACES.items()})
    return {name: Work(str(found.get(name, like)), requests) for name, (_, like) in TRACES.items()}


def matrix(folder: Path | None, requests: int) -> list[Scenario]:
    """Each dimension by itself around one case: four unequal GPUs, one model, four slots, load 0.7."""
    return [*_boxes(folder, requests), *_traces(folder, requests), *_one_ollama(folder, requests)]


def _boxes(folder: Path | None, requests: int) -> Iterator[Scenario]:
    conv = works(folder, requests)["azure-conv"]
    for load in LOADS:
        yield Scenario(f"unequal-4, load {load:g}", conv, BoxSpec("unequal-4"), load)
    for box in ("equal-4", "mixed-8", "a100-8"):
        for load in (0.7, 0.9):
            yield Scenario(f"{box}, load {load:g}", conv, BoxSpec(box), load)
    yield Scenario("unequal-4, weights not told", conv, BoxSpec("unequal-4", equal_weights=True), 0.7)
    for slots in (1, 2, 8):
        yield Scenario(f"unequal-4, {slots} slots", conv, BoxSpec("unequal-4", slots=slots), 0.7)
    for incident in ("throttle", "kill"):
        yield Scenario(f"unequal-4, {incident}", conv, BoxSpec("unequal-4", incident=incident), 0.7)
    for box, models in (
        ("unequal-4", "3"),
        ("unequal-4", "6"),
        ("equal-4", "6"),
        ("mixed-8", "6"),
        ("a100-4", "6-large"),
    ):
        for load in (0.4, 0.7):
            yield Scenario(f"{box}, {models} models, load {load:g}", conv, BoxSpec(box, models), load)
    for name, load in ((SIX_COLD, 0.4), (SIX_COLD_BUSY, 0.7)):
        yield Scenario(name, conv, BoxSpec("equal-4", "6", is_disk_slow=True), load)


def _traces(folder: Path | None, requests: int) -> Iterator[Scenario]:
    for name, work in works(folder, requests).items():
        if name != "azure-conv":
            yield Scenario(f"{name}, equal-4", work, BoxSpec("equal-4"), 0.7)
            yield Scenario(f"{name}, unequal-4, 3 models", work, BoxSpec("unequal-4", "3"), 0.7)
    tenants = replace(works(folder, requests)["servegen"], flooder=True)
    yield Scenario(FLOODED, tenants, BoxSpec("equal-4"), 0.7)
    yield Scenario(NOT_FLOODED, replace(tenants, only_light=True), BoxSpec("equal-4"), 0.7)


def _one_ollama(folder: Path | None, requests: int) -> Iterator[Scenario]:
    """More than eight GPUs can do: what each then serves a second is its throughput."""
    conv = works(folder, requests)["azure-conv"]
    yield Scenario(EIGHT, conv, BoxSpec("a100-8"), 1.5)
    yield Scenario(ONE, conv, BoxSpec(ONE_OLLAMA), 1.5, scaled_to="a100-8")
