"""The benchmark of embeddings gets the same vectors from one replica and from two, and prints its target."""

from __future__ import annotations

from bench import embeddings


def test_the_benchmark_compares_equal_answers_and_prints_a_table() -> None:
    rounds = embeddings.measure(texts=96, replicas=2, rounds=1, speed=10.0)
    assert [each.same for each in rounds] == [True]
    assert rounds[0].parts > 1
    text = embeddings.report(rounds, 96, 2, 10.0)
    assert "0 answers that differ" in text
    assert "≥ 3.5: " in text
