"""Facts of folders: who may read and write them, the file system they are on, and what lies in a model store."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from corral.gateway.doctor.facts import Folder, StoreFiles
from corral.gateway.doctor.running import user_name

MOST_FILES: Final = 50_000
STORE_PARTS: Final = ("blobs", "manifests")


def folder(path: Path, parts: tuple[str, ...] = ()) -> Folder:
    """``parts``: folders in it, to which the same must apply."""
    there = _nearest(path)
    space = os.statvfs(there)
    free = space.f_bavail * space.f_frsize
    if there != path and there.is_dir() and not os.access(there, os.X_OK):
        return Folder(str(path), True, readable=False, writable=False, free_bytes=free)  # nobody can say more
    if there != path or not path.is_dir():
        may = path != there and there.is_dir() and os.access(there, os.W_OK | os.X_OK)
        return Folder(str(path), False, writable=may, free_bytes=free, file_system=file_system(there))
    inside = [path, *(path / part for part in parts if os.path.exists(path / part))]
    status = [each.stat() for each in inside]
    return Folder(
        str(path),
        True,
        readable=all(os.access(each, os.R_OK | os.X_OK) for each in inside),
        writable=all(os.access(each, os.W_OK | os.X_OK) for each in inside),
        owner=user_name(status[0].st_uid),
        is_mine=status[0].st_uid == os.geteuid(),
        open_to_all=any(each.st_mode & stat.S_IWOTH for each in status),
        free_bytes=free,
        file_system=file_system(path),
    )


def _nearest(path: Path) -> Path:
    """The folder itself, or the one nearest above it that exists, as far as this user may look."""
    return next(each for each in (path, *path.parents) if os.path.exists(each) or each == each.parent)


def file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """Its type, ``ext4`` or ``nfs4``; None where the kernel does not say."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    where, best, kind = path.resolve(), -1, None
    for line in lines:
        left, _, right = line.partition(" - ")
        mounted = Path(_unescaped(left.split()[4]))
        if where.is_relative_to(mounted) and len(mounted.parts) >= best:  # a later mount hides an earlier one
            best, kind = len(mounted.parts), right.split()[0]
    return kind


def _unescaped(text: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


def store_files(store: Path) -> StoreFiles:
    files, closed, partial, partial_bytes = 0, [], 0, 0
    newest: float | None = None
    for path in _files(store):
        files += 1
        if not os.access(path, os.R_OK):
            closed.append(str(path))
        if "-partial" in path.name:
            try:
                status = path.stat()
            except FileNotFoundError:  # just finished
                continue
            partial += 1
            partial_bytes += status.st_blocks * 512
            newest = max(newest or 0.0, status.st_mtime)
        if files >= MOST_FILES:
            break
    age = None if newest is None else max(0.0, time.time() - newest)
    return StoreFiles(files, len(closed), closed[0] if closed else None, partial, partial_bytes, age)


def _files(store: Path) -> Iterator[Path]:
    for part in STORE_PARTS:
        for where, _, names in os.walk(store / part):
            yield from (Path(where, name) for name in names)
