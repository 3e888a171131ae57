"""Which blobs the models of a store on disk need.

Rules of this file:

1. In doubt a blob is needed: whatever is spelled like a digest, anywhere in a manifest, names one.
2. What may name blobs and cannot be read ends the look: half of the truth would make layers look unused.
3. No link is followed but one to a blob of the same store, and that by its name. Newer Ollamas have ``manifests-v2``
   beside ``manifests``, with links to blobs that hold the manifests; and a manifest may list others, which are blobs.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from corral.errors import CorralError

BLOB: Final = re.compile(r"sha256-[0-9a-f]{64}\Z")
MAX_MANIFEST_BYTES: Final = 16 << 20
"""A model in thousands of tensors, each a layer, has a manifest of some MiB."""
MAX_MANIFESTS: Final = 100_000
_MAX_DEPTH: Final = 8
_DIGEST: Final = re.compile(r"sha256[:-][0-9a-fA-F]{64}\Z")
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Unreadable(CorralError):
    """It is not known what the models of a store need; the text names the file."""


def open_folder(name: str, within: int | None = None) -> int:
    """A descriptor. OSError, also where the name is a link."""
    return os.open(name, _FOLDER_FLAGS, dir_fd=within)


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a manifest folder."""

    path: str
    """From the store's folder."""
    status: os.stat_result
    """Its own, where it is a link."""
    link: str | None
    """Where it leads, as it is written."""


@dataclass(frozen=True, slots=True)
class _Content:
    """What one manifest names, as files among the blobs."""

    blobs: frozenset[str] = frozenset()
    manifests: frozenset[str] = frozenset()
    """Of these, the ones that are manifests themselves."""


