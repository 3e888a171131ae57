"""A store in a directory that several emulators may share, laid out as Ollama's."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from corral.emulator.manifest import Entry, unpack
from corral.emulator.shelf import Partial
from corral.emulator.verify import RACES, StoreReport, manifests_in, verify_store

_NUMBERS: Final = itertools.count()
_STATE_BYTES: Final = 256
_UNREADABLE: Final = (OSError, ValueError, msgspec.MsgspecError)


class DirectoryShelf:
    """A store in a directory, laid out as Ollama's, with a detector of emulators that download one blob at once.

    Unlike Ollama's its manifests are replaced as a whole: what a reader sees is never half a manifest.
    """

    def __init__(self, root: Path, owner: str) -> None:
        self._root = root
        self._owner = owner
        self._read: dict[Path, tuple[tuple[int, int], Entry]] = {}
        for folder in ("manifests", "blobs"):
            (root / folder).mkdir(parents=True, exist_ok=True)

    def entries(self) -> list[Entry]:
        return list(self._scan())

    def put(self, entry: Entry) -> None:
        path = self._manifest(entry.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write(path, entry.manifest.encoded(), entry.modified_at_s)

    def remove(self, name: str) -> None:
        path = self._manifest(name)
        path.unlink(missing_ok=True)
        for folder in path.parents:
            if folder.name == "manifests" or any(folder.iterdir()):
                return
            folder.rmdir()

    def blob_bytes(self, digest: str) -> int | None:
        try:
            return self._blob(digest).stat().st_size
        except OSError:
            return None

    def put_blob(self, digest: str, content: bytes) -> None:
        self._write(self._blob(digest), content)

    def remove_blob(self, digest: str) -> None:
        self._blob(digest).unlink(missing_ok=True)

    def blob_path(self, digest: str) -> str:
        return str(self._blob(digest))

    def partial(self, digest: str, total: int) -> Partial:
        return _PartialFile(self, self._blob(digest), digest, total, f"{os.getpid()} {self._owner}")

    def prune(self, older_than_s: float) -> None:
        named = {layer.digest for entry in self.entries() for layer in entry.manifest.every_layer}
        for path in (self._root / "blobs").iterdir():
            try:
                is_old = time.time() - path.stat().st_mtime > older_than_s
                if is_old and path.name.replace("-", ":", 1) not in named:
                    path.unlink()
            except OSError:
                continue

    def races(self) -> int:
        path = self._root / RACES
        return len(path.read_text().splitlines()) if path.exists() else 0

    def report(self) -> StoreReport:
        return verify_store(self._root)

    def note_race(self, digest: str, other: str, mine: str) -> None:
        with (self._root / RACES).open("a") as file:
            file.write(f"{time.time():.3f} {digest} pulled by {other} and {mine} at once\n")

    def _scan(self) -> Iterator[Entry]:
        """Reads only what changed: another process' pull is visible at once."""
        for path in manifests_in(self._root):
            try:
                found = path.stat()
                key = (found.st_mtime_ns, found.st_ino)
                known = self._read.get(path)
                if known is None or known[0] != key:
                    known = self._read[path] = key, self._entry(path, found.st_mtime)
            except _UNREADABLE:
                continue
            yield known[1]

    def _entry(self, path: Path, changed_s: float) -> Entry:
        name = "/".join(path.relative_to(self._root / "manifests").parts[:-1]) + f":{path.name}"
        plain = name.removeprefix("registry.ollama.ai/").removeprefix("library/")
        return unpack(plain, path.read_bytes(), lambda digest: self._blob(digest).read_bytes(), changed_s)

    def _manifest(self, name: str) -> Path:
        full = name if "/" in name else f"library/{name}"
        full = full if full.count("/") > 1 else f"registry.ollama.ai/{full}"
        path, _, tag = full.rpartition(":")
        return self._root / "manifests" / path / tag

    def _blob(self, digest: str) -> Path:
        return self._root / "blobs" / digest.replace(":", "-")

    @staticmethod
    def _write(path: Path, content: bytes, changed_s: float | None = None) -> None:
        new = path.with_name(f"{path.name}.{os.getpid()}.{next(_NUMBERS)}.new")
        new.write_bytes(content)
        if changed_s is not None:
            os.utime(new, (changed_s, changed_s))
        new.replace(path)


class _PartialFile:
    """``<blob>-partial`` stands for the data, ``<blob>-partial-0`` says how much of it there is, as Ollama's do.

    Whoever downloads holds a lock on the data, which ends with its process: a lock that is taken is a race.
    """

    def __init__(self, shelf: DirectoryShelf, blob: Path, digest: str, total: int, owner: str) -> None:
        self._shelf, self._digest, self._total, self._owner = shelf, digest, total, owner
        self._data = blob.with_name(f"{blob.name}-partial")
        self._state = blob.with_name(f"{blob.name}-partial-0")
        self._lock = os.open(self._data, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._file = os.open(self._state, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._open = True
        state = self._read()
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            shelf.note_race(digest, str(state.get("By")), owner)
        completed = state.get("Completed")
        self.completed = completed if isinstance(completed, int) and 0 <= completed <= total else 0
        self.note(self.completed)

    def note(self, completed: int) -> None:
        self.completed = completed
        if not self._open:
            return
        state = {"N": 0, "Offset": 0, "Size": self._total, "Completed": completed, "By": self._owner}
        # of one length, so that whoever reads it in between, or after a sudden end, reads one whole state
        os.pwrite(self._file, json.dumps(state).encode().ljust(_STATE_BYTES), 0)

    def complete(self, content: bytes) -> None:
        self._shelf.put_blob(self._digest, content)
        for path in (self._state, self._data):
            path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._file)
            os.close(self._lock)

    def _read(self) -> dict[str, object]:
        try:
            found = json.loads(os.pread(self._file, _STATE_BYTES, 0))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}
