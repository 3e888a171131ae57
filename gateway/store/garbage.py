"""What a model store on disk holds that no model needs, and its removal. It takes its time: never on the event loop.

Rules of this file:

1. Only files that are named as Ollama names blobs and downloads are touched, and only below the store's own folder:
   everything is opened and removed by descriptors of its folders, which no link can lead elsewhere.
2. Nothing is removed while it is not known what the models need (:class:`Unreadable`).
3. What is younger than the grace stays: it may belong to a model that is being made. So does a download of which any
   part is.
4. Each file is looked at again right before it is removed, and so are the manifests.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from corral.gateway.store.names import is_ours
from corral.gateway.store.references import BLOB, Entry, References, Unreadable, open_folder
from corral.model import normalise_model

GRACE_S: Final = 3600.0
"""Ollama's own."""
_PARTIAL: Final = re.compile(r"sha256-[0-9a-f]{64}-partial(-[0-9]{1,6})?\Z")
_DIGEST_LETTERS: Final = len("sha256-") + 64
_MANIFEST_DEPTH: Final = len(("manifests", "HOST", "NAMESPACE", "MODEL", "TAG"))


class Kind(Enum):
    """The values are what people call it."""

    BLOB = "unused blob"
    DOWNLOAD = "partial download"
    PREVIOUS = "old version"
    """A model that the gateway kept under a name of its own while it was being replaced, and did not come to remove."""


@dataclass(frozen=True, slots=True)
class Waste:
    """One thing that can go."""

    kind: Kind
    name: str
    """From the store's folder; of a download the name that its files begin with."""
    files: tuple[str, ...]
    size_bytes: int
    """What the disk has left when it is gone."""
    age_s: float
    """Since something was last written to it."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What one look at a store found."""

    waste: tuple[Waste, ...]
    young_files: int
    """Files that nobody needs and that are not old enough to go."""
    young_bytes: int


@dataclass(slots=True)
class Removal:
    """What became of it."""

    removed: list[Waste] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    """Files that stayed, and why."""
    stopped: str | None = None
    """Why it ended before everything was looked at."""


def survey(folder: Path, min_age_s: float, now_s: float, *, with_previous: bool) -> Findings:
    """What could go. ``now_s``: Unix time; ``with_previous``: nothing is being replaced, so that no old version of a
    model is needed. Raises :class:`Unreadable`."""
    with _opened(folder, min_age_s, lambda: now_s, with_previous=with_previous) as store:
        return store.survey()


def remove(folder: Path, min_age_s: float, clock: Callable[[], float], is_stopped: Callable[[], bool]) -> Removal:
    """Remove it, until ``is_stopped``. Nobody must be pulling or making a model there, or replacing one. Raises
    :class:`Unreadable`, and then nothing was removed."""
    with _opened(folder, min_age_s, clock, with_previous=True) as store:
        return store.remove(is_stopped)


@contextmanager
def _opened(folder: Path, min_age_s: float, clock: Callable[[], float], *, with_previous: bool) -> Iterator[_Store]:
    place = os.path.realpath(folder)  # the folder itself may be reached by links, as Ollama would
    with _descriptor(place, None, place) as top, _descriptor("blobs", top, f"{place}/blobs") as blobs:
        yield _Store(top, blobs, place, min_age_s, clock, with_previous)


@contextmanager
def _descriptor(name: str, within: int | None, place: str) -> Iterator[int]:
    try:
        found = open_folder(name, within)
    except OSError as error:
        link = within is not None and os.path.islink(place)
        why = "is a link, which is not followed" if link else error.strerror or str(error)
        raise Unreadable(f"{place}: {why}") from error
    try:
        yield found
    finally:
        os.close(found)


