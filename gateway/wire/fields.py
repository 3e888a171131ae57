"""What routing needs of a request body: its model, the options that make Ollama reload it, and how much it asks for.

Three readings, each for what the one before refuses: all of it; what routing cannot do without; the model alone, as
leniently as Ollama. So whatever is odd about the rest of a body, it still finds its model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from math import inf
from sys import float_info
from typing import Final

import msgspec
from msgspec.structs import astuple

from corral.gateway.wire.conversation import measure
from corral.gateway.wire.routes import Reads, Route
from corral.gateway.wire.shapes import Chat, Embedding, Fields, Options
from corral.model import RequestKind, RouteRequest, is_cloud_model, normalise_model

_SLOW_PATH_BYTES: Final = 1024 * 1024
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
    route: Route, body: bytes | bytearray, content_type: bytes, tenant: str, rank: int = 1
) -> RouteRequest:
    """Read ``body`` as far as routing needs it. One that cannot be read routes without a model: Ollama answers 400."""
    fields = _fields_of(route, body, content_type)
    name = (fields.model or fields.name) if fields is not None else None
    infers = route.kind is RequestKind.INFERENCE
    if fields is None or not name or len(name) > _MODEL_BYTES:
        return RouteRequest(RequestKind.OTHER if infers else route.kind, None, "", len(body), tenant, rank=rank)
    model, is_cloud = _name(name)
    if " " in model or not model.isprintable():  # no model of Ollama's is called so, and keys of lanes have a space
        return RouteRequest(RequestKind.OTHER if infers else route.kind, None, "", len(body), tenant, rank=rank)
    kind = _kind(route, fields, is_cloud)
    text_bytes, prefix, limit = _sizes(fields)
    return RouteRequest(kind, model, _signature(fields), len(body), tenant, text_bytes, prefix, limit, rank)


def _kind(route: Route, fields: Fields, is_cloud: bool) -> RequestKind:
    if route.kind is not RequestKind.INFERENCE:
        return route.kind
    if is_cloud:
        return RequestKind.CLOUD
    if route.unloads and isinstance(fields, Chat) and _lets_go(fields):
        return RequestKind.UNLOAD
    if fields.options is not None and any(map(_is_out_of_range, astuple(fields.options))):
        return RequestKind.OTHER  # Ollama itself answers with a 400: no model need be in memory for that
    return RequestKind.INFERENCE


_LONGEST_TIME: Final = 32
_NO_TIME: Final = re.compile(rb'-?0+(\.0+)?([eE].*)?|"[-+]?(0|((0+\.?0*|\.0+)(ns|us|\xc2\xb5s|\xce\xbcs|ms|s|m|h))+)"')


def _lets_go(fields: Chat) -> bool:
    """Nothing is to be run, and its ``keep_alive`` is what Go reads as zero: seconds, or a text such as ``0s``."""
    if fields.prompt or fields.messages or len(fields.keep_alive) > _LONGEST_TIME:
        return False
    return _NO_TIME.fullmatch(bytes(fields.keep_alive)) is not None


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


def _fields_of(route: Route, body: bytes | bytearray, content_type: bytes) -> Fields | None:
    if route.multipart:
        return _multipart_fields(body, content_type)
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


def _signature(fields: Fields) -> str:
    values = _NONE if fields.options is None else astuple(fields.options)[:-1]
    shift = False if fields.shift is False else None  # true is the default
    if shift is None and values == _NONE:
        return ""
    given = zip((*_RELOADING, "shift"), (*values, shift), strict=True)
    return ",".join(f"{name}={_plain(value)}" for name, value in given if value is not None)


def _plain(value: float) -> str:
    """``4096``, ``4096.0`` and ``true`` spelled as one number would be."""
    return str(int(value)) if isinstance(value, int) or value.is_integer() else str(value)


_MULTIPART_MODEL: Final = re.compile(
    rb'\r\ncontent-disposition:[^\r\n]*;[ \t]*name="model"[^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]{1,512})\r\n',
    re.IGNORECASE,
)


def _multipart_fields(body: bytes | bytearray, content_type: bytes) -> Fields | None:
    if not content_type.lower().startswith(b"multipart/form-data"):
        return None
    match = _MULTIPART_MODEL.search(body)
    return Fields(model=match[1].decode("utf-8", "replace")) if match is not None else None
