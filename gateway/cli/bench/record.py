"""What became of one request of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Ending(Enum):
    """How it ended. Only a whole answer is a success."""

    OK = "ok"
    REFUSED = "refused"
    """503: it has too much to do, and says so."""
    ERROR = "error"
    """Anything else: another status, an error in the stream, an answer that is not whole, no answer in time."""
    UNFINISHED = "unfinished"
    """The time was over: it says nothing."""


@dataclass(frozen=True, slots=True)
class Record:
    """Times on one clock."""

    ending: Ending
    sent_s: float
    end_s: float
    first_s: float | None = None
    """When its first text came."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    replica: str | None = None
    """Who answered, where the address is a Corral."""
    why: str = ""
    """Of an error: a few words."""
    retry_after_s: float | None = None
    """How long a refusal asks to wait."""

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_s is None else self.first_s - self.sent_s

    @property
    def e2e_s(self) -> float:
        return self.end_s - self.sent_s

    @property
    def stream_tok_s(self) -> float | None:
        """Tokens a second after the first one; None: too few, or too quick to tell."""
        if self.first_s is None or self.output_tokens < 2 or self.end_s <= self.first_s:
            return None
        return (self.output_tokens - 1) / (self.end_s - self.first_s)
