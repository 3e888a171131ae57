"""The statistics of a benchmark, of records that are known."""

from __future__ import annotations

import pytest

from corral.gateway.cli.bench.client import Question
from corral.gateway.cli.bench.figures import fairness_figures, level_figures, percentile, spread
from corral.gateway.cli.bench.record import Ending, Record
from corral.gateway.cli.bench.report import Report, beside, markdown, notes, page
from corral.gateway.cli.bench.rounds import Fairness, Level, Round


def ok(ttft_s: float = 0.5, e2e_s: float = 2.5, tokens: int = 21, replica: str | None = None) -> Record:
    return Record(Ending.OK, 10.0, 10.0 + e2e_s, 10.0 + ttft_s, 200, tokens, replica)


ERROR = Record(Ending.ERROR, 10.0, 10.1, why="answer cut off")
REFUSED = Record(Ending.REFUSED, 10.0, 10.1, why="status 503")


def level(*rounds: Round, target: str = "corral", concurrency: int = 4) -> Level:
    return Level(target, concurrency, list(rounds))


def test_rates_are_medians_of_the_rounds_and_times_of_all_answers() -> None:
    found = level_figures(level(Round([ok(), ok()], 2.0), Round([ok(ttft_s=1.5, e2e_s=3.5)], 10.0), Round([ok()], 3.0)))
    assert found.tok_s == pytest.approx(7.0)  # of 21, 2.1 and 7
    assert found.requests_s == pytest.approx(1 / 3)
    assert found.stream_tok_s == pytest.approx(10.0)
    assert found.ttft is not None
    assert (found.ttft.p50_s, found.ttft.most_s) == (0.5, 1.5)
    assert (found.ok, found.prompt_tokens, found.output_tokens) == (4, 200, 21)


def test_only_whole_answers_count() -> None:
    unfinished = Record(Ending.UNFINISHED, 10.0, 11.0)
    found = level_figures(level(Round([ok(), ERROR, ERROR, REFUSED, unfinished], 1.0)))
    assert (found.ok, found.refused, found.errors, found.unfinished) == (1, 1, {"answer cut off": 2}, 1)
    assert found.tok_s == 21
    assert found.e2e is not None
    assert found.e2e.most_s == 2.5


def test_where_nothing_was_answered_there_is_no_figure_and_no_zero() -> None:
    found = level_figures(level(Round([ERROR], 1.0)))
    assert (found.ttft, found.e2e, found.stream_tok_s, found.output_tokens) == (None, None, None, None)
    assert found.tok_s == 0
    assert spread([None]) is None
    assert level_figures(level()).tok_s == 0


def test_one_token_has_no_rate_and_no_division_by_zero() -> None:
    assert ok(tokens=1).stream_tok_s is None
    assert ok(ttft_s=2.5).stream_tok_s is None


def test_who_answered_is_a_share_of_the_answers() -> None:
    found = level_figures(
        level(Round([ok(replica="b"), ok(replica="a"), ok(replica="a"), ok(replica="a"), ERROR], 1.0))
    )
    assert list(found.replicas.items()) == [("a", 0.75), ("b", 0.25)]


def test_percentiles_lie_between_the_ranks() -> None:
    assert [percentile([1.0, 2.0, 4.0], ratio) for ratio in (0.0, 0.5, 0.75, 1.0)] == [1.0, 2.0, 3.0, 4.0]
    assert percentile([7.0], 0.95) == 7.0


def test_fairness_is_the_light_ones_first_token_alone_and_in_the_flood() -> None:
    flooded = [ok(ttft_s=2.0), ok(ttft_s=2.0), REFUSED]
    found = fairness_figures(Fairness("corral", [ok(), ok()], flooded, [ok(), ERROR], 16))
    assert found.ratio == pytest.approx(4.0)
    assert (found.failed, found.flood_answered) == (1, 1)
    assert fairness_figures(Fairness("corral", [ERROR], [ERROR], [], 16)).ratio is None


# -- what is told of them ---------------------------------------------------------------------------------------------


def report(*levels: Level) -> Report:
    targets = [
        {"name": name, "kind": name, "url": "http://127.0.0.1:1", "version": "1|\x1b[2J", "emulated": name == "ollama"}
        | {"load_s": 1.0, "warm_up_s": 2.0}
        for name in ("corral", "ollama")
    ]
    fair = [fairness_figures(Fairness("corral", [ok()], [ok(ttft_s=1.0)], [ok()], 8))]
    made = map(level_figures, levels)
    return Report("corral bench", "2026-11-25", {"CPU": "x"}, targets, Question("m:1", 200, 64), list(made), fair)


def test_markdown_is_whole_tables_with_what_was_measured_on_what() -> None:
    text = markdown(report(level(Round([ok(), ERROR], 1.0)), level(Round([ok()], 2.0), target="ollama")))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows[:4]}) == 1
    assert "| corral | 4 | 0.500 / 0.500 | 2.50 / 2.50 | 10.0 | 21.0 | 1 / 0 / 1 |" in rows
    assert "corral at 4: errors: 1 × answer cut off" in text  # noqa: RUF001
    assert "emulated: no GPU computed" in text
    assert "CPU: x" in text
    assert "`corral bench`, 2026-11-25" in text
    assert "\x1b" not in text


def test_one_is_held_against_the_other_where_both_answered() -> None:
    both = report(level(Round([ok(), ok()], 1.0)), level(Round([ok()], 1.0), target="ollama"))
    assert beside(both) == [
        "corral beside ollama at 4: 2.00 times the tokens/s; first token after 0.500 s instead of 0.500 s"
    ]
    assert beside(report(level(Round([ok()], 1.0)), level(Round([ERROR], 1.0), target="ollama"))) == []
    assert notes(report(level(Round([ok()], 1.0)))) == []


def test_programs_get_every_figure() -> None:
    found = page(report(level(Round([ok()], 1.0))))
    assert found["levels"][0]["ttft"] == {"p50_s": 0.5, "p95_s": 0.5, "most_s": 0.5}
    assert found["fairness"][0]["ratio"] == 2.0
    assert found["question"] == {"model": "m:1", "prompt_tokens": 200, "output_tokens": 64}
