"""The models of one emulated Ollama, in memory or in a directory that several emulators share."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import msgspec

from corral.emulator.catalog import ModelSpec
from corral.model import normalise_model


@dataclass(frozen=True, slots=True)
class Entry:
    """One installed model."""

    name: str
    """As ``/api/tags`` shows it."""
    spec: ModelSpec
    modified_at_s: float
    template: str = "{{ .Prompt }}"
    system: str = ""
    license: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    extra_digests: tuple[str, ...] = ()
    """Blobs given to ``/api/create``."""

    @property
    def digest(self) -> str:
        """Of the manifest, hexadecimal without a prefix."""
        made = f"{self.spec.blob_digest} {self.template} {self.system} {self.license} {self.parameters}"
        return hashlib.sha256(made.encode()).hexdigest()


class Shelf(Protocol):
    """Where entries and blobs are kept."""

    def entries(self) -> list[Entry]: ...

    def put(self, entry: Entry) -> None: ...

    def remove(self, name: str) -> None: ...

    def has_blob(self, digest: str) -> bool: ...

    def put_blob(self, digest: str, content: bytes) -> None: ...

    def begin_pull(self, digest: str) -> bool:
        """False: another process is pulling the same blob at this moment (a race)."""
        ...

    def end_pull(self, digest: str) -> None: ...

    def races(self) -> int: ...


class MemoryShelf:
    """A store of one process."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._blobs: set[str] = set()

    def entries(self) -> list[Entry]:
        return list(self._entries.values())

    def put(self, entry: Entry) -> None:
        self._entries[entry.name] = entry

    def remove(self, name: str) -> None:
        self._entries.pop(name, None)

    def has_blob(self, digest: str) -> bool:
        return digest in self._blobs

    def put_blob(self, digest: str, content: bytes) -> None:
        self._blobs.add(digest)

    def begin_pull(self, digest: str) -> bool:
        return True

    def end_pull(self, digest: str) -> None:
        return

    def races(self) -> int:
        return 0


class DirectoryShelf:
    """A store in a directory: manifests and blobs as files, and a detector of processes that pull one blob at once.

    A blob's file holds a few bytes that stand for it; its true size is in the manifest.
    """

    def __init__(self, root: Path, owner: str) -> None:
        self._root = root
        self._owner = owner
        self._read: dict[Path, tuple[int, Entry]] = {}
        for folder in ("manifests", "blobs"):
            (root / folder).mkdir(parents=True, exist_ok=True)

    def entries(self) -> list[Entry]:
        return list(self._scan())

    def put(self, entry: Entry) -> None:
        path = self._manifest(entry.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write(path, msgspec.json.encode(entry))

    def remove(self, name: str) -> None:
        self._manifest(name).unlink(missing_ok=True)

    def has_blob(self, digest: str) -> bool:
        return self._blob(digest).exists()

    def put_blob(self, digest: str, content: bytes) -> None:
        self._write(self._blob(digest), content[:64])

    def begin_pull(self, digest: str) -> bool:
        lock = self._partial(digest)
        mine = f"{os.getpid()} {self._owner}".encode()
        try:
            with lock.open("xb") as file:
                file.write(mine)
            return True
        except FileExistsError:
            pass
        other = lock.read_text(errors="replace") if lock.exists() else ""
        pid = other.partition(" ")[0]
        if pid.isdigit() and int(pid) != os.getpid() and _alive(int(pid)):
            with (self._root / "RACE").open("a") as file:
                file.write(f"{time.time():.3f} {digest} pulled by {other} and {mine.decode()} at once\n")
            return False
        lock.write_bytes(mine)
        return True

    def end_pull(self, digest: str) -> None:
        self._partial(digest).unlink(missing_ok=True)

    def races(self) -> int:
        path = self._root / "RACE"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def _scan(self) -> Iterator[Entry]:
        """Reads only what changed: another process' pull is visible at once."""
        for path in sorted((self._root / "manifests").rglob("*")):
            try:
                changed = path.stat().st_mtime_ns
                known = self._read.get(path)
                if known is None or known[0] != changed:
                    if path.is_dir() or path.suffix == ".new":
                        continue
                    known = self._read[path] = changed, msgspec.json.decode(path.read_bytes(), type=Entry)
            except (OSError, msgspec.DecodeError):
                continue
            yield known[1]

    def _manifest(self, name: str) -> Path:
        full = name if "/" in name else f"library/{name}"
        full = full if full.count("/") > 1 else f"registry.ollama.ai/{full}"
        path, _, tag = full.rpartition(":")
        return self._root / "manifests" / path / tag

    def _blob(self, digest: str) -> Path:
        return self._root / "blobs" / digest.replace(":", "-")

    def _partial(self, digest: str) -> Path:
        return self._root / "blobs" / (digest.replace(":", "-") + "-partial")

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        new = path.with_name(f"{path.name}.{os.getpid()}.new")
        new.write_bytes(content)
        new.replace(path)


class Store:
    """The models by name. Names are matched without regard to case, as Ollama does."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    def listed(self) -> list[Entry]:
        """Newest first."""
        return sorted(self.shelf.entries(), key=lambda entry: -entry.modified_at_s)

    def get(self, name: str) -> Entry | None:
        wanted = normalise_model(name)
        return next((entry for entry in self.shelf.entries() if normalise_model(entry.name) == wanted), None)

    def install(self, spec: ModelSpec, now: float) -> Entry:
        """Add a model with its weights."""
        entry = Entry(spec.name, spec, now)
        self.shelf.put(entry)
        self.shelf.put_blob(spec.blob_digest, spec.blob_content)
        return entry

    def copy(self, entry: Entry, name: str, now: float) -> None:
        shown = shown_name(name)
        self.shelf.put(replace(entry, name=shown, spec=replace(entry.spec, name=shown), modified_at_s=now))

    def delete(self, entry: Entry) -> None:
        self.shelf.remove(entry.name)


def shown_name(name: str) -> str:
    """With a tag, without the default host and namespace, in the spelling given."""
    plain = name.removeprefix("registry.ollama.ai/").removeprefix("library/")
    return plain if ":" in plain.rpartition("/")[2] else f"{plain}:latest"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
