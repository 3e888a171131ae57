"""A log that is written and rotated while somebody reads it."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from corral.gateway.run.logs import rotate
from corral.gateway.run.tailing import LONGEST_LINE, PIECE_BYTES, TAIL_BYTES, Tail


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "gpu0.log"


def write(log: Path, *lines: str, end: str = "\n") -> None:
    with log.open("a") as file:
        file.write("".join(f"{line}\n" for line in lines[:-1]) + "".join(lines[-1:]) + end)


def test_the_last_lines_and_then_what_comes(log: Path) -> None:
    write(log, "a", "b", "c")
    tail = Tail(log)
    assert tail.last(2) == ["b", "c"]
    assert tail.more() == []
    write(log, "d")
    assert tail.more() == ["d"]
    assert tail.more() == []


def test_none_of_the_last_lines_still_means_what_comes(log: Path) -> None:
    write(log, "a")
    tail = Tail(log)
    assert tail.last(0) == []
    write(log, "b")
    assert tail.more() == ["b"]


def test_a_line_is_told_when_its_end_is_written(log: Path) -> None:
    write(log, "a", "be", end="")
    tail = Tail(log)
    assert tail.last(10) == ["a"]
    write(log, "gin")
    assert tail.more() == ["begin"]


def test_a_log_that_is_not_there_has_no_lines_until_it_is(log: Path) -> None:
    tail = Tail(log)
    assert tail.last(5) == []
    assert tail.more() == []
    write(log, "first")
    assert tail.more() == ["first"]


@pytest.mark.parametrize("files", [1, 3])
def test_nothing_is_lost_or_told_twice_when_the_log_is_rotated(log: Path, files: int) -> None:
    write(log, "a")
    tail = Tail(log)
    assert tail.last(5) == ["a"]
    for round_ in range(3):
        write(log, f"before {round_}")
        assert rotate(log, 0, files)
        write(log, f"after {round_}")
        assert tail.more() == [f"before {round_}", f"after {round_}"]


def test_a_log_that_was_emptied_by_somebody_else_brings_back_nothing_old(log: Path) -> None:
    write(log, "x" * 50)
    rotate(log, 0, 3)
    write(log, "y" * 20)
    tail = Tail(log)
    tail.last(5)
    os.truncate(log, 0)
    assert tail.more() == []
    write(log, "new")
    assert tail.more() == ["new"]


def test_any_course_of_writing_reading_and_rotating_tells_each_line_once_in_order(log: Path) -> None:
    rng = Random(6)
    written, told = ["start"], []
    write(log, "start")
    tail = Tail(log)
    told += tail.last(1)
    for _ in range(2000):
        match rng.choice(("write", "write", "read", "rotate")):
            case "write":
                written.append(f"line {len(written)} {'x' * rng.randrange(80)}")
                write(log, written[-1])
            case "read":
                told += tail.more()
            case _ if len(told) == len(written):  # twice between two reads is more than the gateway ever does
                written.append(f"line {len(written)}")
                write(log, written[-1])
                rotate(log, 0, 2)
    while more := tail.more():
        told += more
    assert told == written


def test_no_read_is_without_a_bound(log: Path) -> None:
    write(log, *(f"{number:07}" for number in range(TAIL_BYTES // 4)))
    tail = Tail(log)
    found = tail.last(10**6)
    assert len(found) == TAIL_BYTES // 8 - 1
    assert found[-1] == f"{TAIL_BYTES // 4 - 1:07}"
    write(log, *("z" * 99 for _ in range(PIECE_BYTES // 50)))
    pieces = []
    while piece := tail.more():
        pieces.append(sum(len(line) + 1 for line in piece))
    assert len(pieces) == 2
    assert max(pieces) <= PIECE_BYTES + 100


def test_a_line_without_an_end_is_cut(log: Path) -> None:
    write(log, "a")
    tail = Tail(log)
    tail.last(1)
    write(log, "w" * (LONGEST_LINE * 3), end="")
    assert tail.more() == ["w" * LONGEST_LINE]


def test_bytes_that_are_no_text_are_shown_somehow(log: Path) -> None:
    log.write_bytes(b"\xff\xfe broken\r\n")
    assert Tail(log).last(1) == ["\ufffd\ufffd broken"]
