"""How large the models are that a trace asks for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from corral.emulator.catalog import ModelSpec, model_given, model_named, sized_model
from corral.errors import OperatorError
from corral.gateway.cli.messages import visible
from corral.gateway.layout.estimate import find_model
from corral.gateway.layout.plan import StoredModel
from corral.model import normalise_model


def specs_given(texts: Iterable[str]) -> dict[str, ModelSpec]:
    """Of ``NAME`` or ``NAME=SIZE_GB``, in their order. Raises OperatorError."""
    found: dict[str, ModelSpec] = {}
    for text in texts:
        name = text.partition("=")[0]
        if not name.strip():
            raise OperatorError(f"--models {text!r}: a model has a name")
        spec = _sized(text) if "=" in text else known_spec(name, ())
        if spec is None:
            raise OperatorError(_unknown([name]))
        found[spec.name] = spec
    return found


def _sized(text: str) -> ModelSpec:
    try:
        return model_given(text)
    except OperatorError as error:
        raise OperatorError(str(error).replace("--model ", "--models ")) from error


def specs_of(names: Iterable[str], given: dict[str, ModelSpec], stored: Sequence[StoredModel]) -> tuple[ModelSpec, ...]:
    """Of normalised names. Raises OperatorError, which names all that nothing is known of."""
    found = {name: given.get(name) or known_spec(name, stored) for name in names}
    unknown = [name for name, spec in found.items() if spec is None]
    if unknown:
        raise OperatorError(_unknown(unknown))
    return tuple(spec for spec in found.values() if spec is not None)


def known_spec(name: str, stored: Sequence[StoredModel]) -> ModelSpec | None:
    """As it lies in this machine's store, as the emulator knows it, or as the layout does."""
    asked = normalise_model(name)
    if any(model.name == asked for model in stored):
        return _stored_spec(asked, stored)
    return model_named(asked) or _stored_spec(asked, ())


def _stored_spec(name: str, stored: Sequence[StoredModel]) -> ModelSpec | None:
    model = find_model(name, stored)
    if model is None:
        return None
    spec = sized_model(name, model.weights_bytes / 1e9)
    kv, context = model.kv_bytes_per_token, model.context_length
    return replace(
        spec,
        kv_bytes_per_token=spec.kv_bytes_per_token if kv is None else kv,
        context_length=spec.context_length if context is None else context,
    )


def _unknown(names: Sequence[str]) -> str:
    names = [visible(name) for name in names]
    example = ",".join(f"{name}=4.9" for name in names[:3])
    return (
        f"nothing is known of {'these models' if len(names) > 1 else 'this model'}: {', '.join(names)}\n"
        f"  say how large {'they are' if len(names) > 1 else 'it is'}, in GB: --models {example}"
    )
