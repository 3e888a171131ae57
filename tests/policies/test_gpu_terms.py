"""What an operator's weights make of the GPUs' ratios, and how they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from corral.errors import ConfigError
from corral.gateway.config import load_config
from corral.model import Decision, GpuLoad, ReplicaView, RouteRequest
from corral.policies import POLICIES, make_policy
from corral.policies.gpu_terms import NO_WEIGHTS, GpuWeights, factors
from tests.policies.views import view


@dataclass(frozen=True)
class Weighing:
    """A policy with weights."""

    weights: GpuWeights = NO_WEIGHTS

    def choose(self, request: RouteRequest, candidates: Sequence[ReplicaView], rng: Random) -> Decision:
        return Decision(candidates[0].id, "first")


def on(gpu: GpuLoad | None, id: str = "a") -> ReplicaView:
    return msgspec.structs.replace(view(id), gpu=gpu)


BUSY = GpuLoad(utilisation_ratio=0.5, memory_ratio=0.25, temperature_ratio=0.75, power_ratio=0.125)


def test_without_weights_nothing_is_changed() -> None:
    assert factors([on(BUSY), on(None, "b")], GpuWeights()) == [1.0, 1.0]


def test_each_measure_counts_with_its_own_weight() -> None:
    assert factors([on(BUSY)], GpuWeights(utilization=2)) == [2.0]
    assert factors([on(BUSY)], GpuWeights(memory=2)) == [1.5]
    assert factors([on(BUSY)], GpuWeights(temperature=2)) == [2.5]
    assert factors([on(BUSY)], GpuWeights(power=2)) == [1.25]
    assert factors([on(BUSY)], GpuWeights(1, 1, 1, 1)) == [1 + 0.5 + 0.25 + 0.75 + 0.125]


def test_a_measure_that_one_candidate_lacks_counts_for_nobody() -> None:
    without_power = msgspec.structs.replace(BUSY, power_ratio=None)
    weights = GpuWeights(memory=4, power=8)
    assert factors([on(BUSY), on(without_power, "b")], weights) == [2.0, 2.0]
    assert factors([on(BUSY), on(None, "b")], weights) == [1.0, 1.0]


def test_a_sensor_at_zero_is_not_one_that_is_missing() -> None:
    idle = msgspec.structs.replace(BUSY, utilisation_ratio=0.0)
    assert factors([on(BUSY), on(idle, "b")], GpuWeights(utilization=1)) == [1.5, 1.0]


@pytest.fixture
def weighing(monkeypatch: pytest.MonkeyPatch) -> None:
    table: Any = POLICIES
    monkeypatch.setitem(table, "weighing", Weighing)


def refused(weights: object) -> str:
    with pytest.raises(ConfigError) as caught:
        make_policy("weighing", options={"weights": weights})
    return str(caught.value)


@pytest.mark.usefixtures("weighing")
@pytest.mark.parametrize("given", [{"utilization": 1, "power": 0.5}, GpuWeights(utilization=1, power=0.5)])
def test_weights_are_an_option_of_a_policy(given: Mapping[str, float] | GpuWeights) -> None:
    assert make_policy("weighing", options={"weights": given}) == Weighing(GpuWeights(utilization=1, power=0.5))


@pytest.mark.usefixtures("weighing")
def test_a_weight_of_something_unknown_is_refused_with_the_nearest_name() -> None:
    assert refused({"utilisation": 1}) == (
        "policy.weights.utilisation: weights has no such key; did you mean 'utilization'?"
        " known keys: utilization, memory, temperature, power"
    )


@pytest.mark.usefixtures("weighing")
@pytest.mark.parametrize("value", ["much", None, [1]])
def test_a_weight_that_is_no_number_is_refused_with_its_name(value: object) -> None:
    assert refused({"memory": value}).startswith("policy.weights.memory: Expected `float`, got `")


@pytest.mark.usefixtures("weighing")
@pytest.mark.parametrize("value", [-1, float("inf"), float("nan")])
def test_a_weight_below_nothing_is_refused(value: float) -> None:
    assert "temperature must be 0 or more" in refused({"temperature": value})


@pytest.mark.usefixtures("weighing")
def test_a_file_tells_the_line_of_a_weight_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "corral.yaml"
    path.write_text(
        "replicas: [{id: a, url: 'http://127.0.0.1:9'}]\n"
        "policy:\n  name: weighing\n  weights:\n    memori: 1\n    power: lots\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert ":5:5: policy.weights.memori: weights has no such key; did you mean 'memory'?" in message
    assert ":6:12: policy.weights.power: expected a number, found lots; write a plain number" in message
