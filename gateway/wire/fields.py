"""What routing needs of a request body: its model, the options that make Ollama reload it, and how much it asks for.

Three readings, each for what the one before refuses: all of it; what routing cannot do without; the model alone, as
leniently as Ollama. So whatever is odd about the rest of a body, it still finds its model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from math import inf
from sys import float_info
from typing import Final
from urllib.parse import parse_qsl

import msgspec
from msgspec.structs import astuple

from corral.gateway.wire.conversation import measure
from corral.gateway.wire.keepalive import keep_alive_s
from corral.gateway.wire.multipart import form_value
from corral.gateway.wire.routes import Reads, Route
from corral.gateway.wire.shapes import Chat, Embedding, Fields, Options
from corral.gateway.wire.zstd import decompressed
from corral.model import RequestKind, RouteRequest, is_cloud_model, normalise_model

_SLOW_PATH_BYTES: Final = 1024 * 1024
_MOST_PARAMETERS: Final = 100
_lenient: Final = json.JSONDecoder()
_MODEL_BYTES: Final = 512
_MOST_PIECES: Final = 250_000
"""Messages, parts, images, texts: each is an object, and while a million are made everybody waits for a second."""

_RELOADING: Final = Options.__struct_fields__[:-1]
_NONE: Final = (None,) * len(_RELOADING)

_decode: Final = msgspec.json.Decoder(Fields).decode
_DECODERS: Final[dict[Reads, Callable[[bytes | bytearray], Fields]]] = {
    Reads.NOTHING: _decode,
    Reads.CONVERSATION: msgspec.json.Decoder(Chat).decode,
    Reads.TEXTS: msgspec.json.Decoder(Embedding).decode,
}
_UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)


def route_request(
    route: Route,
    body: bytes | bytearray,
    content_type: bytes,
    tenant: str,
    rank: int = 1,
    *,
    encoding: bytes | None = None,
    target: bytes = b"",
) -> RouteRequest:
    """Read ``body`` as far as routing needs it. One that cannot be read routes without a model: Ollama answers 400.

    ``encoding`` is that of the body, as the client says; ``target`` that of the request line.
    """
    infers = route.kind is RequestKind.INFERENCE
    if not infers and route.kind is RequestKind.CLOUD:  # it concerns an account, whatever its body says
        return RouteRequest(RequestKind.CLOUD, None, "", len(body), tenant, rank=rank)
    fields = _fields_of(route, body, content_type, encoding, target)
    name = (fields.model or fields.name) if fields is not None else None
    if fields is None or not name or len(name) > _MODEL_BYTES:
        return RouteRequest(RequestKind.OTHER if infers else route.kind, None, "", len(body), tenant, rank=rank)
    model, is_cloud = _name(name)
    if " " in model or not model.isprintable():  # no model of Ollama's is called so, and keys of lanes have a space
        return RouteRequest(RequestKind.OTHER if infers else route.kind, None, "", len(body), tenant, rank=rank)
    if is_cloud and infers:
        return RouteRequest(RequestKind.CLOUD, model, "", len(body), tenant, rank=rank)
    kind = _kind(route, fields)
    text_bytes, prefix, limit = _sizes(fields)
    signature, stays_s = signature_of(fields.options, fields.shift), _keep_alive_s(route, fields)
    return RouteRequest(
        kind, model, signature, len(body), tenant, text_bytes, prefix, limit, rank, keep_alive_s=stays_s
    )


def _kind(route: Route, fields: Fields) -> RequestKind:
    if route.kind is not RequestKind.INFERENCE:
        return route.kind
    if route.unloads and isinstance(fields, Chat) and _lets_go(route, fields):
        return RequestKind.UNLOAD
    if fields.options is not None and any(map(_is_out_of_range, astuple(fields.options))):
        return RequestKind.OTHER  # Ollama itself answers with a 400: no model need be in memory for that
    return RequestKind.INFERENCE


def _lets_go(route: Route, fields: Chat) -> bool:
    """Nothing is to be run, and the model is not to be kept."""
    return not (fields.prompt or fields.messages) and _keep_alive_s(route, fields) == 0.0


def _keep_alive_s(route: Route, fields: Fields) -> float | None:
    """How long the model is to be kept; only Ollama's own routes ask for that."""
    if route.takes_options and isinstance(fields, (Chat, Embedding)) and len(fields.keep_alive):
        return keep_alive_s(bytes(fields.keep_alive))
    return None


