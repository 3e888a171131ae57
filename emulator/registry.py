"""What can be pulled: the models of the catalog and those given at the start, in the version that was published last.

Emulators that share a store share their registry, a file in it, so that all pull the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec

from corral.emulator.catalog import ModelSpec, model_named, sized_model
from corral.emulator.manifest import DEFAULT_TEMPLATE, Recipe
from corral.errors import OperatorError
from corral.model import is_cloud_model, normalise_model

FILE: Final = "REGISTRY"
_MOST_GB: Final = 1e6


class Publication(msgspec.Struct, frozen=True):
    """What was published under one name."""

    version: int
    """0: the name was withdrawn."""
    size_gb: float | None = None
    """None: the size it always had."""
    same_weights: bool = False
    """Only the manifest differs from other versions'."""


class Registry:
    """By normalised name."""

    def __init__(self, path: Path | None, given: Iterable[ModelSpec]) -> None:
        self._path = path
        self._given = {normalise_model(spec.name): spec for spec in given}
        self._published: dict[str, Publication] = {}

    def publish(self, fields: dict[str, Any]) -> dict[str, Publication]:
        """From now on a pull gets this: ``model``, ``version`` and perhaps ``size_gb`` and ``same_weights``.

        All that is published comes back; OperatorError says what is wrong.
        """
        name, publication = _read(fields)
        published = self._all() | {name: publication}
        if publication.version and self._spec(name, publication) is None:
            raise OperatorError(f"publish {name}: no model that is known; give its size_gb, for example 0.5")
        self._published = published
        if self._path is not None:
            new = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
            new.write_bytes(msgspec.json.encode(published))
            new.replace(self._path)
        return published

    def find(self, name: str) -> Recipe | None:
        """What a pull of this name gets; None: there is no such model."""
        plain = normalise_model(name)
        publication = self._all().get(plain, Publication(1))
        spec = self._spec(plain, publication) if publication.version else None
        if spec is None or spec.remote:
            return None if spec is None else Recipe(spec)
        version = publication.version
        mark = f"{{{{- /* {version} */}}}}" if publication.same_weights and version > 1 else ""
        return Recipe(
            spec,
            template=mark + DEFAULT_TEMPLATE,
            license=f"License of the emulated {spec.family} models: do with their words what you like.",
            parameters={"stop": ["<|end|>"]},
        )

    def _spec(self, name: str, publication: Publication) -> ModelSpec | None:
        if publication.size_gb is not None and not is_cloud_model(name):
            spec: ModelSpec | None = sized_model(name, publication.size_gb)
        else:
            spec = self._given.get(name) or model_named(name)
        if spec is None or publication.same_weights or publication.version < 2:
            return spec
        return replace(spec, salt=f"{spec.salt} version {publication.version}")

    def _all(self) -> dict[str, Publication]:
        if self._path is None:
            return self._published
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, Publication])
        except FileNotFoundError:
            return {}


def _read(fields: dict[str, Any]) -> tuple[str, Publication]:
    name = fields.get("model")
    if not isinstance(name, str) or not name:
        raise OperatorError('publish: no model; for example {"model": "llama3.2:1b", "version": 2}')
    try:
        publication = msgspec.convert({key: value for key, value in fields.items() if key != "model"}, Publication)
    except msgspec.ValidationError as error:
        raise OperatorError(f"publish {name}: {error}") from None
    if publication.version < 0 or not 0 < (publication.size_gb or 1.0) < _MOST_GB:
        raise OperatorError(f"publish {name}: version counts from 1 (0 withdraws it), size_gb is above 0")
    return normalise_model(name), publication
