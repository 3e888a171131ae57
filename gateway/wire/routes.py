"""Ollama's routes as far as the gateway treats them apart; every other method and path passes through as OTHER."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from corral.gateway.wire.dialect import Dialect, StreamEnd
from corral.model import RequestKind, is_cloud_model, normalise_model


class View(Enum):
    """Pages the gateway answers itself, for all replicas together."""

    ROOT = "root"
    TAGS = "tags"
    PS = "ps"
    VERSION = "version"
    MODELS = "models"
    MODEL = "model"


class Duty(Enum):
    """Requests that a task of the gateway's may answer; which of them it does, it decides when they come."""

    PAGE = "page"
    """A page for all replicas together, see :class:`View`."""
    SHOW = "show"
    STORE = "store"
    """Changes a model store."""
    BLOB = "blob"
    EMBED = "embed"


class Reads(Enum):
    """What a model reads of a request's body."""

    NOTHING = "nothing"
    CONVERSATION = "conversation"
    """A prompt, or messages: two of them may begin alike."""
    TEXTS = "texts"
    """Texts to embed."""


@dataclass(frozen=True, slots=True)
class Route:
    """How one route is treated."""

    label: str
    """Its name in metrics: one of a small fixed set."""
    kind: RequestKind
    dialect: Dialect = Dialect.NATIVE
    end: StreamEnd = StreamEnd.NONE
    view: View | None = None
    duty: Duty | None = None
    streams_body: bool = False
    """The request body is passed on as it comes instead of being read first (blob uploads)."""
    multipart: bool = False
    reads: Reads = Reads.NOTHING
    takes_options: bool = False
    """Its body may carry Ollama's ``options``."""
    unloads: bool = False
    """Without a text, and with a ``keep_alive`` of zero, it only lets go of the model."""
    once: bool = False
    """It changes something that no other replica should change in its place: it is sent once at most."""

    @property
    def takes_zstd(self) -> bool:
        """Ollama reads a compressed body here; on its native routes it refuses one, and nothing is loaded for that."""
        return self.kind is RequestKind.INFERENCE and self.dialect is not Dialect.NATIVE and not self.multipart


_I: Final = RequestKind.INFERENCE
_S: Final = RequestKind.STORE
_OA: Final = Dialect.OPENAI
_C: Final = Reads.CONVERSATION
_T: Final = Reads.TEXTS
_ACCOUNT: Final = Route("account", RequestKind.CLOUD)
_SIGNS_OUT: Final = Route("account", RequestKind.CLOUD, once=True)

_EXACT: Final[dict[tuple[bytes, str], Route]] = {
    (b"POST", "/api/chat"): Route("chat", _I, end=StreamEnd.DONE_TRUE, reads=_C, takes_options=True, unloads=True),
    (b"POST", "/api/generate"): Route(
        "generate", _I, end=StreamEnd.DONE_TRUE, reads=_C, takes_options=True, unloads=True
    ),
    (b"POST", "/api/embed"): Route("embed", _I, reads=_T, takes_options=True, duty=Duty.EMBED),
    (b"POST", "/api/embeddings"): Route("embed", _I, reads=_T, takes_options=True),
    (b"POST", "/v1/chat/completions"): Route("openai_chat", _I, _OA, StreamEnd.DONE_EVENT, reads=_C),
    (b"POST", "/v1/completions"): Route("openai_completions", _I, _OA, StreamEnd.DONE_EVENT, reads=_C),
    (b"POST", "/v1/embeddings"): Route("openai_embeddings", _I, _OA, reads=_T, duty=Duty.EMBED),
    (b"POST", "/v1/responses"): Route("openai_responses", _I, _OA, StreamEnd.RESPONSE_EVENT, reads=_C),
    (b"POST", "/v1/audio/transcriptions"): Route("openai_audio", _I, _OA, multipart=True),
    (b"POST", "/v1/messages"): Route("anthropic_messages", _I, Dialect.ANTHROPIC, StreamEnd.MESSAGE_STOP, reads=_C),
    (b"POST", "/api/show"): Route("show", RequestKind.SHOW, duty=Duty.SHOW),
    (b"POST", "/api/pull"): Route("pull", _S, duty=Duty.STORE),
    (b"POST", "/api/push"): Route("push", _S, duty=Duty.STORE),
    (b"POST", "/api/create"): Route("create", _S, duty=Duty.STORE),
    (b"POST", "/api/copy"): Route("copy", _S, duty=Duty.STORE),
    (b"DELETE", "/api/delete"): Route("delete", _S, duty=Duty.STORE),
    (b"POST", "/api/me"): _ACCOUNT,
    (b"POST", "/api/signout"): _SIGNS_OUT,
    (b"POST", "/api/experimental/web_search"): _ACCOUNT,
    (b"POST", "/api/experimental/web_fetch"): _ACCOUNT,
    **{
        (method, path): Route(view.value, RequestKind.OTHER, dialect, view=view, duty=Duty.PAGE)
        for method in (b"GET", b"HEAD")
        for path, view, dialect in (
            ("/", View.ROOT, Dialect.NATIVE),
            ("/api/tags", View.TAGS, Dialect.NATIVE),
            ("/api/version", View.VERSION, Dialect.NATIVE),
        )
    },
    (b"GET", "/api/ps"): Route("ps", RequestKind.OTHER, view=View.PS, duty=Duty.PAGE),
    (b"GET", "/v1/models"): Route("models", RequestKind.OTHER, _OA, view=View.MODELS, duty=Duty.PAGE),
}
_MODEL: Final = Route("model", RequestKind.OTHER, _OA, view=View.MODEL, duty=Duty.PAGE)
_CLOUD_MODEL: Final = Route("model", RequestKind.CLOUD, _OA)
_BLOB: Final = Route("blob", RequestKind.BLOB, duty=Duty.BLOB)
_UPLOAD: Final = Route("blob", RequestKind.BLOB, streams_body=True, duty=Duty.BLOB)
_OTHER: Final = {dialect: Route("other", RequestKind.OTHER, dialect) for dialect in Dialect}
_MAY_INFER: Final = {dialect: Route("other", _I, dialect, reads=_C) for dialect in Dialect}


def find_route(method: bytes, path: str) -> Route:
    """The route of a request. A POST below ``/api`` or ``/v1`` that is not listed is inference if it names a model."""
    route = _EXACT.get((method, path))
    if route is not None:
        return route
    if method == b"GET" and path.startswith("/v1/models/"):
        return _CLOUD_MODEL if is_cloud_model(normalise_model(path.removeprefix("/v1/models/"))) else _MODEL
    if method == b"DELETE" and path.startswith("/api/user/keys/"):
        return _SIGNS_OUT
    if path.startswith("/api/blobs/"):
        return _UPLOAD if method == b"POST" else _BLOB
    dialect = dialect_of(path)
    if method == b"POST" and path.startswith(("/v1/", "/api/")):
        return _MAY_INFER[dialect]
    return _OTHER[dialect]


def dialect_of(path: str) -> Dialect:
    """Whose error shape a path answers with."""
    if path.startswith("/v1/messages"):
        return Dialect.ANTHROPIC
    return Dialect.OPENAI if path.startswith("/v1/") else Dialect.NATIVE
