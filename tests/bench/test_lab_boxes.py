"""Boxes are what their names say, and their capacity is what the emulator's formulas give."""

from __future__ import annotations

from dataclasses import replace

import pytest

from corral.errors import OperatorError
from corral.laboratory.boxes import BOXES, MODELS, SPEEDS, BoxSpec, make_box
from corral.laboratory.speeds import Solos, capacity_rps, fits, full_slots_s, mixes, solo, speed
from corral.laboratory.types import Arrival, Incident


def asked(model: str = "llama3.1:8b", prompt: int = 1024, output: int = 100, count: int = 10) -> list[Arrival]:
    return [Arrival(n, float(n), model, prompt, output) for n in range(count)]


@pytest.mark.parametrize("name", list(BOXES))
def test_every_box_holds_the_one_model_everywhere(name: str) -> None:
    box = make_box(BoxSpec(name))
    assert all(fits(replica, box.models[0]) for replica in box.replicas)
    assert len({replica.id for replica in box.replicas}) == len(box.replicas)


@pytest.mark.parametrize("models", list(MODELS))
def test_every_set_of_models_is_known_to_the_emulator(models: str) -> None:
    assert [m.name for m in make_box(BoxSpec("a100-4", models)).models] == list(MODELS[models])


def test_unequal_gpus_have_the_stated_speeds() -> None:
    box = make_box(BoxSpec("unequal-4"))
    alone_s = [solo(replica, box.models[0], asked()[0]).total_s for replica in box.replicas]
    assert [alone_s[1] / seconds for seconds in alone_s] == pytest.approx(SPEEDS)
    assert [replica.weight for replica in box.replicas] == list(SPEEDS)
    assert {r.weight for r in make_box(BoxSpec("unequal-4", equal_weights=True)).replicas} == {1.0}


def test_one_ollama_has_the_memory_of_eight_and_the_speed_of_one() -> None:
    one, eight = make_box(BoxSpec("one-ollama-8")), make_box(BoxSpec("a100-8"))
    assert one.replicas[0].gpu.vram_bytes == sum(r.gpu.vram_bytes for r in eight.replicas)
    assert capacity_rps(eight, asked()) == pytest.approx(8 * capacity_rps(one, asked()))


def test_incidents_happen_in_the_middle_of_the_run() -> None:
    assert make_box(BoxSpec(incident="throttle"), 100).incidents == (Incident(50, "gpu0", "throttle", 0.6),)
    assert make_box(BoxSpec(incident="kill"), 100).incidents == (
        Incident(40, "gpu1", "kill"),
        Incident(60, "gpu1", "restore"),
    )
    assert make_box(BoxSpec(), 100).incidents == ()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(OperatorError, match="known: equal-4"):
        make_box(BoxSpec("nine"))
    with pytest.raises(OperatorError, match="unknown"):
        make_box(BoxSpec(incident="flood"), 100)
    with pytest.raises(OperatorError, match="unknown model"):
        make_box(BoxSpec(models="nothing:1b"))


def test_alone_is_prefill_then_a_step_a_token() -> None:
    box = make_box(BoxSpec("equal-4"))
    at, one = speed(box.replicas[0], box.models[0]), solo(box.replicas[0], box.models[0], asked()[0])
    assert one.ttft_s == pytest.approx(1024 / at.prefill_tok_s)
    assert one.total_s == pytest.approx(one.ttft_s + 99 * at.decode_step_s(1, 1024 + 50))
    cached = solo(box.replicas[0], box.models[0], asked()[0], cached_tokens=1000)
    assert cached.ttft_s < one.ttft_s


def test_the_best_gpu_is_one_that_can_hold_the_model() -> None:
    box = make_box(BoxSpec("mixed-8", "qwen2.5:32b"))
    homes = [replica for replica in box.replicas if fits(replica, box.models[0])]
    assert [replica.gpu.name for replica in homes] == ["RTX A6000 48GB"]
    arrival = asked("qwen2.5:32b")[0]
    assert Solos(box).of(arrival) == solo(homes[0], box.models[0], arrival)


def test_one_slot_at_a_time_costs_what_a_request_takes_alone() -> None:
    box = make_box(BoxSpec("equal-4", slots=1))
    mix = mixes(asked())["llama3.1:8b"]
    alone_s = solo(box.replicas[0], box.models[0], asked()[0]).total_s
    assert full_slots_s(box.replicas[0], box.models[0], mix) == pytest.approx(alone_s, rel=0.01)
    assert capacity_rps(box, asked()) == pytest.approx(4 / alone_s, rel=0.01)


def test_more_slots_serve_more() -> None:
    rates = [capacity_rps(make_box(BoxSpec("equal-4", slots=slots)), asked()) for slots in (1, 2, 4, 8)]
    assert rates == sorted(rates)
    assert rates[3] > 2 * rates[0]


def test_the_replicas_that_can_hold_the_large_model_are_the_limit() -> None:
    box = make_box(BoxSpec("mixed-8", "llama3.1:8b,qwen2.5:32b"))
    both = [*asked("qwen2.5:32b", count=9), *asked("llama3.1:8b", count=1)]
    only = capacity_rps(box, asked("qwen2.5:32b"))
    assert capacity_rps(box, both) == pytest.approx(only / 0.9)


def test_no_memory_anywhere_is_said() -> None:
    box = make_box(BoxSpec("equal-4", "llama3.1:70b"))
    with pytest.raises(OperatorError, match="memory"):
        capacity_rps(box, asked("llama3.1:70b"))
    with pytest.raises(OperatorError, match="no model"):
        capacity_rps(box, [replace(arrival, model="other") for arrival in asked()])
