"""Server-sent events, in whatever pieces they come."""

from __future__ import annotations

import pytest

from corral.gateway.cli import events
from corral.gateway.cli.events import Events

STREAM = (
    b': a comment\nevent: snapshot\ndata: {"a": "\xc3\xa9"}\n\n'
    b'event: log\r\ndata: {"b":\r\ndata: 2}\r\n\r\nevent: empty\n\ndata:{"c": 3}\n\ndata: no json\n\ndata: [4]\n\n'
)


def test_pieces_of_any_size_make_the_same_events() -> None:
    whole = Events().feed(STREAM)
    assert whole == [("snapshot", {"a": "é"}), ("log", {"b": 2}), ("message", {"c": 3})]
    for size in range(1, len(STREAM)):
        parser = Events()
        pieces = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
        assert [event for piece in pieces for event in parser.feed(piece)] == whole


def test_an_event_without_an_end_is_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LONGEST", 100)
    parser = Events()
    for _ in range(9):
        assert parser.feed(b"data: 1234567890\n") == []
    with pytest.raises(ValueError, match="without an end"):
        parser.feed(b"data: 123456789012345\n")
