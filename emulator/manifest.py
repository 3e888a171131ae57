"""An installed model as Ollama's store has it: a manifest that names layers, each of which is a blob.

What the emulator must know of a model beyond that is in the config, a layer like the others. The weights' blob holds a
few bytes that stand for them: its true size is in the manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from corral.emulator.catalog import ModelSpec

DEFAULT_TEMPLATE: Final = "{{ .Prompt }}"
WEIGHTS: Final = "application/vnd.ollama.image.model"
ADAPTER: Final = "application/vnd.ollama.image.adapter"
_TEMPLATE: Final = "application/vnd.ollama.image.template"
_SYSTEM: Final = "application/vnd.ollama.image.system"
_LICENSE: Final = "application/vnd.ollama.image.license"
_PARAMETERS: Final = "application/vnd.ollama.image.params"
_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"


class Layer(msgspec.Struct, frozen=True):
    """One blob that a manifest names."""

    media_type: str = msgspec.field(name="mediaType")
    digest: str
    size: int


class Manifest(msgspec.Struct, frozen=True):
    """What the file of a model's tag holds."""

    schema_version: int = msgspec.field(name="schemaVersion")
    media_type: str = msgspec.field(name="mediaType")
    config: Layer
    layers: tuple[Layer, ...]

    @property
    def every_layer(self) -> tuple[Layer, ...]:
        return (*self.layers, self.config)

    @property
    def size(self) -> int:
        return sum(layer.size for layer in self.every_layer)

    def encoded(self) -> bytes:
        return msgspec.json.encode(self)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a model is made of, whatever its name."""

    spec: ModelSpec
    template: str = DEFAULT_TEMPLATE
    system: str = ""
    license: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    adapters: tuple[Layer, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """One installed model."""

    name: str
    """As ``/api/tags`` shows it."""
    recipe: Recipe
    manifest: Manifest
    digest: str
    """Of the manifest, hexadecimal without a prefix: equal for every name of the same."""
    modified_at_s: float

    @property
    def spec(self) -> ModelSpec:
        return self.recipe.spec


def pack(name: str, recipe: Recipe, now: float) -> tuple[Entry, dict[str, bytes]]:
    """The model under that name, and the contents of its layers by digest (but of those that were uploaded)."""
    recipe = replace(recipe, spec=replace(recipe.spec, name=name))
    contents: dict[str, bytes] = {}

    def small(media_type: str, content: bytes) -> Layer:
        digest = digest_of(content)
        contents[digest] = content
        return Layer(media_type, digest, len(content))

    layers = _weights(recipe.spec, contents)
    layers += recipe.adapters
    texts = ((_TEMPLATE, recipe.template), (_LICENSE, recipe.license), (_SYSTEM, recipe.system))
    layers += [small(kind, text.encode()) for kind, text in texts if text and not recipe.spec.remote]
    if recipe.parameters:
        layers.append(small(_PARAMETERS, msgspec.json.encode(recipe.parameters)))
    config = small(_CONFIG, _config(recipe.spec, layers))
    manifest = Manifest(2, _MANIFEST, config, tuple(layers))
    return Entry(name, recipe, manifest, _hex(manifest.encoded()), now), contents


def unpack(name: str, encoded: bytes, read: Callable[[str], bytes], now: float) -> Entry:
    """The model that a manifest describes; raises OSError or msgspec's errors where it cannot be read."""
    manifest = msgspec.json.decode(encoded, type=Manifest)
    spec = msgspec.json.decode(read(manifest.config.digest), type=_Config).emulated
    texts = {layer.media_type: layer.digest for layer in manifest.layers}

    def text(media_type: str) -> str:
        return read(texts[media_type]).decode() if media_type in texts else ""

    recipe = Recipe(
        replace(spec, name=name),
        template=text(_TEMPLATE),
        system=text(_SYSTEM),
        license=text(_LICENSE),
        parameters=json.loads(text(_PARAMETERS) or "{}"),
        adapters=tuple(layer for layer in manifest.layers if layer.media_type == ADAPTER),
    )
    return Entry(name, recipe, manifest, _hex(encoded), now)


def renamed(entry: Entry, name: str, now: float) -> Entry:
    """The same model under another name."""
    recipe = replace(entry.recipe, spec=replace(entry.spec, name=name))
    return replace(entry, name=name, recipe=recipe, modified_at_s=now)


def digest_of(content: bytes) -> str:
    return "sha256:" + _hex(content)


class _Config(msgspec.Struct):
    emulated: ModelSpec


def _weights(spec: ModelSpec, contents: dict[str, bytes]) -> list[Layer]:
    """None of a stub of a model that runs in the cloud."""
    if spec.remote:
        return []
    if not spec.weights:
        contents[spec.blob_digest] = spec.blob_content
    return [Layer(WEIGHTS, spec.blob_digest, spec.file_bytes)]


def _config(spec: ModelSpec, layers: list[Layer]) -> bytes:
    shown = {
        "model_format": "" if spec.remote else "gguf",
        "model_family": spec.family,
        "model_families": [spec.family],
        "model_type": spec.parameter_size,
        "file_type": spec.quantization,
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        "emulated": replace(spec, name=""),
    }
    return msgspec.json.encode(shown)


def _hex(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
