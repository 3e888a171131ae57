"""Sorts out what an earlier gateway left running: what can be kept, and what must end before anything is started."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import aiohttp

from corral.gateway.layout.plan import ReplicaPlan
from corral.gateway.run.child import Child
from corral.gateway.run.ledger import LedgerEntry
from corral.gateway.run.processes import MarkedProcess, ProcessId
from corral.model import ProbeResult, Replica
from corral.probes.ollama import OllamaProbe

_PROBE_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Kept:
    """A replica whose process goes on as it is."""

    child: Child
    entry: LedgerEntry


async def keepable(
    entries: Iterable[LedgerEntry],
    found: Collection[MarkedProcess],
    plans: Mapping[str, ReplicaPlan],
    session: aiohttp.ClientSession,
) -> dict[str, Kept]:
    """Those entries, by replica, that a plan wants exactly so and that answer on their port."""
    candidates = []
    for entry in entries:
        plan = plans.get(entry.id)
        leader = _leader(entry, found)
        if leader is not None and plan is not None and plan.signature == entry.signature:
            candidates.append(Kept(Child(leader, entry.token), entry))
    answers = await asyncio.gather(*(_answers(kept.entry, session) for kept in candidates))
    return {kept.entry.id: kept for kept, answers_ in zip(candidates, answers, strict=True) if answers_}


def _leader(entry: LedgerEntry, found: Iterable[MarkedProcess]) -> ProcessId | None:
    """The living process of the entry, even if the gateway died before it noted its number."""
    for process in found:
        if process.token == entry.token and process.leads and not process.frozen:
            return process.id if entry.pid is None or entry.process == process.id else None
    return None


async def _answers(entry: LedgerEntry, session: aiohttp.ClientSession) -> bool:
    probe = OllamaProbe(session, Replica(entry.id, "127.0.0.1", entry.port))
    return (await probe.liveness(_PROBE_S))[0] is ProbeResult.ANSWERED
