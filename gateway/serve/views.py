"""The pages clients see of several Ollamas as of one: unions of what the replicas answered, in Ollama's own shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from corral.model import normalise_model
from corral.probes.ollama import PsEntry, TagsEntry


@dataclass(frozen=True, slots=True)
class ReplicaPages:
    """What one replica last answered; None: never read. A page that fails later leaves the last one standing."""

    replica_id: str
    version: str | None = None
    tags: tuple[TagsEntry, ...] | None = None
    tags_at_s: float | None = None
    """When the reading began, on the gateway's monotonic clock."""
    ps: tuple[PsEntry, ...] | None = None
    ps_at_s: float | None = None


class _OpenAIModel(msgspec.Struct):
    id: str
    object: str
    created: int
    owned_by: str


class _OpenAIList(msgspec.Struct):
    object: str
    data: list[_OpenAIModel] | None


def merge_tags(pages: Iterable[ReplicaPages]) -> bytes:
    """``/api/tags``: every model of any replica once, the newest first."""
    return _models(_union(pages))


def merge_ps(pages: Iterable[ReplicaPages]) -> bytes:
    """``/api/ps``: every loaded copy of every replica, the one that stays longest first."""
    entries = [entry for page in pages for entry in page.ps or ()]
    return _models(_latest_first(entries, [entry.expires_s for entry in entries]))


def openai_models(pages: Iterable[ReplicaPages]) -> bytes:
    """``/v1/models``; Ollama's own answer to an empty store is ``"data":null``."""
    data = [_openai_model(entry, entry.spelled) for entry in _union(pages)]
    return _line(_OpenAIList("list", data or None))


def openai_model(pages: Iterable[ReplicaPages], name: str) -> bytes | None:
    """``/v1/models/{name}``, the name echoed as it was asked; None: no replica has it."""
    wanted = normalise_model(name)
    found = next((entry for entry in _union(pages) if entry.model.name == wanted), None)
    return None if found is None else _line(_openai_model(found, name))


def lowest_version(versions: Iterable[str]) -> str | None:
    """The oldest version, ``0.33.0-rc2`` before ``0.33.0``; unreadable ones count only where no other is known."""
    known = list(versions)
    readable = [(order, version) for version in known if (order := _version_order(version)) is not None]
    if readable:
        return min(readable)[1]
    return min(known, default=None)


def _union(pages: Iterable[ReplicaPages]) -> list[TagsEntry]:
    """One entry a name. Where replicas hold different models under one name, the one pulled last speaks for it."""
    newest: dict[str, TagsEntry] = {}
    for page in pages:
        for entry in page.tags or ():
            held = newest.get(entry.model.name)
            if held is None or entry.modified_s > held.modified_s:
                newest[entry.model.name] = entry
    entries = list(newest.values())
    return _latest_first(entries, [entry.modified_s for entry in entries])


_E = TypeVar("_E", TagsEntry, PsEntry)


def _latest_first(entries: Sequence[_E], times_s: Sequence[float]) -> list[_E]:
    """Ollama's order: by whole seconds and stable, so that a single replica's page keeps its own."""
    order = sorted(range(len(entries)), key=lambda index: -math.floor(times_s[index]))
    return [entries[index] for index in order]


def _models(entries: Sequence[TagsEntry] | Sequence[PsEntry]) -> bytes:
    return b'{"models":[' + b",".join(entry.raw for entry in entries) + b"]}"


def _openai_model(entry: TagsEntry, name: str) -> _OpenAIModel:
    return _OpenAIModel(name, "model", math.floor(entry.modified_s), _namespace(name))


def _namespace(name: str) -> str:
    """``jmorganca`` of ``host/jmorganca/model:tag``; ``library`` where the name has none."""
    parts = name.split("://", 1)[-1].split("/")
    return parts[-2] if len(parts) > 1 else "library"


def _line(answer: msgspec.Struct) -> bytes:
    return msgspec.json.encode(answer) + b"\n"  # Ollama's OpenAI pages end in a newline, its own do not


_VERSION = re.compile(r"v?(\d{1,9})\.(\d{1,9})(?:\.(\d{1,9}))?(?:-([0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?", re.ASCII)

_Order = tuple[int, int, int, bool, tuple[tuple[int, str], ...]]


def _version_order(version: str) -> _Order | None:
    match = _VERSION.fullmatch(version.strip())
    if match is None:
        return None
    major, minor, patch, candidate = match.groups()
    return int(major), int(minor), int(patch or 0), candidate is None, _candidate_order(candidate or "")


def _candidate_order(candidate: str) -> tuple[tuple[int, str], ...]:
    """``rc2`` before ``rc10``: runs of digits compare as numbers, and before letters."""
    runs = re.findall(r"[0-9]{1,9}|[A-Za-z]+", candidate)
    return tuple((int(run), "") if run.isdigit() else (10**9, run) for run in runs)