class References:
    """Of the store whose folder, and whose blobs' folder, are these descriptors. Reads again only what changed."""

    def __init__(self, folder: int, blobs: int, place: str, is_left_over: Callable[[Entry], bool]) -> None:
        self._folder = folder
        self._blobs = blobs
        self._place = place
        self._is_left_over = is_left_over
        self._known: dict[str, tuple[tuple[int, ...], _Content]] = {}
        self.left_over: list[Entry] = []
        """What :meth:`used` met and did not count."""

    def used(self) -> set[str]:
        """The names of all blobs that a model needs. Raises :class:`Unreadable`."""
        used: set[str] = set()
        todo: list[tuple[str, str]] = []
        self.left_over = []
        for entry, within in self._entries():
            if self._is_left_over(entry):
                self.left_over.append(entry)
                continue
            content = self._named(entry, within)
            used |= content.blobs
            todo += [(name, entry.path) for name in content.manifests]
        seen: set[str] = set()
        while todo:
            name, path = todo.pop()
            if name not in seen:
                seen.add(name)
                content = self._blob(name, path)
                used |= content.blobs
                todo += [(each, path) for each in content.manifests]
        return used

    # -- what is there

    def _entries(self) -> Iterator[tuple[Entry, int]]:
        """Every file and link below the manifest folders, with the descriptor of the folder that it is in."""
        names = [name for name in self._names(self._folder, "") if name.startswith("manifests")]
        if "manifests" not in names:
            raise Unreadable(f"{self._place} has no folder `manifests`: what is in it may not be a model store")
        for count, found in enumerate(found for name in names for found in self._walk(self._folder, name, name, 0)):
            if count >= MAX_MANIFESTS:
                raise Unreadable(f"{self._place} has more than {MAX_MANIFESTS} manifests")
            yield found

    def _walk(self, within: int, name: str, path: str, depth: int) -> Iterator[tuple[Entry, int]]:
        if depth > _MAX_DEPTH:
            raise Unreadable(f"{self._at(path)}: a folder where none belongs")
        try:
            folder = open_folder(name, within)
        except FileNotFoundError:  # removed a moment ago
            return
        except OSError as error:
            raise self._unreadable(path, error) from error
        try:
            for each in self._names(folder, path):
                yield from self._look(folder, each, f"{path}/{each}", depth)
        finally:
            os.close(folder)

    def _names(self, folder: int, path: str) -> list[str]:
        try:
            return sorted(os.listdir(folder))
        except OSError as error:
            raise self._unreadable(path, error) from error

    def _look(self, within: int, name: str, path: str, depth: int) -> Iterator[tuple[Entry, int]]:
        try:
            status = os.stat(name, dir_fd=within, follow_symlinks=False)
            link = os.readlink(name, dir_fd=within) if stat.S_ISLNK(status.st_mode) else None
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unreadable(path, error) from error
        if stat.S_ISDIR(status.st_mode):
            yield from self._walk(within, name, path, depth + 1)
        else:
            yield Entry(path, status, link), within

    # -- what it names

    def _named(self, entry: Entry, within: int) -> _Content:
        if entry.link is not None:
            target = self._target(entry.path, entry.link)
            return _Content(frozenset({target}), frozenset({target}))
        try:
            return self._read(within, entry.path.rpartition("/")[2], entry.path, entry.status)
        except FileNotFoundError:
            return _Content()

    def _target(self, path: str, link: str) -> str:
        """The blob that a link leads to."""
        place = link if link.startswith("/") else f"{self._place}/{os.path.dirname(path)}/{link}"
        folder, _, name = os.path.normpath(place).rpartition("/")
        if folder != f"{self._place}/blobs" or not BLOB.match(name.lower()):
            raise Unreadable(f"{self._at(path)} is a link to elsewhere ({link}), which is not followed")
        return name

    def _blob(self, name: str, path: str) -> _Content:
        """What a blob names that is a manifest itself; ``path``: of the one that says so."""
        try:
            status = os.stat(name, dir_fd=self._blobs, follow_symlinks=False)
            return self._read(self._blobs, name, f"blobs/{name}", status)
        except FileNotFoundError:
            raise Unreadable(f"{self._at(path)}: its manifest blobs/{name} is missing") from None
        except OSError as error:
            raise self._unreadable(f"blobs/{name}", error) from error

    def _read(self, within: int, name: str, path: str, status: os.stat_result) -> _Content:
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        known = self._known.get(path)
        if known is None or known[0] != key:
            try:
                data = _bytes_of(within, name)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise self._unreadable(path, error) from error
            known = self._known[path] = key, self._content(data, path)
        return known[1]

    def _content(self, data: bytes | None, path: str) -> _Content:
        manifest = None if data is None else _parsed(data)
        if data is None or manifest is None:
            raise Unreadable(f"{self._at(path)} is no manifest that can be read")
        own = f"sha256-{hashlib.sha256(data).hexdigest()}"  # newer Ollamas keep a blob of it
        blobs = frozenset(_file_name(text) for text in _texts(manifest) if _DIGEST.match(text))
        listed = manifest.get("manifests")
        digests = [_lower(each).get("digest") for each in (listed if isinstance(listed, list) else ())]
        manifests = [_file_name(text) for text in digests if isinstance(text, str) and _DIGEST.match(text)]
        return _Content(blobs | {own}, frozenset(manifests))

    # -- what to say

    def _at(self, path: str) -> str:
        return f"{self._place}/{path}" if path else self._place

    def _unreadable(self, path: str, error: OSError) -> Unreadable:
        return Unreadable(f"{self._at(path)}: {error.strerror or error}")


def _bytes_of(within: int, name: str) -> bytes | None:
    """None: it is no file, or far too large for a manifest."""
    opened = os.open(name, _FILE_FLAGS, dir_fd=within)
    with os.fdopen(opened, "rb") as file:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            return None
        data = file.read(MAX_MANIFEST_BYTES + 1)
    return data if len(data) <= MAX_MANIFEST_BYTES else None


def _parsed(data: bytes) -> dict[str, Any] | None:
    """The object, its names in lower case as Go reads them; None: it is no manifest."""
    try:
        found = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    manifest = _lower(found)
    layers = manifest.get("layers", ())
    has_layers = "layers" in manifest and (layers is None or isinstance(layers, list))
    return manifest if has_layers or isinstance(manifest.get("manifests"), list) else None


def _lower(found: object) -> dict[str, Any]:
    return {str(name).lower(): value for name, value in found.items()} if isinstance(found, dict) else {}


def _texts(found: object) -> Iterator[str]:
    """Every text in it, however deep."""
    todo = [found]
    while todo:
        value = todo.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, list):
            todo += value


def _file_name(digest: str) -> str:
    return digest.replace(":", "-", 1).lower()
