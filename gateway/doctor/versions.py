"""Versions of Ollama that are known to be bad, with the reason."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, NamedTuple

from corral.gateway.doctor.verdict import Level

Version = tuple[int, ...]
"""Three numbers, see :func:`corral.gateway.layout.version.parts`."""


class Concern(Enum):
    """Whom a version's fault concerns."""

    EVERYBODY = auto()
    MIG = auto()
    """Machines with MIG devices."""
    GROUPS = auto()
    """Replicas with several GPUs."""
    OTHERS = auto()
    """Machines on which another Ollama runs beside Corral's."""


class Fault(NamedTuple):
    """What is wrong with a range of versions."""

    first: Version
    fixed: Version
    """The first version without it."""
    level: Level
    why: str
    concern: Concern = Concern.EVERYBODY


FAULTS: Final = (
    Fault((0, 0, 0), (0, 1, 29), Level.PROBLEM, "any web page can use it through DNS rebinding (CVE-2024-28224)"),
    Fault((0, 0, 0), (0, 1, 34), Level.PROBLEM, "a prepared model that is pulled runs programs here (CVE-2024-37032)"),
    Fault((0, 0, 0), (0, 1, 47), Level.PROBLEM, "a prepared archive writes outside the store (CVE-2024-45436)"),
    Fault((0, 0, 0), (0, 17, 1), Level.WARNING, "a prepared model reads the prompts of others (CVE-2026-7482)"),
    Fault((0, 0, 0), (0, 5, 13), Level.WARNING, "it ignores OLLAMA_CONTEXT_LENGTH, so `ollama.context_length` too"),
    Fault(
        (0, 0, 0),
        (0, 21, 0),
        Level.WARNING,
        "when one starts by hand on the same store, it removes the pulls that are running (ollama #8891)",
        Concern.OTHERS,
    ),
    Fault(
        (0, 13, 2), (0, 16, 0), Level.PROBLEM, "it runs on the CPU where a GPU is split (ollama #14031)", Concern.MIG
    ),
    Fault(
        (0, 30, 6),
        (0, 30, 7),
        Level.WARNING,
        "it spreads a model over all GPUs of a group though one would do (ollama #16599)",
        Concern.GROUPS,
    ),
)


def faults_of(version: Version, concerns: frozenset[Concern]) -> list[Fault]:
    """Those of :data:`FAULTS` that this version has and that concern this machine."""
    return [fault for fault in FAULTS if fault.first <= version < fault.fixed and fault.concern in concerns]


def shown(version: Version) -> str:
    return ".".join(map(str, version))
