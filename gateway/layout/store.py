"""The models of an Ollama store on disk: its manifests, and of each model's file only the header."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from corral.gateway.layout.gguf import GgufError, Shape, read_shape
from corral.gateway.layout.plan import StoredModel
from corral.model import normalise_model

SERVICE_STORE: Final = Path("/usr/share/ollama/.ollama/models")
"""Where Ollama's Linux installer has its service keep them."""
MAX_MANIFESTS: Final = 10_000
MAX_MANIFEST_BYTES: Final = 1 << 20

_MODEL: Final = "application/vnd.ollama.image.model"
_WEIGHTS: Final = (
    _MODEL,
    "application/vnd.ollama.image.projector",
    "application/vnd.ollama.image.adapter",
    "application/vnd.ollama.image.tensor",
)
_DIGEST: Final = re.compile(r"sha256[:-][0-9a-f]{64}\Z")


class _Layer(msgspec.Struct):
    media_type: str = msgspec.field(name="mediaType", default="")
    digest: str = ""
    size: int = 0


class _Manifest(msgspec.Struct):
    layers: tuple[_Layer, ...] = ()


def find_store(configured: Path | None, environ: Mapping[str, str], service: Path = SERVICE_STORE) -> Path | None:
    """Where the models are: as configured, else as ``ollama`` itself would seek them, else the service's.

    None: nobody says, and there is no home directory either.
    """
    if configured is not None:
        return configured
    if environ.get("OLLAMA_MODELS", "").strip():
        return Path(environ["OLLAMA_MODELS"].strip().strip("\"'"))
    home = environ.get("HOME")
    own = Path(home) / ".ollama" / "models" if home else None
    if own is not None and os.path.isdir(own):  # as Path.is_dir, but False where this user may not look
        return own
    if os.access(service, os.R_OK | os.X_OK) and service.is_dir():
        return service
    return own


def is_readable(store: Path) -> bool:
    """Whether this user may look which models there are; a store that is not there yet has none."""
    try:
        with os.scandir(store / "manifests"):
            return True
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


def stored_models(store: Path) -> tuple[StoredModel, ...]:
    """By name. What cannot be read is left out: Ollama itself would not list it either."""
    shapes: dict[str, Shape | None] = {}
    found = {}
    for name, manifest in _manifests(store / "manifests"):
        model = _model(name, manifest, store / "blobs", shapes)
        if model is not None:
            found[model.name] = model
    return tuple(found[name] for name in sorted(found))


def _manifests(folder: Path) -> Iterator[tuple[str, _Manifest]]:
    """``HOST/NAMESPACE/MODEL/TAG``, as the store's folders are."""
    for count, path in enumerate(_paths(folder)):
        if count >= MAX_MANIFESTS:
            return
        try:
            if path.stat().st_size > MAX_MANIFEST_BYTES:
                continue
            manifest = msgspec.json.decode(path.read_bytes(), type=_Manifest)
        except (OSError, msgspec.MsgspecError):
            continue
        host, namespace, model, tag = path.relative_to(folder).parts
        yield normalise_model(f"{host}/{namespace}/{model}:{tag}"), manifest


def _paths(folder: Path) -> Iterator[Path]:
    """None of a folder that this user may not enter."""
    try:
        yield from folder.glob("*/*/*/*")
    except OSError:
        return


def _model(name: str, manifest: _Manifest, blobs: Path, shapes: dict[str, Shape | None]) -> StoredModel | None:
    weights = sum(max(0, layer.size) for layer in manifest.layers if layer.media_type in _WEIGHTS)
    if not weights:
        return None  # a stub of a model that runs in the cloud
    digest = next((layer.digest for layer in manifest.layers if layer.media_type == _MODEL), "")
    if digest not in shapes:
        shapes[digest] = _read(digest, blobs)
    shape = shapes[digest]
    if shape is None:
        return StoredModel(name, weights, None, None)
    return StoredModel(name, weights, shape.kv_bytes_per_token, shape.context_length)


def _read(digest: str, blobs: Path) -> Shape | None:
    if not _DIGEST.match(digest):
        return None
    try:
        return read_shape(blobs / digest.replace(":", "-"))
    except GgufError:
        return None
