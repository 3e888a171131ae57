"""The state folder and its page: locked, whole, and never a reason to fall over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from corral.errors import OperatorError
from corral.gateway.run.ledger import Ledger, LedgerEntry, StateDir, default_state_dir
from corral.gateway.run.processes import ProcessId, boot_id

ENTRY = LedgerEntry(id="a", token="t", signature="s", port=21001, boot="b", pid=12, start_ticks=34)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[StateDir]:
    state = StateDir(tmp_path / "deep" / "state")
    yield state
    with suppress(OSError):
        state.close()


def test_what_is_noted_is_read_by_the_next(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.note(ENTRY)
    assert Ledger(tmp_path).read() == (ENTRY,)
    ledger.forget("a")
    assert Ledger(tmp_path).read() == ()
    assert [path.name for path in tmp_path.iterdir()] == ["replicas.json"]


def test_what_was_read_stays_noted_until_it_is_forgotten(tmp_path: Path) -> None:
    Ledger(tmp_path).note(ENTRY)
    ledger = Ledger(tmp_path)
    ledger.read()
    ledger.note(LedgerEntry(id="b", token="u", signature="s", port=21002, boot="b"))
    assert {entry.id for entry in Ledger(tmp_path).read()} == {"a", "b"}


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"version": 2, "replicas": []}',
        b'{"version": 1, "replicas": [{"id": 1}]}',
        b"[" * 100_000,
    ],
)
def test_a_page_that_makes_no_sense_is_put_aside(tmp_path: Path, page: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "replicas.json").write_bytes(page)
    assert Ledger(tmp_path).read() == ()
    assert (tmp_path / "replicas.json.bad").read_bytes() == page
    assert "ledger_put_aside" in caplog.text


def test_a_page_that_is_a_folder_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "replicas.json").mkdir()
    ledger = Ledger(tmp_path)
    assert ledger.read() == ()
    ledger.note(ENTRY)
    assert Ledger(tmp_path).read() == (ENTRY,)


def test_a_write_that_fails_is_told_once_and_the_next_good_one_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger(tmp_path)
    (tmp_path / "replicas.json.new").mkdir()
    ledger.note(ENTRY)
    ledger.forget("a")
    assert caplog.text.count("ledger_not_written") == 1
    (tmp_path / "replicas.json.new").rmdir()
    ledger.note(ENTRY)
    assert Ledger(tmp_path).read() == (ENTRY,)


def test_a_process_of_another_run_of_the_machine_is_none() -> None:
    assert ENTRY.process is None
    now = LedgerEntry(id="a", token="t", signature="s", port=1, boot=boot_id(), pid=12, start_ticks=34)
    assert now.process == ProcessId(12, 34)


def test_a_folder_belongs_to_one_gateway_at_a_time(folder: StateDir) -> None:
    with pytest.raises(OperatorError, match=rf"in use by the gateway with process number {os.getpid()}"):
        StateDir(folder.path)
    folder.close()
    again = StateDir(folder.path)
    assert again.home == folder.home
    again.close()


def test_the_lock_is_not_inherited(folder: StateDir) -> None:
    assert not os.get_inheritable(folder._lock)


def test_tokens_differ_and_begin_with_the_mark_of_their_folder(folder: StateDir) -> None:
    tokens = {folder.new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(token.startswith(folder.home) and ":" not in token for token in tokens)


def test_a_folder_that_cannot_be_made_is_the_operators_matter(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OperatorError, match=r"cannot use .*file/state.*Not a directory.*state_dir:"):
        StateDir(tmp_path / "file" / "state")


def test_a_full_disk_is_found_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OperatorError, match=r"cannot write to .*No space left on device; make room"):
        StateDir(tmp_path / "state")
    monkeypatch.undo()
    StateDir(tmp_path / "state").close()


def test_the_folder_is_where_the_desktop_says() -> None:
    assert default_state_dir({"XDG_STATE_HOME": "/x", "HOME": "/h"}) == Path("/x/corral")
    assert default_state_dir({"XDG_STATE_HOME": "relative", "HOME": "/h"}) == Path("/h/.local/state/corral")
    assert default_state_dir({"HOME": "/h"}) == Path("/h/.local/state/corral")
