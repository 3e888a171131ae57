"""The pages clients see of several Ollamas as of one: unions of what the replicas answered, in Ollama's own shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
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


def _spoken(name: str) -> str:
    return f"x-corral-{name.replace('_', '-')}"


class CopyNotes(msgspec.Struct, rename=_spoken):
    """What the gateway can add to one loaded copy, for an operator who asks."""

    replica: str
    slots: int | None
    """Requests for it that run at once there; None: not known yet."""
    in_flight: int
    """Requests for it that the gateway has there."""
    pinned: bool
    idle_s: float | None
    """Since the gateway last used it there; None: it has not, since it came."""
    age_s: float
    """Since the replica was asked what is in its memory."""


class ModelNotes(msgspec.Struct, rename=_spoken):
    """What the gateway can add to one installed model."""

    replicas: list[str]
    """Those that have it."""
    outdated: list[str]
    """Those that have another version under its name."""
    stores: list[str]
    """In which it is."""
    loaded: list[str]
    """Replicas that have it in memory."""


class _OpenAIModel(msgspec.Struct):
    id: str
    object: str
    created: int
    owned_by: str


class _OpenAIList(msgspec.Struct):
    object: str
    data: list[_OpenAIModel] | None


class Union:
    """Every model of any replica once, the newest first. Where replicas hold different models under one name, the one
    pulled last speaks for it. Made anew only where a list was: what is made of it is kept, too."""

    def __init__(self) -> None:
        self._lists: list[tuple[TagsEntry, ...]] = []
        self._by_name: dict[str, TagsEntry] = {}
        self._tags: bytes | None = None
        self._openai: bytes | None = None

    def of(self, pages: Iterable[ReplicaPages]) -> Union:
        """This, of these replicas."""
        lists = [page.tags for page in pages if page.tags is not None]
        if len(lists) != len(self._lists) or any(a is not b for a, b in zip(lists, self._lists, strict=True)):
            self._lists, self._by_name = lists, {entry.model.name: entry for entry in _union(lists)}
            self._tags = self._openai = None
        return self

    def find(self, name: str) -> TagsEntry | None:
        """Under any spelling."""
        return self._by_name.get(normalise_model(name))

    def tags(self) -> bytes:
        """``/api/tags``."""
        if self._tags is None:
            self._tags = _models(entry.raw for entry in self._by_name.values())
        return self._tags

    def tags_noted(self, pages: Sequence[ReplicaPages], stores: Mapping[str, str]) -> bytes:
        """The same with :class:`ModelNotes`; ``stores``: by replica."""
        notes = _notes(self._by_name, pages, stores)
        return _models(_noted(entry.raw, notes[name]) for name, entry in self._by_name.items())

    def openai_models(self) -> bytes:
        """``/v1/models``; Ollama's own answer to an empty store is ``"data":null``."""
        if self._openai is None:
            data = [_openai_model(entry, entry.spelled) for entry in self._by_name.values()]
            self._openai = _line(_OpenAIList("list", data or None))
        return self._openai

    def openai_model(self, name: str) -> bytes | None:
        """``/v1/models/{name}``, the name echoed as it was asked; None: no replica has it."""
        found = self.find(name)
        return None if found is None else _line(_openai_model(found, name))


def merge_ps(
    pages: Iterable[ReplicaPages],
    has_left: Callable[[ReplicaPages, PsEntry], bool] = lambda page, entry: False,
    notes: Callable[[ReplicaPages, PsEntry], CopyNotes] | None = None,
) -> bytes:
    """``/api/ps``: every loaded copy of every replica, the one that stays longest first; with notes or without."""
    copies = [(page, entry) for page in pages for entry in page.ps or () if not has_left(page, entry)]
    copies = _latest_first(copies, [entry.expires_s for _, entry in copies])
    if notes is None:
        return _models(entry.raw for _, entry in copies)
    return _models(_noted(entry.raw, notes(page, entry)) for page, entry in copies)


def lowest_version(versions: Iterable[str]) -> str | None:
    """The oldest version, ``0.33.0-rc2`` before ``0.33.0``; unreadable ones count only where no other is known."""
    known = list(versions)
    readable = [(order, version) for version in known if (order := _version_order(version)) is not None]
    if readable:
        return min(readable)[1]
    return min(known, default=None)


def _union(lists: Iterable[tuple[TagsEntry, ...]]) -> list[TagsEntry]:
    newest: dict[str, TagsEntry] = {}
    for each in lists:
        for entry in each:
            held = newest.get(entry.model.name)
            if held is None or entry.modified_s > held.modified_s:
                newest[entry.model.name] = entry
    entries = list(newest.values())
    return _latest_first(entries, [entry.modified_s for entry in entries])


def _notes(
    models: Mapping[str, TagsEntry], pages: Iterable[ReplicaPages], stores: Mapping[str, str]
) -> dict[str, ModelNotes]:
    notes = {name: ModelNotes([], [], [], []) for name in models}
    for page in pages:
        store = stores.get(page.replica_id)
        for name, digest in {entry.model.name: entry.model.digest for entry in page.tags or ()}.items():
            if name not in notes:
                continue
            note, has_it = notes[name], digest == models[name].model.digest
            (note.replicas if has_it else note.outdated).append(page.replica_id)
            if has_it and store is not None and store not in note.stores:
                note.stores.append(store)
        for name in {entry.model.name for entry in page.ps or ()} & notes.keys():
            notes[name].loaded.append(page.replica_id)
    return notes


_E = TypeVar("_E")


def _latest_first(entries: Sequence[_E], times_s: Sequence[float]) -> list[_E]:
    """Ollama's order: by whole seconds and stable, so that a single replica's page keeps its own."""
    order = sorted(range(len(entries)), key=lambda index: -math.floor(times_s[index]))
    return [entries[index] for index in order]


def _models(entries: Iterable[bytes]) -> bytes:
    return b'{"models":[' + b",".join(entries) + b"]}"


def _noted(raw: bytes, notes: msgspec.Struct) -> bytes:
    """The entry as it came, and the notes behind its last member."""
    return raw.rstrip()[:-1] + b"," + msgspec.json.encode(notes)[1:]


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
