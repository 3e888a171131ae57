"""Which requests `corral policy sim` plays, and at what pace."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from corral.errors import OperatorError
from corral.laboratory.boxes import BoxSpec, make_box
from corral.laboratory.sim.asked import LOAD, PAUSE_S, Pace, played, read, reality, without_pauses
from corral.laboratory.types import Arrival
from tests.laboratory.test_access_log import ended, log_of

BOX = make_box(BoxSpec("equal-4"))
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.0000000,374,44
2023-11-16 18:15:48.0000000,396,10
2023-11-16 18:15:50.0000000,879,55
"""


@pytest.fixture
def log(tmp_path: Path) -> str:
    path = tmp_path / "access.log"
    path.write_text(log_of(*(ended(1000.0 + 4 * n, first_byte_s=0.1 * n) for n in range(5))))
    return str(path)


def test_a_log_comes_as_it_did_unless_told_otherwise(log: str) -> None:
    as_it_was = played(read(log), BOX, Pace(), 100, 0)
    assert [one.at_s for one in as_it_was.arrivals] == pytest.approx([0, 4, 8, 12, 16], abs=0.01)
    faster = played(read(log), BOX, Pace(speed=4), 100, 0)
    assert [one.at_s for one in faster.arrivals] == pytest.approx([0, 1, 2, 3, 4], abs=0.01)
    loaded = played(read(log), BOX, Pace(load=2.0), 100, 0)
    assert loaded.load == pytest.approx(2.0)


def test_a_public_trace_comes_at_a_load_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    assert played(read(str(path)), BOX, Pace(), 100, 0).load == pytest.approx(LOAD)
    as_it_was = played(read(str(path)), BOX, Pace(speed=1), 100, 0)
    assert [one.at_s for one in as_it_was.arrivals] == pytest.approx([0, 2, 4])
    assert {one.model for one in as_it_was.arrivals} == {"llama3.1:8b"}


def test_no_more_requests_than_asked_for_and_other_ones_for_another_seed() -> None:
    first, again, other = (played(read("poisson"), BOX, Pace(), 50, seed).arrivals for seed in (0, 0, 1))
    assert len(first) == 50
    assert first == again
    assert first != other


def test_long_pauses_are_cut_and_told() -> None:
    arrival = Arrival(0, 0.0, "m", 10, 10)
    kept, cut_s = without_pauses([arrival, replace(arrival, at_s=5.0), replace(arrival, at_s=10_005.0)])
    assert [one.at_s for one in kept] == [0.0, 5.0, 5.0 + PAUSE_S]
    assert cut_s == 10_000 - PAUSE_S


def test_what_the_log_itself_says_of_its_requests(log: str) -> None:
    found = read(log).log
    assert found is not None
    was = reality(found, 0.0)
    assert was["e2e_mean"] == pytest.approx(2.5)
    assert was["ttft_mean"] == pytest.approx(0.2)
    assert reality(found, 7.0)["ttft_mean"] == pytest.approx(0.3)  # the first two came before
    assert reality(found, 99.0) == {}


@pytest.mark.parametrize(
    ("name", "said"),
    [("poison", "poison: there is no such file, and no such generator; generators: poisson"), ("", "cannot read")],
)
def test_what_is_no_trace_is_told(name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OperatorError, match=said):
        read(name)


def test_an_empty_file_and_one_that_is_no_text_are_told(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(b" \n")
    with pytest.raises(OperatorError, match="is empty"):
        read(str(path))
    path.write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(OperatorError, match="is no text"):
        read(str(path))
    path.write_bytes(b"\x1f\x8bno gzip at all")
    with pytest.raises(OperatorError, match="cannot read the trace"):
        read(str(path))


def test_requests_that_all_come_at_once_have_no_pace_to_scale(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_text(log_of(ended(), ended()))
    with pytest.raises(OperatorError, match="2 requests at one moment have no pace"):
        played(read(str(path)), BOX, Pace(load=0.5), 100, 0)
    assert len(played(read(str(path)), BOX, Pace(), 100, 0).arrivals) == 2