def _sizes(fields: Fields) -> tuple[int | None, tuple[int, ...], int | None]:
    """Length of the text, its prefix, and the most tokens that are wanted."""
    if isinstance(fields, Chat):
        try:
            text_bytes, prefix = measure(fields)
        except RecursionError:  # parts within parts within parts
            return None, (), _limit(fields)
        return text_bytes, prefix, _limit(fields)
    if isinstance(fields, Embedding):
        given = fields.input
        texts = [given] if isinstance(given, str) else given or []
        return sum(len(text.encode()) for text in (fields.prompt or "", *texts)), (), None
    return None, (), None


def _limit(fields: Chat) -> int | None:
    options = fields.options
    if options is not None and options.num_predict is not None:
        return _positive(options.num_predict)
    for limit in (fields.max_completion_tokens, fields.max_output_tokens, fields.max_tokens):
        if limit is not None:
            return _positive(limit)
    return None


def _positive(limit: float) -> int | None:
    """Anything else means as many as there are."""
    return int(limit) if 1 <= limit < _ENDLESS else None


_ENDLESS: Final = 1 << 31


@lru_cache(maxsize=512)
def _name(name: str) -> tuple[str, bool]:
    """The model's one spelling, and whether it runs in the cloud. At most 512 names of at most 512 bytes are kept."""
    model = normalise_model(name)
    return model, is_cloud_model(model)


def _fields_of(
    route: Route, body: bytes | bytearray, content_type: bytes, encoding: bytes | None, target: bytes
) -> Fields | None:
    if route.multipart:
        return _form_fields(body, content_type, target)
    if encoding is not None and encoding == b"zstd" and route.takes_zstd:  # of any other Ollama takes no notice
        text = decompressed(body)
        if text is None:
            return None
        body = text
    if route.reads is not Reads.NOTHING and _is_crowded(body):
        return _read_bare(body)
    try:
        fields = _DECODERS[route.reads](body)
    except _UNREADABLE:
        return _read_leniently(body) if route.reads is Reads.NOTHING else _read_bare(body)
    return fields if fields.model or fields.name else _read_leniently(body)


def _is_crowded(body: bytes | bytearray) -> bool:
    """Whether it may consist of more pieces than are read: each but the first of a list follows a comma."""
    return len(body) > 2 * _MOST_PIECES and body.count(b",") + body.count(b"{") > _MOST_PIECES


def _read_bare(body: bytes | bytearray) -> Fields | None:
    """Something odd, or too much, stands where only the model looks."""
    try:
        fields = _decode(body)
    except _UNREADABLE:
        return _read_leniently(body)
    return fields if fields.model or fields.name else _read_leniently(body)


def _read_leniently(body: bytes | bytearray) -> Fields | None:
    """Go's decoder takes what msgspec refuses (invalid UTF-8, odd option types): the model is still the model."""
    if len(body) > _SLOW_PATH_BYTES:
        return None
    try:
        # Like Go's decoder, it stops behind the first value and does not mind what follows.
        value, _ = _lenient.raw_decode(body.decode("utf-8", "replace").lstrip())
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    # encoding/json matches field names without regard to case; the last one wins.
    folded = {str(key).lower(): each for key, each in value.items()}
    model, name, options = folded.get("model"), folded.get("name"), folded.get("options")
    out_of_range = isinstance(options, dict) and any(map(_is_out_of_range, options.values()))
    return Fields(
        model=model if isinstance(model, str) else None,
        name=name if isinstance(name, str) else None,
        options=Options(num_ctx=inf) if out_of_range else None,
    )


def _is_out_of_range(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) > float_info.max


def signature_of(options: Options | None, shift: bool | None) -> str:
    """What a model is loaded anew for, canonical."""
    values = _NONE if options is None else astuple(options)[:-1]
    shift = False if shift is False else None  # true is the default
    if shift is None and values == _NONE:
        return ""
    given = zip((*_RELOADING, "shift"), (*values, shift), strict=True)
    return ",".join(f"{name}={_plain(value)}" for name, value in given if value is not None)


def _plain(value: float) -> str:
    """``4096``, ``4096.0`` and ``true`` spelled as one number would be."""
    return str(int(value)) if isinstance(value, int) or value.is_integer() else str(value)


def _form_fields(body: bytes | bytearray, content_type: bytes, target: bytes) -> Fields | None:
    """As Go reads a form: what the query says of a name comes before what the body says."""
    asked = _model_in_query(target)
    if asked is None:
        value = form_value(body, content_type, b"model")
        asked = None if value is None else value.decode("utf-8", "replace")
    return Fields(model=asked) if asked else None


def _model_in_query(target: bytes) -> str | None:
    query = target.partition(b"?")[2].decode("ascii", "replace")
    try:
        given = parse_qsl(query, keep_blank_values=True, max_num_fields=_MOST_PARAMETERS)
    except ValueError:
        return ""
    return next((value for key, value in given if key == "model"), None)
