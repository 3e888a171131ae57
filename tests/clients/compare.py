"""Two answers of a client, one through the gateway and one from a replica itself: equal but for times and numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pydantic

_VARIES = frozenset(
    {
        *("created_at", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration"),
        *("id", "item_id", "call_id", "created", "completed_at", "request_id", "expires_at"),
    }
)
"""Moments, durations and random names: all that may differ between two answers to one question."""

C = TypeVar("C")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pair(Generic[C]):
    """One client library twice: pointed at the gateway, and at one replica directly."""

    through: C
    direct: C

    def same(self, call: Callable[[C], T]) -> T:
        """Make the call of both; the answers must be equal. Returns the gateway's."""
        answer = call(self.through)
        assert plain(answer) == plain(call(self.direct))
        return answer


def plain(value: Any) -> Any:
    """Data without what varies."""
    if isinstance(value, pydantic.BaseModel):
        # warnings: these libraries accept shapes that their own types do not name
        return plain(value.model_dump(warnings=False))
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items() if key not in _VARIES}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(part) for part in value]
    return value


def failure(call: Callable[[C], object], kind: type[BaseException]) -> Callable[[C], BaseException]:
    """The call as one that must raise ``kind``: gives the exception."""

    def raised(client: C) -> BaseException:
        try:
            call(client)
        except kind as error:
            return error
        raise AssertionError(f"did not raise {kind.__name__}")

    return raised


def drained(stream: Iterator[T]) -> list[T]:
    """Everything a stream gives."""
    return list(stream)
