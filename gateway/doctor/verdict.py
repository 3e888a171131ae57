"""What a check says: how bad, what was found, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """How bad a finding is, the mildest first."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"

    @property
    def exit_code(self) -> int:
        """What ``corral doctor`` exits with where nothing is worse."""
        return list(Level).index(self)


def worst(levels: Sequence[Level]) -> Level:
    """The worst of them; ok where there are none."""
    return max(levels, key=lambda level: level.exit_code, default=Level.OK)


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one check."""

    name: str
    level: Level
    found: str
    """A few words; what is not known is said to be not known, and is neither good nor bad news."""
    advice: str | None = None
    """What to do about it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One part of a check that looks at several things, one after the other."""

    level: Level
    found: str
    advice: str | None = None


def check_of(name: str, findings: Sequence[Finding], otherwise: str) -> Check:
    """One check of several findings, the worst first; ``otherwise`` is what was found where there is none."""
    ordered = sorted(findings, key=lambda finding: -finding.level.exit_code)
    advice = dict.fromkeys(finding.advice for finding in ordered if finding.advice)
    return Check(
        name,
        worst([finding.level for finding in ordered]),
        "; ".join(finding.found for finding in ordered) or otherwise,
        "; ".join(advice) or None,
    )
