"""Lines into a file that others move away, fill up or take the folder of."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from corral.gateway.serve import line_file
from corral.gateway.serve.line_file import LineFile

PATIENCE_S = 10.0


class Stage:
    """A file under test, its clock, and what it told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now_s = 0.0
        self.told: list[str] = []
        self.file = LineFile(path, self.tell, lambda: self.now_s)

    def tell(self, level: int, message: str, *values: object) -> None:
        self.told.append(message % values)

    def put(self, *lines: str) -> None:
        """Returns when they were written, or lost."""
        self.file.put([f"{line}\n".encode() for line in lines])
        self.settle()

    def settle(self) -> None:
        deadline = threading.Event()
        for _ in range(int(PATIENCE_S / 0.002)):
            with self.file._more:
                if not self.file._waiting and not self.file._count and not self.file._reopen:
                    return
            deadline.wait(0.002)
        raise TimeoutError

    def end(self) -> None:
        ended = threading.Event()
        self.file.end(ended.set)
        assert ended.wait(PATIENCE_S)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "access.log")
    yield made
    made.end()


def test_lines_are_appended_to_what_is_there(stage: Stage) -> None:
    stage.path.write_text("before\n")
    stage.put("one", "two")
    stage.put("three")
    assert stage.path.read_text() == "before\none\ntwo\nthree\n"


def test_a_new_file_is_not_for_everybody(stage: Stage) -> None:
    stage.put("one")
    assert stage.path.stat().st_mode & 0o007 == 0


def test_a_file_that_was_moved_away_is_followed_by_a_new_one(stage: Stage) -> None:
    stage.put("one")
    stage.path.rename(stage.path.with_suffix(".1"))
    stage.put("two")
    assert stage.path.with_suffix(".1").read_text() == "one\n"
    assert stage.path.read_text() == "two\n"
    assert stage.told == []


def test_a_file_that_another_took_the_place_of_gets_no_more(stage: Stage) -> None:
    stage.put("one")
    stage.path.with_suffix(".new").write_text("")
    stage.path.with_suffix(".new").replace(stage.path)
    stage.put("two")
    assert stage.path.read_text() == "two\n"


def test_a_file_that_was_cut_to_nothing_goes_on_from_there(stage: Stage) -> None:
    stage.put("one")
    os.truncate(stage.path, 0)
    stage.put("two")
    assert stage.path.read_text() == "two\n"


def test_a_folder_that_is_gone_is_said_once_and_tried_again_later(stage: Stage, tmp_path: Path) -> None:
    stage.put("one")
    tmp_path.rename(tmp_path.with_name("gone"))
    stage.put("two", "three")
    stage.now_s += line_file.RETRY_S
    stage.put("four")
    assert len(stage.told) == 1
    assert "No such file or directory" in stage.told[0]
    tmp_path.with_name("gone").rename(tmp_path)
    stage.put("five")
    assert stage.path.read_text() == "one\n"
    stage.now_s += line_file.RETRY_S
    stage.put("six")
    assert stage.path.read_text() == "one\nsix\n"
    assert "access_log_goes_on" in stage.told[1]
    assert "lost=4" in stage.told[1]


def test_a_reload_tries_at_once(stage: Stage, tmp_path: Path) -> None:
    tmp_path.rename(tmp_path.with_name("gone"))
    stage.put("one")
    tmp_path.with_name("gone").rename(tmp_path)
    stage.file.reopen()
    stage.settle()
    stage.put("two")
    assert stage.path.read_text() == "two\n"


def full_after(count: int) -> Callable[[int, memoryview], int]:
    """A disk with room for so many bytes, which takes what still fits."""
    room = [count]
    write = os.write

    def write_some(file: int, data: memoryview) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        done = write(file, data[: room[0]])
        room[0] -= done
        return done

    return write_some


def test_a_full_disk_leaves_no_line_glued_to_another(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full_after(6))
        stage.put("one", "two", "three")
    assert stage.path.read_text() == "one\ntw"
    assert "No space left on device" in stage.told[0]
    stage.now_s += line_file.RETRY_S
    stage.put("four")
    assert stage.path.read_text() == "one\ntw\nfour\n"


def test_a_real_full_disk_is_a_warning(tmp_path: Path) -> None:
    stage = Stage(Path("/dev/full"))
    stage.put("one")
    stage.end()
    assert "No space left on device" in stage.told[0]


def test_of_too_many_lines_the_newest_are_lost_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_file, "MOST_WAITING", 10)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # opening it waits for a reader, as writing waits for a disk that hangs
    stage = Stage(pipe)
    for number in range(8):
        stage.file.put([b"%d\n" % (2 * number), b"%d\n" % (2 * number + 1)])
    assert [line.split()[0] for line in stage.told] == ["access_log_waits"]  # once, and while it lasts
    reader = os.open(pipe, os.O_RDONLY)
    stage.end()
    assert os.read(reader, 1000) == b"".join(b"%d\n" % number for number in range(10))
    os.close(reader)
    assert "lost=6" in stage.told[-1]


def test_the_last_lines_are_written_at_the_end(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "access.log")
    stage.file.put([b"one\n"])
    stage.end()
    assert stage.path.read_text() == "one\n"
