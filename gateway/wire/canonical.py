"""One context length for all requests of a model: the only case in which a request's body is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from corral.gateway.wire.routes import Route
from corral.model import is_cloud_model, normalise_model

NumCtx = int | Mapping[str, int] | None
"""For all models, or by normalised name; None: requests keep their own."""

_Members = dict[str, msgspec.Raw]
_decode: Final = msgspec.json.Decoder(_Members).decode


def with_num_ctx(route: Route, body: bytes | bytearray, num_ctx: NumCtx) -> bytes | bytearray:
    """``body`` with the model's context length in its options; itself where that is so already, or it is no JSON.

    Every other member stays as the client wrote it, byte for byte. A compressed body is no JSON: it stays as it came,
    and the routes that take options refuse it.
    """
    if num_ctx is None or not route.takes_options:
        return body
    try:
        members = _decode(body)
        wanted = _wanted(members, num_ctx)
        if wanted is None:
            return body
        options = _options(members)
        if "num_ctx" in options and msgspec.json.decode(options["num_ctx"]) == wanted:
            return body
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return body
    options["num_ctx"] = _raw(wanted)
    members["options"] = _raw(options)
    return msgspec.json.encode(members)


def _options(members: _Members) -> _Members:
    raw = members.get("options")
    given = None if raw is None else msgspec.json.decode(raw, type=_Members | None)
    return given or {}


def _wanted(members: _Members, num_ctx: int | Mapping[str, int]) -> int | None:
    raw = members.get("model")
    name = None if raw is None else msgspec.json.decode(raw, type=str | None)
    if not name:
        return None
    model = normalise_model(name)
    if isinstance(num_ctx, int):
        return None if is_cloud_model(model) else num_ctx
    return num_ctx.get(model)


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))
