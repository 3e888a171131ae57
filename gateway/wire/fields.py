"""What routing needs from a request body: the model and the options that make Ollama reload it, and nothing else."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Final

import msgspec

from corral.gateway.wire.routes import Route
from corral.model import RequestKind, RouteRequest, is_cloud_model, normalise_model

_SLOW_PATH_BYTES: Final = 1024 * 1024
_lenient: Final = json.JSONDecoder()
_MODEL_BYTES: Final = 512
_Number = int | float | None


class _Options(msgspec.Struct):
    num_ctx: _Number = None
    num_batch: _Number = None
    num_gpu: _Number = None
    main_gpu: _Number = None
    use_mmap: bool | None = None
    num_thread: _Number = None
    draft_num_predict: _Number = None


class _Fields(msgspec.Struct):
    model: str | None = None
    name: str | None = None
    options: _Options | None = None
    shift: bool | None = None


_NO_OPTIONS: Final = _Options()

_decode = msgspec.json.Decoder(_Fields).decode


def route_request(route: Route, body: bytes | bytearray, content_type: bytes, tenant: str) -> RouteRequest:
    """Read ``body`` as far as routing needs it. One that cannot be read routes without a model: Ollama answers 400."""
    fields = _fields_of(route, body, content_type)
    name = (fields.model or fields.name) if fields is not None else None
    infers = route.kind is RequestKind.INFERENCE
    if fields is None or not name or len(name) > _MODEL_BYTES:
        return RouteRequest(RequestKind.OTHER if infers else route.kind, None, "", len(body), tenant)
    model, is_cloud = _name(name)
    kind = RequestKind.CLOUD if infers and is_cloud else route.kind
    return RouteRequest(kind, model, _signature(fields), len(body), tenant)


@lru_cache(maxsize=512)
def _name(name: str) -> tuple[str, bool]:
    """The model's one spelling, and whether it runs in the cloud. At most 512 names of at most 512 bytes are kept."""
    model = normalise_model(name)
    return model, is_cloud_model(model)


def _fields_of(route: Route, body: bytes | bytearray, content_type: bytes) -> _Fields | None:
    if route.multipart:
        return _multipart_fields(body, content_type)
    try:
        fields = _decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _read_leniently(body)
    return fields if fields.model or fields.name else _read_leniently(body)


def _read_leniently(body: bytes | bytearray) -> _Fields | None:
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
    model, name = folded.get("model"), folded.get("name")
    return _Fields(model=model if isinstance(model, str) else None, name=name if isinstance(name, str) else None)


def _signature(fields: _Fields) -> str:
    options = fields.options
    if fields.shift is None and (options is None or options == _NO_OPTIONS):
        return ""
    given = [] if options is None else [(name, getattr(options, name)) for name in options.__struct_fields__]
    given.append(("shift", fields.shift))
    return ",".join(f"{name}={_plain(value)}" for name, value in given if value is not None)


def _plain(value: float) -> str:
    """``4096``, ``4096.0`` and ``true`` spelled as one number would be."""
    return str(int(value)) if isinstance(value, int) or value.is_integer() else str(value)


_MULTIPART_MODEL: Final = re.compile(
    rb'\r\ncontent-disposition:[^\r\n]*;[ \t]*name="model"[^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]{1,512})\r\n',
    re.IGNORECASE,
)


def _multipart_fields(body: bytes | bytearray, content_type: bytes) -> _Fields | None:
    if not content_type.lower().startswith(b"multipart/form-data"):
        return None
    match = _MULTIPART_MODEL.search(body)
    return _Fields(model=match[1].decode("utf-8", "replace")) if match is not None else None
