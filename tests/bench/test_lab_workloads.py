"""Workloads: models, windows and load are as stated, and the same for everyone with the same seed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median, pstdev

import pytest

from corral.errors import OperatorError
from corral.laboratory.boxes import BoxSpec, make_box
from corral.laboratory.types import Arrival
from corral.laboratory.workloads import (
    FLOODER,
    GENERATED,
    Work,
    generate,
    scale,
    window,
    with_flooder,
    with_models,
    workload,
)

BOX = make_box(BoxSpec("unequal-4", "3"))


@pytest.mark.parametrize("kind", GENERATED)
def test_generated_requests_are_the_same_for_a_seed_and_others_for_another(kind: str) -> None:
    first = generate(kind, 300, 1)
    assert first == generate(kind, 300, 1)
    assert first != generate(kind, 300, 2)
    assert [a.number for a in first] == list(range(300))
    assert first[0].at_s == 0
    assert all(a.at_s <= b.at_s for a, b in pairwise(first))
    assert all(a.prompt_tokens >= 1 and a.output_tokens >= 1 for a in first)


def test_generated_sizes_are_about_those_of_azures_conversations() -> None:
    arrivals = generate("poisson", 4000, 0)
    assert median(a.prompt_tokens for a in arrivals) == pytest.approx(1020, rel=0.1)
    assert median(a.output_tokens for a in arrivals) == pytest.approx(129, rel=0.1)


def test_bursts_are_burstier_than_poisson() -> None:
    def variation(kind: str) -> float:
        gaps = [b.at_s - a.at_s for a, b in pairwise(generate(kind, 3000, 0))]
        return pstdev(gaps) / fmean(gaps)

    assert variation("poisson") == pytest.approx(1, abs=0.1)
    assert variation("bursty") > 2


def test_a_later_turn_of_a_session_holds_the_blocks_of_the_one_before() -> None:
    sessions: dict[int, list[Arrival]] = {}
    for arrival in generate("sessions", 400, 3):
        if len(arrival.blocks) > 1:
            sessions.setdefault(arrival.blocks[1], []).append(arrival)
    turns = [pair for session in sessions.values() for pair in pairwise(session)]
    assert len(turns) > 100
    assert all(after.blocks[: len(before.blocks)] == before.blocks for before, after in turns)
    assert all(len(a.blocks) <= a.prompt_tokens / 512 for session in sessions.values() for a in session)


def test_models_follow_zipf_and_a_conversation_keeps_its_model() -> None:
    named = with_models(generate("poisson", 6000, 0), ["a", "b", "c"], 0)
    shares = {name: count / 6000 for name, count in Counter(a.model for a in named).items()}
    assert shares == pytest.approx({"a": 6 / 11, "b": 3 / 11, "c": 2 / 11}, abs=0.03)
    of_session: dict[int, set[str]] = {}
    for arrival in with_models(generate("sessions", 400, 0), ["a", "b", "c"], 0):
        if len(arrival.blocks) > 1:
            of_session.setdefault(arrival.blocks[1], set()).add(arrival.model)
    assert all(len(models) == 1 for models in of_session.values())
    assert len({model for models in of_session.values() for model in models}) == 3


def test_scaling_reaches_the_load_without_reordering() -> None:
    arrivals = with_models(generate("bursty", 500, 0), [m.name for m in BOX.models], 0)
    scaled = scale(arrivals, BOX, 0.5)
    assert len(arrivals) / scaled.span_s == pytest.approx(0.5 * scaled.capacity_rps)
    assert scaled.arrivals[-1].at_s == pytest.approx(scaled.span_s)
    assert [replace(a, at_s=0.0) for a in scaled.arrivals] == [replace(a, at_s=0.0) for a in arrivals]
    assert all(
        after.at_s == pytest.approx(before.at_s * scaled.factor)
        for before, after in zip(arrivals, scaled.arrivals, strict=True)
    )


def test_a_load_of_nothing_is_refused() -> None:
    with pytest.raises(OperatorError, match="cannot scale"):
        workload(Work("poisson", 10), BOX, 0, 0)
    with pytest.raises(OperatorError, match="cannot scale"):
        workload(Work("poisson", 1), BOX, 0.5, 0)


def test_each_seed_takes_its_own_window_and_the_first_begins_at_the_start() -> None:
    arrivals = generate("poisson", 1000, 0)
    assert window(arrivals, 50, 0) == arrivals[:50]
    assert window(arrivals, 50, 1) != window(arrivals, 50, 2)
    assert window(arrivals, 50, 1) == window(arrivals, 50, 1)
    assert len(window(arrivals, 5000, 1)) == 1000


def test_a_flooder_doubles_the_middle_third_and_can_be_taken_away_again() -> None:
    arrivals = generate("tenants", 600, 0)
    flooded = with_flooder(arrivals, 0)
    flood = [a for a in flooded if a.tenant == FLOODER]
    third_s = arrivals[-1].at_s / 3
    assert len(flood) == sum(third_s <= a.at_s <= 2 * third_s for a in arrivals)
    assert all(third_s <= a.at_s <= 2 * third_s for a in flood)
    with_it = workload(Work("tenants", 600, flooder=True), BOX, 0.5, 0)
    alone = workload(Work("tenants", 600, flooder=True, only_light=True), BOX, 0.5, 0)
    assert alone.arrivals == [a for a in with_it.arrivals if a.tenant != FLOODER]


def test_a_trace_by_path_is_a_workload(tmp_path: Path) -> None:
    rows = "".join(f"{n * 0.5},c{n % 3},100,20\n" for n in range(40))
    path = tmp_path / "trace.csv"
    path.write_text("arrived_at_s,client_id,input_tokens,output_tokens\n" + rows)
    scaled = workload(Work(str(path), 20), BOX, 0.7, 1)
    assert len(scaled.arrivals) == 20
    assert {a.model for a in scaled.arrivals} <= {m.name for m in BOX.models}
