"""What follows from an event of the emulated Ollama's scheduler."""

from __future__ import annotations

from dataclasses import dataclass

from corral.emulator.runner import Runner


@dataclass(frozen=True, slots=True)
class Granted:
    """The job has its runner (referenced until ``done``)."""

    job_id: int
    runner: Runner


@dataclass(frozen=True, slots=True)
class SlotTaken:
    """The job holds a slot of its runner until ``done``."""

    job_id: int
    runner: Runner


@dataclass(frozen=True, slots=True)
class Refused:
    job_id: int
    status: int
    message: str


@dataclass(frozen=True, slots=True)
class Gone:
    """A runner left memory, and its caches with it."""

    runner: Runner


Effect = Granted | SlotTaken | Refused | Gone
