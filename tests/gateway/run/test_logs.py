"""Replica logs: kept small while they are written, read from their end, quoted without prompts or secrets."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from corral.gateway.run.logs import drop_beyond, last_lines, last_words, rotate


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_log_that_is_too_large_moves_on_and_its_writer_goes_on_in_the_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    with path.open("ab", buffering=0) as writer:
        for word in (b"first", b"second", b"third", b"fourth"):
            writer.write(word * 10)
            assert rotate(path, 20, 2)
        writer.write(b"end")
        assert not rotate(path, 20, 2)
    assert contents(tmp_path) == {"a.log": b"end", "a.log.1": b"fourth" * 10, "a.log.2": b"third" * 10}


def test_a_log_that_is_not_there_is_not_rotated(tmp_path: Path) -> None:
    assert not rotate(tmp_path / "a.log", 20, 2)


def test_a_log_that_cannot_be_copied_is_emptied_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.log"
    path.write_bytes(b"x" * 100)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        rotate(path, 20, 2)
    assert path.read_bytes() == b""


def test_logs_beyond_what_is_kept_are_deleted(tmp_path: Path) -> None:
    for name in ("a.log", "a.log.1", "a.log.2", "a.log.10", "a.log.bak", "b.log.9"):
        (tmp_path / name).touch()
    drop_beyond(tmp_path / "a.log", 1)
    assert set(contents(tmp_path)) == {"a.log", "a.log.1", "a.log.bak", "b.log.9"}


def test_the_last_lines_are_read_from_the_end_of_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 1 << 32)  # a hole: reading it whole would take a while
        file.seek(0, os.SEEK_END)
        file.write(b"\none\n\n  \ntwo \xff\nthree")
    assert last_lines(path, 2) == ["two \N{REPLACEMENT CHARACTER}", "three"]


def test_lines_of_an_earlier_start_are_not_its_last_words(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("before\n")
    since = path.stat().st_size
    assert last_lines(path, 5, since) == []
    with path.open("a") as file:
        file.write("after\n")
    assert last_lines(path, 5, since) == ["after"]
    path.write_text("new\n")
    assert last_lines(path, 5, since) == ["new"], "it was rotated meanwhile"
    assert last_lines(tmp_path / "none", 5) == []


def test_last_words_fit_in_one_bounded_line(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("".join(f'{n} "quoted" \x1b[31m{"x" * 1000}\n' for n in range(20)))
    said = last_words(path, {})
    assert len(said) <= 1500
    assert not {'"', "\n", "\x1b"} & set(said)


def test_what_ollama_says_of_its_environment_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text('time=x msg="server config" env="map[HTTP_PROXY:http://user:secret@proxy]"\nno such device\n')
    assert last_words(path, {}) == "no such device"


@pytest.mark.parametrize(
    ("env", "quoted"),
    [
        ({}, True),
        ({"OLLAMA_DEBUG": "1"}, True),
        ({"OLLAMA_DEBUG": "false"}, True),
        ({"OLLAMA_DEBUG": "2"}, False),
        ({"OLLAMA_DEBUG": '"2"'}, False),
        ({"OLLAMA_DEBUG_LOG_REQUESTS": "0"}, True),
        ({"OLLAMA_DEBUG_LOG_REQUESTS": "true"}, False),
        ({"LLAMA_LOG_VERBOSITY": "5"}, False),
    ],
)
def test_an_ollama_that_logs_what_it_is_asked_is_not_quoted(tmp_path: Path, env: dict[str, str], quoted: bool) -> None:
    path = tmp_path / "a.log"
    path.write_text("words\n")
    assert last_words(path, env) == ("words" if quoted else "")
