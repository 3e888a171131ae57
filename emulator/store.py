"""The models of one emulated Ollama by name: what adding, copying and removing one does to the blobs."""

from __future__ import annotations

from collections.abc import Iterable

from corral.emulator.catalog import model_named
from corral.emulator.manifest import Entry, Recipe, pack, renamed
from corral.emulator.shelf import Shelf
from corral.model import is_cloud_model, normalise_model


class Store:
    """Names are matched without regard to case, as Ollama does."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    def listed(self) -> list[Entry]:
        """Newest first."""
        return sorted(self.shelf.entries(), key=lambda entry: -entry.modified_at_s)

    def get(self, name: str) -> Entry | None:
        wanted = normalise_model(name)
        return next((entry for entry in self.shelf.entries() if normalise_model(entry.name) == wanted), None)

    def find(self, name: str) -> Entry | None:
        """One that can be run: also of the cloud, where every name that says so is taken for one."""
        entry = self.get(name) if name else None
        plain = normalise_model(name)
        if entry is None and is_cloud_model(plain) and (cloud := model_named(plain)) is not None:
            return pack(plain, Recipe(cloud), 0.0)[0]
        return entry

    def spelling(self, name: str) -> str:
        """As the model of that name is spelled that is there already, else as given."""
        known = self.get(name)
        return shown_name(name) if known is None else known.name

    def install(self, name: str, recipe: Recipe, now: float) -> Entry:
        """Add a model with all its layers."""
        entry, contents = pack(self.spelling(name), recipe, now)
        for digest, content in contents.items():
            self.shelf.put_blob(digest, content)
        self.shelf.put(entry)
        return entry

    def copy(self, entry: Entry, name: str, now: float) -> None:
        self.shelf.put(renamed(entry, self.spelling(name), now))

    def delete(self, entry: Entry) -> None:
        """The manifest, and the layers that no other manifest which can be read names."""
        self.shelf.remove(entry.name)
        self.remove_unnamed(layer.digest for layer in entry.manifest.every_layer)

    def remove_unnamed(self, digests: Iterable[str]) -> None:
        """Remove those of these blobs that no manifest names."""
        named = {layer.digest for entry in self.shelf.entries() for layer in entry.manifest.every_layer}
        for digest in digests:
            if digest not in named:
                self.shelf.remove_blob(digest)


def shown_name(name: str) -> str:
    """With a tag, without the default host and namespace, in the spelling given."""
    plain = name.removeprefix("registry.ollama.ai/").removeprefix("library/")
    return plain if ":" in plain.rpartition("/")[2] else f"{plain}:latest"
