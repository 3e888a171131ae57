"""How an operation ended: what a replica said at its end, or what the gateway says for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from corral.errors import CorralError, Refusal
from corral.gateway.wire.answering import JSON
from corral.gateway.wire.dialect import Dialect, error_body, refusal_answer


@dataclass(frozen=True, slots=True)
class Said:
    """A whole answer, or the last line of one in lines."""

    status: int
    body: bytes
    content_type: bytes = JSON
    ok: bool = False
    is_line: bool = False
    """The body is a line with its newline; lines came before it, probably."""
    headers: bytes = b""
    """Further lines of the head, each with its CRLF."""
    is_absent: bool = False
    """The store does not have the model that this is about."""

    @property
    def line(self) -> bytes:
        """As the end of a stream of lines."""
        return self.body if self.is_line else self.body.rstrip(b"\r\n") + b"\n"

    @property
    def message(self) -> str:
        """Why it failed."""
        return _message(self.body) or f"status {self.status}"


class StoreError(CorralError):
    """A store was not changed as it should have been: what a client is told."""

    def __init__(
        self, status: int, message: str, replica_id: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.replica_id = replica_id
        """Where it failed; None: nowhere in particular."""
        self.retry_after_s = retry_after_s

    def said(self) -> Said:
        headers = b"" if self.retry_after_s is None else b"Retry-After: %d\r\n" % self.retry_after_s
        return Said(self.status, error_body(Dialect.NATIVE, self.status, self.message), headers=headers)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended in one store."""

    where: str
    """Ids of replicas, for a person."""
    said: Said


PARTIAL: Final = 500
"""The status of what was done in some stores, but not in all; Ollama's own for what fails later."""


def combine(outcomes: Sequence[Outcome]) -> Said:
    """What a client is told who asked one Ollama. Where some did it and some did not, both are named."""
    if not outcomes:
        return StoreError(*refusal_answer(Refusal.NO_REPLICA)).said()
    counting = [outcome for outcome in outcomes if not outcome.said.is_absent] or outcomes
    failed = [outcome for outcome in counting if not outcome.said.ok]
    done = [outcome for outcome in counting if outcome.said.ok]
    if not failed:
        return max((outcome.said for outcome in done), key=lambda said: said.status)
    first = failed[0].said
    if not done and all(_same(first, outcome.said) for outcome in failed):
        return first
    whys = "; ".join(f"{outcome.where}: {outcome.said.message}" for outcome in failed)
    succeeded = f"; it succeeded at {all_of([outcome.where for outcome in done])}" if done else ""
    status = PARTIAL if done else max(outcome.said.status for outcome in failed)
    return StoreError(status, f"it failed at {whys}{succeeded}").said()


def all_of(words: Sequence[str]) -> str:
    """``a, b and c``."""
    *rest, last = words
    return f"{', '.join(rest)} and {last}" if rest else last


def _same(one: Said, other: Said) -> bool:
    return (one.status, one.message) == (other.status, other.message)


class _Error(msgspec.Struct):
    error: str = ""


def _message(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Error).error
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ""
