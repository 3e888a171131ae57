"""The formulas against the measurements they were fitted to."""

from __future__ import annotations

import pytest

from corral.emulator.batch import Batch, Sequence
from corral.emulator.catalog import calibration, gpu_named, known_models, model_given
from corral.emulator.gpu import default_context, load_s, speed_of
from corral.errors import OperatorError

EIGHT_B = model_given("llama3.1:8b")


class Tokens:
    """A sink that counts, and ends after so many tokens."""

    def __init__(self, budget: int = 1000) -> None:
        self.made = 0
        self._budget = budget

    def step(self, stamp: bytes) -> bool:
        self.made += 1
        return self.made >= self._budget


def step(batch: Batch) -> list[Sequence]:
    batch.begin_step()
    return batch.finish_step()


@pytest.mark.parametrize(
    ("gpu", "measured_tok_s"),
    [("RTX 3090 24GB", 133), ("RTX 3080 10GB", 134), ("RTX 5090 32GB", 224), ("A100 SXM", 138)],
)
def test_one_stream_of_an_8b_model_is_as_fast_as_measured(gpu: str, measured_tok_s: float) -> None:
    rate = 1.0 / speed_of(gpu_named(gpu), EIGHT_B).decode_step_s(1, 0)
    assert rate == pytest.approx(measured_tok_s, rel=0.3)


def test_a_3090_bends_at_eight_streams_and_a_4090_does_not() -> None:
    def gain(gpu: str, streams: int) -> float:
        speed = speed_of(gpu_named(gpu), EIGHT_B)
        return streams * speed.decode_step_s(1, 0) / speed.decode_step_s(streams, 0)

    assert gain("RTX 3090 24GB", 8) == pytest.approx(3.7, rel=0.2)
    assert gain("RTX 4090 24GB", 16) == pytest.approx(12, rel=0.2)


def test_context_slows_decoding_down() -> None:
    speed = speed_of(gpu_named("RTX 4090 24GB"), EIGHT_B)
    assert speed.decode_step_s(1, 32768) > 1.4 * speed.decode_step_s(1, 0)


def test_layers_on_the_cpu_cost_as_measured() -> None:
    gpu = gpu_named("RTX 4090 24GB")
    whole, part = speed_of(gpu, EIGHT_B), speed_of(gpu, EIGHT_B, gpu_ratio=20 / 35)
    assert part.decode_step_s(1, 0) / whole.decode_step_s(1, 0) == pytest.approx(131.7 / 21, rel=0.2)


def test_a_prefill_holds_up_every_decoding_stream() -> None:
    batch = Batch(speed_of(gpu_named("RTX 3090 24GB"), EIGHT_B))
    decoding = Sequence(Tokens(), 1, 100)
    batch.add(decoding)
    assert step(batch) == [decoding]
    alone = batch.begin_step()
    batch.finish_step()
    batch.add(Sequence(Tokens(), 2000, 2000))
    assert batch.begin_step() == pytest.approx(0.127, rel=0.01)
    assert alone < 0.01


def test_a_prompt_that_comes_during_a_step_is_worked_off_from_the_next_step_on() -> None:
    batch = Batch(speed_of(gpu_named("RTX 3090 24GB"), EIGHT_B))
    first, second = Sequence(Tokens(), 1, 1), Sequence(Tokens(), 1, 1)
    batch.add(first)
    batch.begin_step()
    batch.add(second)
    assert batch.finish_step() == [first]
    assert step(batch) == [first, second]


def test_a_prompt_is_worked_off_in_micro_batches_and_then_makes_its_first_token() -> None:
    batch = Batch(speed_of(gpu_named("RTX 3090 24GB"), EIGHT_B))
    sequence = Sequence(Tokens(), 1100, 1100)
    batch.add(sequence)
    assert [step(batch) for _ in range(3)] == [[], [], [sequence]]


def test_a_sequence_whose_client_does_not_read_makes_no_tokens_and_keeps_its_place() -> None:
    batch = Batch(speed_of(gpu_named("RTX 3090 24GB"), EIGHT_B))
    slow, other = Sequence(Tokens(), 1, 1), Sequence(Tokens(), 1, 1)
    batch.add(slow)
    batch.add(other)
    step(batch)
    slow.paused = True
    assert step(batch) == [other]
    slow.paused = False
    assert set(step(batch)) == {slow, other}


def test_a_removed_sequence_makes_no_more_tokens() -> None:
    batch = Batch(speed_of(gpu_named("RTX 3090 24GB"), EIGHT_B))
    gone, stays = Sequence(Tokens(), 600, 600), Sequence(Tokens(), 1, 1)
    batch.add(gone)
    batch.add(stays)
    batch.remove(gone)
    batch.remove(gone)
    assert step(batch) == [stays]
    assert len(batch) == 1


def test_a_fixed_rate_holds_whatever_the_batch() -> None:
    speed = speed_of(gpu_named("T4"), EIGHT_B, fixed_tok_s=100.0)
    assert {speed.decode_step_s(streams, 10_000) for streams in (1, 50, 200)} == {0.01}


@pytest.mark.parametrize(("gpu", "tokens"), [("RTX 3080 10GB", 4096), ("RTX 4090 24GB", 32768), ("H100 SXM", 262144)])
def test_the_default_context_follows_the_memory(gpu: str, tokens: int) -> None:
    assert default_context(gpu_named(gpu), (0, 32)) == tokens
    assert default_context(gpu_named(gpu), (0, 16)) == 4096


def test_load_time_is_near_the_measured_one() -> None:
    assert load_s(model_given("x=20")) == pytest.approx(4.5, rel=0.35)


def test_every_gpu_and_model_of_the_data_can_be_used_and_says_its_source() -> None:
    data = calibration()
    for name, row in data["gpus"].items():
        assert row["source"]
        assert speed_of(gpu_named(name), EIGHT_B).decode_step_s(4, 1000) > 0
    for name in known_models():
        assert model_given(name).file_bytes > 0
    assert all(row["source"] for row in data["models"].values())


@pytest.mark.parametrize(
    ("text", "nearest"), [("RTX 4099", "RTX 4090 24GB"), ("GeForce RTX 5080 16GB", "RTX 4080 16GB")]
)
def test_an_unknown_gpu_is_refused_with_the_nearest_known(text: str, nearest: str) -> None:
    with pytest.raises(OperatorError, match=nearest):
        gpu_named(text)


def test_an_unknown_model_is_refused_with_the_nearest_known() -> None:
    with pytest.raises(OperatorError, match=r"llama3\.1:8b"):
        model_given("lama3.1:8b")


@pytest.mark.parametrize("text", ["mine=", "mine=big", "mine=-1"])
def test_a_size_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(OperatorError, match="number of gigabytes"):
        model_given(text)
