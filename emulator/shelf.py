"""Where manifests and blobs are kept: what a store can do, and one in the memory of one emulator."""

from __future__ import annotations

from typing import Protocol

from corral.emulator.manifest import Entry
from corral.emulator.verify import StoreReport


class Partial(Protocol):
    """A download under way: what it got so far outlives it, until it is complete."""

    completed: int

    def note(self, completed: int) -> None:
        """So much was written."""
        ...

    def complete(self, content: bytes) -> None:
        """It is a blob now."""
        ...

    def close(self) -> None:
        """Nobody works on it any more; may be called again."""
        ...


class Shelf(Protocol):
    """A store of models."""

    def entries(self) -> list[Entry]: ...

    def put(self, entry: Entry) -> None:
        """Write a manifest. Its layers are there already."""
        ...

    def remove(self, name: str) -> None: ...

    def blob_bytes(self, digest: str) -> int | None:
        """None: there is no such blob."""
        ...

    def put_blob(self, digest: str, content: bytes) -> None: ...

    def remove_blob(self, digest: str) -> None: ...

    def blob_path(self, digest: str) -> str: ...

    def partial(self, digest: str, total: int) -> Partial:
        """Begin or resume a download."""
        ...

    def prune(self, older_than_s: float) -> None:
        """Remove blobs that no manifest names, and downloads that nobody went on with, where they are older."""
        ...

    def races(self) -> int:
        """How often two emulators worked on one download at once."""
        ...

    def report(self) -> StoreReport: ...


class MemoryShelf:
    """A store of one emulator."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._blobs: dict[str, int] = {}
        self.partials: dict[str, int] = {}

    def entries(self) -> list[Entry]:
        return list(self._entries.values())

    def put(self, entry: Entry) -> None:
        self._entries[entry.name] = entry

    def remove(self, name: str) -> None:
        self._entries.pop(name, None)

    def blob_bytes(self, digest: str) -> int | None:
        return self._blobs.get(digest)

    def put_blob(self, digest: str, content: bytes) -> None:
        self._blobs[digest] = len(content)

    def remove_blob(self, digest: str) -> None:
        self._blobs.pop(digest, None)

    def blob_path(self, digest: str) -> str:
        return f"/models/blobs/{digest.replace(':', '-')}"

    def partial(self, digest: str, total: int) -> Partial:
        return _MemoryPartial(self, digest)

    def prune(self, older_than_s: float) -> None:
        """It began empty: there is nothing old in it."""

    def races(self) -> int:
        return 0

    def report(self) -> StoreReport:
        named = {layer.digest for entry in self.entries() for layer in entry.manifest.every_layer}
        partials = tuple(sorted(self.partials))
        left = [digest for digest in partials if digest in named]
        problems = [f"a manifest names {digest}, which is missing" for digest in sorted(named - set(self._blobs))]
        problems += [f"{digest} is named by a manifest, and a download of it is left over" for digest in left]
        loose = tuple(sorted(set(self._blobs) - named))
        return StoreReport(len(self._entries), len(self._blobs), tuple(problems), loose, partials)


class _MemoryPartial:
    def __init__(self, shelf: MemoryShelf, digest: str) -> None:
        self._shelf = shelf
        self._digest = digest
        self.completed = shelf.partials.setdefault(digest, 0)

    def note(self, completed: int) -> None:
        self.completed = self._shelf.partials[self._digest] = completed

    def complete(self, content: bytes) -> None:
        self._shelf.put_blob(self._digest, content)
        self._shelf.partials.pop(self._digest, None)

    def close(self) -> None:
        return
