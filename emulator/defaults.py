"""What a model's Modelfile says for requests that leave it open: parameters, system message, adapters."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from corral.emulator.ask import Ask, options_of, render, sampling_of, signature_of
from corral.emulator.manifest import Recipe
from corral.emulator.runner import Signature


def filled(ask: Ask, recipe: Recipe) -> Ask:
    """The request as the model's runner gets it; Rejected where a parameter is of the wrong type."""
    parameters = options_of({"options": dict(recipe.parameters)})
    ask = replace(ask, signature=_signature(ask.signature, recipe, parameters))
    if parameters:
        ask = _with_parameters(ask, parameters)
    if recipe.system and not ask.raw and not ask.empty and (not ask.messages or ask.messages[0][0] != "system"):
        first = ("system", recipe.system)
        ask = replace(ask, prompt=render([first]) + ask.prompt, messages=(first, *ask.messages))
    return ask


def _signature(given: Signature, recipe: Recipe, parameters: dict[str, Any]) -> Signature:
    """Field by field: the request's option, else the Modelfile's parameter."""
    default = signature_of(parameters, True)
    own = {field.name: getattr(given, field.name) for field in fields(given)}
    open_fields = {name: getattr(default, name) for name, value in own.items() if value is None}
    return replace(given, **open_fields, adapters=tuple(layer.digest for layer in recipe.adapters))


def _with_parameters(ask: Ask, parameters: dict[str, Any]) -> Ask:
    stop, predict = parameters.get("stop") or (), parameters.get("num_predict")
    known = dict(ask.sampling)
    return replace(
        ask,
        stop=ask.stop or ((stop,) if isinstance(stop, str) else tuple(stop)),
        num_predict=ask.num_predict or (predict if isinstance(predict, int) and predict > 0 else None),
        sampling=(*ask.sampling, *[(name, value) for name, value in sampling_of(parameters) if name not in known]),
    )