class _Store:
    """The folder of one, opened."""

    def __init__(
        self, top: int, blobs: int, place: str, min_age_s: float, clock: Callable[[], float], with_previous: bool
    ) -> None:
        self._top = top
        self._blobs = blobs
        self._place = place
        self._min_age_s = min_age_s
        self._clock = clock
        self._with_previous = with_previous
        self._references = References(top, blobs, place, self._is_previous)
        self._seen: dict[str, os.stat_result] = {}

    # -- what can go

    def survey(self) -> Findings:
        used = self._references.used()
        previous = [self._waste(Kind.PREVIOUS, entry.path, {entry.path: entry.status}) for entry in self._left_over]
        found = [*previous, *self._unused(used), *self._downloads()]
        old = tuple(waste for waste in found if waste.age_s >= self._min_age_s)
        young = [waste for waste in found if waste.age_s < self._min_age_s]
        return Findings(old, sum(len(one.files) for one in young), sum(one.size_bytes for one in young))

    def _unused(self, used: set[str]) -> Iterator[Waste]:
        for name, status in self._files(BLOB):
            if name not in used:
                yield self._waste(Kind.BLOB, f"blobs/{name}", {f"blobs/{name}": status})

    def _downloads(self) -> Iterator[Waste]:
        parts: dict[str, dict[str, os.stat_result]] = {}
        for name, status in self._files(_PARTIAL):
            parts.setdefault(name[:_DIGEST_LETTERS], {})[f"blobs/{name}"] = status
        for digest, files in parts.items():
            yield self._waste(Kind.DOWNLOAD, f"blobs/{digest}-partial", files)

    def _files(self, pattern: re.Pattern[str]) -> Iterator[tuple[str, os.stat_result]]:
        try:
            names = sorted(os.listdir(self._blobs))
        except OSError as error:
            raise Unreadable(f"{self._place}/blobs: {error.strerror or error}") from error
        for name in filter(pattern.match, names):
            try:
                status = os.stat(name, dir_fd=self._blobs, follow_symlinks=False)
            except OSError:  # gone a moment ago
                continue
            if stat.S_ISREG(status.st_mode):
                yield name, status

    def _waste(self, kind: Kind, name: str, files: dict[str, os.stat_result]) -> Waste:
        """As old as the youngest of its files."""
        self._seen |= files
        age_s = min(self._age_s(status) for status in files.values())
        return Waste(kind, name, tuple(files), sum(map(_freed_bytes, files.values())), age_s)

    @property
    def _left_over(self) -> list[Entry]:
        return self._references.left_over

    def _is_previous(self, entry: Entry) -> bool:
        parts = entry.path.split("/")
        if not self._with_previous or len(parts) != _MANIFEST_DEPTH or self._age_s(entry.status) < self._min_age_s:
            return False
        return is_ours(normalise_model(f"{parts[2]}/{parts[3]}:{parts[4]}"))

    def _age_s(self, status: os.stat_result) -> float:
        return self._clock() - status.st_mtime

    # -- its end

    def remove(self, is_stopped: Callable[[], bool]) -> Removal:
        done = Removal()
        for waste in self.survey().waste:
            if is_stopped():
                done.stopped = "it was told to stop"
                break
            try:
                failed = self._remove(waste)
            except Unreadable as error:
                done.stopped = str(error)
                break
            done.failed += failed
            if not failed:
                done.removed.append(waste)
        return done

    def _remove(self, waste: Waste) -> list[tuple[str, str]]:
        """The files that stayed, and why."""
        if waste.kind is Kind.BLOB and waste.name.removeprefix("blobs/") in self._references.used():
            return [(waste.name, "a model needs it now")]
        failed = []
        for file in waste.files:
            try:
                self._unlink(file)
            except OSError as error:
                failed.append((file, error.strerror or str(error)))
        if failed and waste.kind is Kind.PREVIOUS:
            self._with_previous = False  # it is still there: what it names stays, too
        return failed

    def _unlink(self, file: str) -> None:
        """Raises OSError, also where it is not as it was when it was found."""
        *parents, name = file.split("/")
        with self._inside(parents) as folders:
            status = os.stat(name, dir_fd=folders[-1], follow_symlinks=False)
            if _identity(status) != _identity(self._seen[file]):
                raise OSError(errno.EBUSY, "it has changed meanwhile")
            os.unlink(name, dir_fd=folders[-1])
            if parents[0] == "blobs":
                return
            for parent, folder in zip(parents[:-3:-1], folders[-2::-1], strict=False):  # its own two, when empty
                with suppress(OSError):
                    os.rmdir(parent, dir_fd=folder)

    @contextmanager
    def _inside(self, parents: Sequence[str]) -> Iterator[list[int]]:
        """Descriptors of the store's folder and of each one on the way."""
        with ExitStack() as opened:
            folders = [self._top]
            for name in parents:
                folders.append(open_folder(name, folders[-1]))
                opened.callback(os.close, folders[-1])
            yield folders


def _freed_bytes(status: os.stat_result) -> int:
    """Of a file that has another name nothing; of one with holes what is there."""
    return 0 if status.st_nlink > 1 else min(status.st_size, status.st_blocks * 512)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
