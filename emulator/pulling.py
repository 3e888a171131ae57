"""``/api/pull`` and ``/api/create``: the two ways in which a model comes into the store, as status lines."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from corral.emulator.ask import Rejected, dict_of, text_of
from corral.emulator.catalog import ModelSpec, model_given
from corral.emulator.downloads import Downloads, Status, Statuses
from corral.emulator.manifest import ADAPTER, Entry, Layer, Recipe, pack
from corral.emulator.registry import Registry
from corral.emulator.settings import Settings
from corral.emulator.store import Store, shown_name
from corral.errors import OperatorError

DIGEST: Final = re.compile(r"sha256[:-][0-9a-f]{64}")
MISSING_MANIFEST: Final = "pull model manifest: file does not exist"


class Pulling:
    """Pulls and makes models."""

    def __init__(self, settings: Settings, store: Store, registry: Registry, downloads: Downloads) -> None:
        self._settings = settings
        self._store = store
        self._registry = registry
        self._downloads = downloads
        self.pulls = 0

    async def pull(self, body: dict[str, Any]) -> Statuses:
        async for status in self._pull(name_of(body)):
            yield status
        yield {"status": "success"}

    async def create(self, body: dict[str, Any]) -> Statuses:
        name, source, files = name_of(body), text_of(body, "from"), dict_of(body, "files")
        if not is_valid(name):
            raise Rejected(400, "invalid model name")
        if not source and not files:
            raise Rejected(400, "neither 'from' or 'files' was specified")
        if files:
            base = Recipe(self._spec_of_files(name, files))
            yield {"status": "parsing GGUF"}
        else:
            if self._store.get(source) is None:
                # as Ollama does: a model that is not there is pulled first
                async for status in self._pull(source):
                    yield status
            found = self._store.get(source)
            if found is None:
                raise Rejected(404, f"model '{source}' not found")
            base = found.recipe
        for status in self._make(name, self._changed(base, body)):
            yield status
        yield {"status": "success"}

    # -- pull -----------------------------------------------------------------------------------------------------

    async def _pull(self, name: str) -> Statuses:
        yield {"status": "pulling manifest"}
        recipe = self._registry.find(name)
        if recipe is None:
            raise Rejected(500, MISSING_MANIFEST)
        self.pulls += 1
        old = self._store.get(name)
        entry, contents = pack(self._store.spelling(name), recipe, time.time())
        for layer in entry.manifest.every_layer:
            async for status in self._downloads.fetch(layer, contents.get(layer.digest, b"")):
                yield status
        yield {"status": "verifying sha256 digest"}
        yield {"status": "writing manifest"}
        self._store.shelf.put(replace(entry, modified_at_s=time.time()))
        for status in self._replaced(old, entry):
            yield status

    def _replaced(self, old: Entry | None, new: Entry) -> Iterator[Status]:
        """What the old manifest of this name named, and no other does, goes: unless told to keep it."""
        if old is None or self._settings.noprune:
            return
        kept = {layer.digest for layer in new.manifest.every_layer}
        unused = [layer.digest for layer in old.manifest.every_layer if layer.digest not in kept]
        if unused:
            yield {"status": "removing unused layers"}
            self._store.remove_unnamed(unused)

    # -- create ---------------------------------------------------------------------------------------------------

    def _make(self, name: str, recipe: Recipe) -> Iterator[Status]:
        old, shelf = self._store.get(name), self._store.shelf
        entry, contents = pack(self._store.spelling(name), recipe, time.time())
        for layer in entry.manifest.every_layer:
            is_there = shelf.blob_bytes(layer.digest) is not None
            yield {"status": f"{'using existing' if is_there else 'creating new'} layer {layer.digest}"}
            if not is_there and layer.digest in contents:
                shelf.put_blob(layer.digest, contents[layer.digest])
        yield {"status": "writing manifest"}
        shelf.put(entry)
        if old is not None and not self._settings.noprune:
            self._store.remove_unnamed(layer.digest for layer in old.manifest.every_layer)

    def _changed(self, base: Recipe, body: dict[str, Any]) -> Recipe:
        """What the request says; the rest is inherited."""
        more = "\n".join(_licenses(body.get("license")))
        adapters = self._adapters(dict_of(body, "adapters"))
        return replace(
            base,
            template=text_of(body, "template") or base.template,
            system=text_of(body, "system") or base.system,
            license="\n".join(part for part in (base.license, more) if part),
            parameters=base.parameters | dict_of(body, "parameters"),
            adapters=adapters or base.adapters,
        )

    def _adapters(self, given: dict[str, Any]) -> tuple[Layer, ...]:
        return tuple(Layer(ADAPTER, digest, size) for digest, size in self._uploaded(given))

    def _spec_of_files(self, name: str, files: dict[str, Any]) -> ModelSpec:
        digest, size = self._uploaded(files)[0]
        try:
            spec = model_given(f"{name}=0.1")
        except OperatorError:
            raise Rejected(400, "invalid model name") from None
        return replace(spec, name=shown_name(name), file_bytes=size, salt="", weights=digest)

    def _uploaded(self, files: dict[str, Any]) -> list[tuple[str, int]]:
        """Digest and size of blobs that must be there."""
        found = []
        for digest in files.values():
            if not isinstance(digest, str) or DIGEST.fullmatch(digest) is None:
                raise Rejected(400, "invalid digest format")
            plain = digest.replace("-", ":")
            size = self._store.shelf.blob_bytes(plain)
            if size is None:
                raise Rejected(400, f"stat blobs/{plain.replace(':', '-')}: no such file or directory")
            found.append((plain, size))
        return found


def name_of(body: dict[str, Any]) -> str:
    name = text_of(body, "model") or text_of(body, "name")
    if not name:
        raise Rejected(400, "model is required")
    return name


def is_valid(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.:/-]*", name) is not None and ".." not in name


def _licenses(value: Any) -> list[str]:
    """One text, or a list of them."""
    given = value if isinstance(value, list) else [value]
    return [text for text in given if isinstance(text, str) and text]
