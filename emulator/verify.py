"""Whether a store directory is whole: every manifest can be read, its layers are there and are what they are called."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from corral.emulator.manifest import Manifest

RACES: Final = "RACE"
"""The file in a store that tells of downloads which two emulators worked on at once."""
_PARTIAL: Final = "-partial"


@dataclass(frozen=True, slots=True)
class StoreReport:
    """What was found in a store."""

    models: int
    blobs: int
    problems: tuple[str, ...]
    """Sentences; empty where the store is whole."""
    unreferenced: tuple[str, ...]
    """Digests of blobs that no manifest names: what pruning would remove. No fault."""
    partials: tuple[str, ...]
    """Digests of downloads that were begun and not completed. A fault only where a manifest names them."""


def verify_store(root: Path) -> StoreReport:
    """Reads every file of the store; blobs of weights are small in an emulated one."""
    names = sorted(path.name for path in (root / "blobs").glob("*"))
    partials = tuple(sorted({_digest(name.partition(_PARTIAL)[0]) for name in names if _PARTIAL in name}))
    blobs = {_digest(name) for name in names if _PARTIAL not in name and not name.endswith(".new")}
    problems, named, models = [], set(), 0
    for path in manifests_in(root):
        models += 1
        digests, wrong = _layers(path)
        shown = "/".join(path.relative_to(root / "manifests").parts)
        named |= digests
        problems += [f"{shown}: {what}" for what in wrong]
        problems += [f"{shown}: its layer {digest} is missing" for digest in sorted(digests - blobs)]
    left = [digest for digest in partials if digest in named]
    problems += [f"{digest} is named by a manifest, and a download of it is left over" for digest in left]
    problems += [f"{digest} holds something else" for digest in sorted(blobs) if not _holds(root, digest)]
    problems += _races(root)
    return StoreReport(models, len(blobs), tuple(problems), tuple(sorted(blobs - named)), partials)


def manifests_in(root: Path) -> list[Path]:
    """The files of a store's manifests; what another process removes meanwhile is passed over, as Ollama does."""
    found = (Path(folder, name) for folder, _, names in os.walk(root / "manifests") for name in names)
    return sorted(path for path in found if path.suffix != ".new")


def _layers(path: Path) -> tuple[set[str], list[str]]:
    """The digests that a manifest names, and what is wrong with it."""
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError) as error:
        return set(), [f"cannot be read: {error}"]
    return {layer.digest for layer in manifest.every_layer}, []


def _holds(root: Path, digest: str) -> bool:
    try:
        content = (root / "blobs" / digest.replace(":", "-")).read_bytes()
    except OSError:
        return False
    return digest == "sha256:" + hashlib.sha256(content).hexdigest()


def _races(root: Path) -> list[str]:
    path = root / RACES
    return path.read_text().splitlines() if path.exists() else []


def _digest(name: str) -> str:
    return name.replace("-", ":", 1)
