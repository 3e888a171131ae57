"""What is observed of one replica, and when that changes whether it gets requests.

Rules of this file:

1. Every transition is a line of :data:`TRANSITIONS`; a pair that is not there changes nothing.
2. Evidence is counted first, and only a count that reaches its limit becomes a :class:`Sign`. One odd answer flips
   nothing; one good answer takes back all that was counted.
3. Silence counts only where nothing else is heard: a probe that timed out is not counted if bytes came from the
   replica since the probe before it. A replica that is busy or loading a model is not down.
4. Slowness is no sign. Only requests that *fail* eject a replica, and failures that stem from one event count once: a
   failed request counts only if it was sent after the last failure that counted. Ten streams that break when one
   process dies are one failure; a replica that fails fast collects its count within a few round trips.
5. This file does not know the other replicas: the caller says whether this one may be ejected.

Theory of operation: probes tell whether anything is there (UP, DOWN), requests tell whether it works (EJECTED). A DOWN
replica gets nothing and comes back by probes alone. An EJECTED one sits out its time, is then let one request at a
time, and comes back when one of them is answered; if that fails it sits out longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from corral.model import Health, ProbeResult


@dataclass(frozen=True, slots=True)
class HealthRules:
    """The limits. With one probe a second: dead after 2 s at most, after a request or two if some meet it."""

    fall_refused: int = 2
    """Refused probes, or requests that could not connect, in a row until it is down."""
    fall_timeouts: int = 3
    fall_nonsense: int = 3
    rise: int = 2
    """Answered probes in a row until one that was down is up."""
    eject_after: int = 5
    """Failed requests in a row, see rule 4."""
    eject_base_s: float = 10.0
    """It sits out this long times the number of ejections in a row."""
    eject_max_s: float = 300.0


class Sign(Enum):
    """A conclusion from counted evidence."""

    ALIVE = auto()
    """Probes are answered."""
    DEAD = auto()
    """Probes are refused, unanswered or answered with nonsense."""
    FAULTY = auto()
    """Requests fail in a row."""
    PROVEN = auto()
    """A request was answered."""


TRANSITIONS: dict[tuple[Health, Sign], Health] = {
    (Health.UNKNOWN, Sign.ALIVE): Health.UP,
    (Health.UNKNOWN, Sign.PROVEN): Health.UP,
    (Health.UNKNOWN, Sign.FAULTY): Health.EJECTED,
    (Health.UNKNOWN, Sign.DEAD): Health.DOWN,
    (Health.UP, Sign.FAULTY): Health.EJECTED,
    (Health.UP, Sign.DEAD): Health.DOWN,
    (Health.EJECTED, Sign.PROVEN): Health.UP,
    (Health.EJECTED, Sign.DEAD): Health.DOWN,
    (Health.DOWN, Sign.ALIVE): Health.UP,
}


class Change(NamedTuple):
    """A flip, with its reason in words."""

    before: Health
    after: Health
    reason: str


class HealthRecord:
    """The evidence on one replica. Every method takes the time of the event and returns the flip it caused, if any."""

    __slots__ = (
        "_answered",
        "_counted_failure_s",
        "_ejected_at_s",
        "_ejections",
        "_failures",
        "_heard_s",
        "_misses",
        "_probed_s",
        "_rules",
        "back_at_s",
        "reason",
        "state",
    )

    def __init__(self, rules: HealthRules) -> None:
        self._rules = rules
        self.state = Health.UNKNOWN
        self.reason = "not probed yet"
        self.back_at_s = 0.0
        """When an ejected replica has sat out its time."""
        self._misses: dict[ProbeResult, int] = {}
        self._answered = 0
        self._failures = 0
        self._ejections = 0
        self._ejected_at_s = 0.0
        self._counted_failure_s = float("-inf")
        self._heard_s = float("-inf")
        self._probed_s = float("-inf")

    def heard(self, now_s: float) -> None:
        """Bytes came from it."""
        self._heard_s = now_s

    def probed(self, result: ProbeResult, now_s: float) -> Change | None:
        previous_s, self._probed_s = self._probed_s, now_s
        if result is ProbeResult.ANSWERED:
            return self._answered_probe()
        self._answered = 0
        if result is ProbeResult.TIMED_OUT and self._heard_s > previous_s:
            self._misses.pop(result, None)
            return None
        return self._missed(result)

    def could_not_connect(self) -> Change | None:
        """A request could not connect: as good a probe as any."""
        self._answered = 0
        return self._missed(ProbeResult.REFUSED)

    def request_failed(self, sent_at_s: float, now_s: float, *, may_eject: bool, reason: str) -> Change | None:
        """It took a request and failed it. ``may_eject``: another replica is there to take its place."""
        if sent_at_s < self._counted_failure_s:
            return None
        self._counted_failure_s = now_s
        self._failures += 1
        if self.state is Health.EJECTED:
            if sent_at_s >= self.back_at_s:
                self._sit_out(now_s)
            return None
        if self._failures < self._rules.eject_after or not may_eject:
            return None
        change = self._apply(Sign.FAULTY, f"{self._failures} requests failed in a row, the last: {reason}")
        if change:
            self._sit_out(now_s)
        return change

    def request_answered(self, sent_at_s: float, now_s: float) -> Change | None:
        """A request ended well; one that was sent before the ejection proves nothing about the time after it."""
        self._heard_s = now_s
        if self.state is Health.EJECTED and sent_at_s < self._ejected_at_s:
            return None
        if self.state is not Health.DOWN:
            self._misses.clear()
        self._failures = self._ejections = 0
        return self._apply(Sign.PROVEN, "a request was answered")

    def request_begun(self) -> Change | None:
        """The request on probation has had its first byte; should its stream break, one failure ejects again."""
        return self._apply(Sign.PROVEN, "a request is being answered")

    def _answered_probe(self) -> Change | None:
        self._misses.clear()
        self._answered += 1
        if self.state is Health.DOWN:
            if self._answered < self._rules.rise:
                return None
            self._failures = self._ejections = 0
        return self._apply(Sign.ALIVE, "answers its probe")

    def _missed(self, result: ProbeResult) -> Change | None:
        count = self._misses[result] = self._misses.get(result, 0) + 1
        limit = {
            ProbeResult.REFUSED: self._rules.fall_refused,
            ProbeResult.TIMED_OUT: self._rules.fall_timeouts,
            ProbeResult.NONSENSE: self._rules.fall_nonsense,
        }[result]
        return self._apply(Sign.DEAD, f"{result.value}, {count} times in a row") if count >= limit else None

    def _apply(self, sign: Sign, reason: str) -> Change | None:
        after = TRANSITIONS.get((self.state, sign))
        if after is None:
            return None
        change = Change(self.state, after, reason)
        self.state, self.reason = after, reason
        return change

    def _sit_out(self, now_s: float) -> None:
        self._ejections += 1
        self._ejected_at_s = now_s
        self.back_at_s = now_s + min(self._rules.eject_base_s * self._ejections, self._rules.eject_max_s)
