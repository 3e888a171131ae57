"""A replica in virtual time: the emulator's own rules, many steps at once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corral.emulator.catalog import gpu_named, model_given
from corral.emulator.gpu import Speed, load_s, recovery_s, speed_of, unload_s
from corral.laboratory import replica as module
from corral.laboratory.prompt import Prompt, common_blocks, prompt_of
from corral.laboratory.replica import Happening, VirtualReplica, What, Work
from corral.laboratory.types import Arrival, BoxReplica
from corral.laboratory.workloads import BLOCK_TOKENS

GPU = gpu_named("RTX 3090 24GB")
BIG, SMALL = model_given("llama3.1:8b"), model_given("llama3.2:1b")
SPEED = speed_of(GPU, BIG)


class Lone:
    """A replica and its own clock."""

    def __init__(self, slots: int = 4, max_loaded: int = 3) -> None:
        self.replica = VirtualReplica(BoxReplica("r", GPU, slots, max_loaded=max_loaded), (BIG, SMALL))
        self.now_s = 0.0
        self.seen: list[tuple[float, Happening]] = []
        self.works: list[Work] = []

    def until(self, when_s: float) -> None:
        while (due_s := self.replica.next_s()) is not None and due_s <= when_s:
            assert due_s >= self.now_s
            self.now_s = due_s
            self.seen += [(due_s, happening) for happening in self.replica.advance(due_s)]
        self.now_s = when_s

    def send(self, arrival: Arrival) -> Work:
        self.until(arrival.at_s)
        work, happenings = self.replica.submit(arrival, arrival.at_s)
        self.seen += [(arrival.at_s, happening) for happening in happenings]
        self.works.append(work)
        return work


def warm(slots: int = 4) -> Lone:
    lone = Lone(slots)
    lone.replica.preload(BIG.name, 0.0)
    lone.until(100.0)
    return lone


def arrival(at_s: float, prompt: int, output: int, model: str = BIG.name, number: int = 0) -> Arrival:
    return Arrival(number, at_s, model, prompt, output)


@given(st.integers(1, 3000), st.integers(1, 16), st.integers(0, 60_000))
def test_many_steps_take_as_long_as_one_after_the_other(steps: int, sequences: int, context: int) -> None:
    single_s = sum(SPEED.decode_step_s(sequences, context + sequences * step) for step in range(steps))
    assert SPEED.decode_steps_s(steps, sequences, context) == pytest.approx(single_s, rel=1e-9)


@given(st.floats(0, 200), st.integers(1, 16), st.integers(0, 60_000), st.sampled_from([None, 50.0]))
def test_as_many_steps_fit_into_a_time_as_end_within_it(
    seconds: float, sequences: int, context: int, fixed_tok_s: float | None
) -> None:
    speed: Speed = speed_of(GPU, BIG, fixed_tok_s=fixed_tok_s)
    steps = speed.decode_steps_in(seconds, sequences, context)
    assert speed.decode_steps_s(steps, sequences, context) <= seconds
    assert speed.decode_steps_s(steps + 1, sequences, context) > seconds


arrivals = st.lists(
    st.tuples(st.floats(0, 4), st.integers(1, 1500), st.integers(1, 200), st.sampled_from([BIG.name, SMALL.name])),
    min_size=1,
    max_size=25,
)


@given(arrivals, st.sampled_from([1, 2, 4, 8]), st.one_of(st.none(), st.floats(0, 20)))
@settings(deadline=None, max_examples=60)
def test_jumping_over_steps_gives_the_times_of_stepping_one_by_one(
    asked: list[tuple[float, int, int, str]], slots: int, throttled_s: float | None
) -> None:
    def play() -> list[Work]:
        lone, at_s = Lone(slots), 0.0
        for number, (gap_s, prompt, output, model) in enumerate(asked):
            at_s += gap_s
            if throttled_s is not None and at_s >= throttled_s > at_s - gap_s:
                lone.until(throttled_s)
                lone.replica.throttle(0.5, throttled_s)
            lone.send(arrival(at_s, prompt, output, model, number))
        lone.until(at_s + 10_000)
        return lone.works

    jumping = play()
    with pytest.MonkeyPatch.context() as patch:
        # every step may be the last one of a sequence: each is begun and finished by itself, as the emulator's are
        patch.setattr(module, "_last_context", lambda sequence: sequence.context_tokens + 1)
        stepping = play()
    for one, other in zip(jumping, stepping, strict=True):
        assert one.cached_tokens == other.cached_tokens
        for mine_s, other_s in ((one.slot_s, other.slot_s), (one.first_s, other.first_s), (one.end_s, other.end_s)):
            assert mine_s is not None
            assert mine_s == pytest.approx(other_s, rel=1e-9)


def test_a_request_alone_takes_its_prefill_and_one_step_a_token() -> None:
    lone = warm()
    work = lone.send(arrival(200.0, 512, 101))
    lone.until(300.0)
    prefill_s = SPEED.step_with_prefill_s(512, 0, 0)
    assert work.first_s == pytest.approx(200.0 + prefill_s)
    assert work.end_s == pytest.approx(200.0 + prefill_s + SPEED.decode_steps_s(100, 1, 512))
    assert [happening.what for _, happening in lone.seen[-2:]] == [What.FIRST_TOKEN, What.ENDED]


def test_a_request_beyond_the_slots_waits_inside_ollama_until_one_ends() -> None:
    lone = warm(slots=1)
    first, second = lone.send(arrival(200.0, 100, 50)), lone.send(arrival(200.1, 100, 50, number=1))
    lone.until(300.0)
    assert second.granted_s == 200.1
    assert second.slot_s == first.end_s


def test_two_models_at_work_share_the_gpu_and_one_alone_has_all_of_it() -> None:
    def alone(model: str) -> float:
        lone = both()
        return took(lone, [lone.send(arrival(200.0, 16, 200, model))])[0]

    def both() -> Lone:
        lone = Lone()
        for model in (BIG.name, SMALL.name):
            lone.replica.preload(model, 0.0)
        lone.until(100.0)
        return lone

    def took(lone: Lone, works: list[Work]) -> list[float]:
        lone.until(290.0)
        return [work.end_s - 200.0 for work in works if work.end_s is not None]

    lone = both()
    small_s, big_s = took(lone, [lone.send(arrival(200.0, 16, 200, name)) for name in (SMALL.name, BIG.name)])
    assert small_s == pytest.approx(2 * alone(SMALL.name), rel=0.03)
    # halves of the GPU until the small one is done, then all of it
    assert big_s == pytest.approx(alone(BIG.name) + small_s / 2, rel=0.03)


def test_a_cold_model_is_loaded_and_the_idle_one_leaves_where_only_one_fits() -> None:
    lone = Lone(max_loaded=1)
    work = lone.send(arrival(0.0, 10, 5))
    lone.until(50.0)
    assert work.granted_s == pytest.approx(load_s(BIG))
    assert lone.replica.loaded() == {BIG.name}
    other = lone.send(arrival(60.0, 10, 5, SMALL.name))
    lone.until(100.0)
    assert other.granted_s == pytest.approx(60.0 + unload_s() + recovery_s() + load_s(SMALL))
    assert lone.replica.loaded() == {SMALL.name}
    assert lone.replica.total_loads() == 2


def test_a_preload_ends_with_the_load_and_an_unload_takes_the_model_away() -> None:
    lone = Lone()
    work, _ = lone.replica.preload(SMALL.name, 0.0)
    lone.until(50.0)
    assert work.end_s == pytest.approx(load_s(SMALL))
    assert [runner.job.name for runner in lone.replica.listed(50.0)] == [SMALL.name]
    lone.replica.unload(SMALL.name, 50.0)
    lone.until(60.0)
    assert lone.replica.loaded() == frozenset()


def test_a_conversation_that_goes_on_is_prefilled_only_from_where_it_is_new() -> None:
    lone = warm()
    lone.send(Arrival(0, 200.0, BIG.name, 2 * BLOCK_TOKENS, 20, blocks=(1, 2)))
    again = lone.send(Arrival(1, 250.0, BIG.name, 3 * BLOCK_TOKENS + 100, 20, blocks=(1, 2, 3)))
    lone.until(300.0)
    assert again.cached_tokens == 2 * BLOCK_TOKENS
    assert (lone.replica.prompt_tokens, lone.replica.cached_tokens) == (5 * BLOCK_TOKENS + 100, 2 * BLOCK_TOKENS)


@pytest.mark.parametrize(
    ("left", "right", "tokens"),
    [
        (Arrival(1, 0, "m", 1000, 1), Arrival(2, 0, "m", 1000, 1), 0),
        (Arrival(1, 0, "m", 1000, 1, blocks=(7, 8)), Arrival(2, 0, "m", 2000, 1, blocks=(7, 8, 9, 10)), 1000),
        (Arrival(1, 0, "m", 1100, 1, blocks=(7, 8)), Arrival(2, 0, "m", 1100, 1, blocks=(7, 8)), 1024),
        (Arrival(1, 0, "m", 1100, 1, blocks=(7, 9)), Arrival(2, 0, "m", 1100, 1, blocks=(7, 8)), 512),
        (Arrival(1, 0, "m", 1100, 1, blocks=(7, 9)), Arrival(2, 0, "m", 1100, 1, blocks=(6, 9)), 0),
    ],
)
def test_prompts_share_what_their_first_blocks_share(left: Arrival, right: Arrival, tokens: int) -> None:
    one, other = prompt_of(left), prompt_of(right)
    assert common_blocks(one, other) == common_blocks(other, one.answered(50)) == 4 * tokens
    assert len(one) == 4 * left.prompt_tokens


def test_the_answer_is_never_taken_for_a_part_of_a_later_prompt() -> None:
    said = Prompt((1, 2), 700).answered(400)
    assert common_blocks(said, Prompt((1, 2, 3), 1500)) == 700 * 4


def test_a_request_that_is_abandoned_frees_its_slot_at_once() -> None:
    lone = warm(slots=1)
    first, second = lone.send(arrival(200.0, 100, 500)), lone.send(arrival(200.1, 100, 5, number=1))
    lone.until(201.0)
    lone.replica.abandon(first, 201.0)
    lone.until(300.0)
    assert second.slot_s == 201.0
    assert first.end_s is None
    assert [happening.work for _, happening in lone.seen if happening.what is What.ENDED][-1] is second


def test_a_killed_replica_loses_its_requests_and_its_memory() -> None:
    lone = warm()
    works = [lone.send(arrival(200.0, 100, 500, number=number)) for number in range(6)]
    lone.until(202.0)
    assert lone.replica.kill(202.0) == works
    assert lone.replica.next_s() is None
    lone.replica.restore()
    assert lone.replica.loaded() == frozenset()
    again = lone.send(arrival(210.0, 100, 5))
    lone.until(300.0)
    assert again.granted_s == pytest.approx(210.0 + load_s(BIG))
    assert lone.replica.total_loads() == 2


def test_the_busy_time_is_that_in_which_anything_was_computed() -> None:
    lone = warm()
    works = [lone.send(arrival(at_s, 512, 20, number=number)) for number, at_s in enumerate((200.0, 200.1, 250.0))]
    lone.until(300.0)
    spans = [works[1], works[2]]
    expected_s = sum(work.end_s for work in spans if work.end_s) - 200.0 - 250.0
    assert lone.replica.busy_s(300.0) == pytest.approx(expected_s)
