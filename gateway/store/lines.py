"""The lines in which an Ollama tells how far a pull, push or create has come."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

_Count = Annotated[int, msgspec.Meta(ge=0)]


class Line(msgspec.Struct, frozen=True):
    """One of them, as it came and as far as it could be read."""

    raw: bytes
    """With its newline."""
    status: str = ""
    digest: str = ""
    """Of the layer that it is about; empty: it is about none."""
    total: int = 0
    completed: int = 0
    error: str | None = None

    @property
    def key(self) -> str | bytes:
        """A later line of this key says all that this one does."""
        return self.digest or self.status or self.raw

    @property
    def is_last(self) -> bool:
        """Whether an Ollama says nothing after it."""
        return self.error is not None or self.status == "success"


class _Fields(msgspec.Struct):
    status: str = ""
    digest: str = ""
    total: _Count = 0
    completed: _Count = 0
    error: object = None


_decode: Final = msgspec.json.Decoder(_Fields).decode


def read_line(raw: bytes) -> Line:
    try:
        fields = _decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):  # it is passed on all the same
        return Line(raw)
    return Line(raw, fields.status, fields.digest, fields.total, fields.completed, _text(fields.error))


def _text(error: object) -> str | None:
    return error if error is None or isinstance(error, str) else str(error)


def layer_line(status: str, digest: str, total: int, completed: int) -> Line:
    """As Ollama writes one: a ``completed`` of nothing is left out."""
    fields: dict[str, object] = {"status": status, "digest": digest, "total": total}
    if completed:
        fields["completed"] = completed
    return Line(msgspec.json.encode(fields) + b"\n", status, digest, total, completed)
