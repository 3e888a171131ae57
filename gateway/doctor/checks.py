"""The checks in the order of the page, and what they say together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from corral.gateway.doctor import checks_gpu, checks_machine, checks_ollama, checks_use
from corral.gateway.doctor.facts import DoctorFacts
from corral.gateway.doctor.verdict import Check, Level, worst

Rule = Callable[[DoctorFacts], Check | None]
"""Pure. None: it does not concern this machine."""


class Area(NamedTuple):
    """Checks that stand together."""

    title: str
    rules: tuple[Rule, ...]


CHECKS: Final = (
    Area(
        "GPUs",
        (
            checks_gpu.gpus,
            checks_gpu.driver,
            checks_gpu.nvml,
            checks_gpu.capability,
            checks_gpu.persistence,
            checks_gpu.mig,
            checks_use.ecc,
            checks_gpu.links,
            checks_use.order,
            checks_use.hidden,
            checks_use.slowed,
            checks_use.foreign,
            checks_gpu.amd_access,
            checks_machine.container,
            checks_machine.wsl,
        ),
    ),
    Area(
        "Ollama",
        (
            checks_ollama.program,
            checks_ollama.version,
            checks_ollama.others,
            checks_ollama.store,
            checks_ollama.sharing,
            checks_ollama.disk,
            checks_machine.prompt_caches,
            checks_machine.model_memory,
        ),
    ),
    Area(
        "Corral",
        (
            checks_machine.configuration,
            checks_ollama.ports,
            checks_machine.state,
            checks_machine.limits,
            checks_machine.numa,
            checks_machine.software,
            checks_machine.gathering,
        ),
    ),
)


class Report(NamedTuple):
    """All that was said, by area."""

    areas: tuple[tuple[str, tuple[Check, ...]], ...]

    @property
    def checks(self) -> tuple[Check, ...]:
        return tuple(check for _, checks in self.areas for check in checks)

    @property
    def worst(self) -> Level:
        return worst([check.level for check in self.checks])


def examine(facts: DoctorFacts) -> Report:
    """Run every check that concerns this machine."""
    areas = []
    for area in CHECKS:
        outcomes = [rule(facts) for rule in area.rules]
        areas.append((area.title, tuple(outcome for outcome in outcomes if outcome is not None)))
    return Report(tuple(areas))
