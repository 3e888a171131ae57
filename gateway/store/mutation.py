"""What a request wants to change in the model stores, read as leniently as Ollama reads it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

import msgspec

from corral.gateway.store.turns import Claim, Sort
from corral.model import normalise_model

_LENIENT_BYTES: Final = 1 << 20
_MOST_NAME: Final = 512
_MOST_REST: Final = 4096
"""What is longer is told apart as it is written: reading it would hold up everybody else."""
_JSON: Final = b"application/json"

_Members = dict[str, msgspec.Raw]
_members: Final = msgspec.json.Decoder(_Members).decode
_lenient: Final = json.JSONDecoder()


class Act(Enum):
    """The values are what people call it."""

    PULL = "pull"
    PUSH = "push"
    CREATE = "create"
    COPY = "copy"
    DELETE = "delete"

    @property
    def method(self) -> str:
        return "DELETE" if self is Act.DELETE else "POST"

    @property
    def path(self) -> str:
        return f"/api/{self.value}"


ACTS: Final[Mapping[str, Act]] = {act.path: act for act in Act}

_SORTS: Final = {
    Act.PULL: Sort.DOWNLOADS,
    Act.PUSH: Sort.READS,
    Act.CREATE: Sort.NAMES_LAYERS,
    Act.COPY: Sort.NAMES_LAYERS,
    Act.DELETE: Sort.REMOVES,
}


class Reach(Enum):
    """Which models a request may concern."""

    NAMED = "those that it names"
    NONE = "none"
    """Ollama cannot but refuse it."""
    ANY = "any"
    """It could not be read, and Ollama may."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """One request. As far as Ollama answers in lines, ``body`` asks for them whatever the client wants."""

    act: Act
    body: bytes
    content_type: bytes = _JSON
    reach: Reach = Reach.NAMED
    model: str | None = None
    """Normalised: the one that is written, removed or sent away."""
    source: str | None = None
    """Normalised: what it is made of."""
    streams: bool = True
    """Whether the client wants progress."""
    rest: str = ""
    """Of a pull: whatever else it says, in one spelling."""

    @property
    def needs(self) -> str | None:
        """The model that a store must have for this to make sense there."""
        if self.act is Act.COPY:
            return self.source
        return self.model if self.act in (Act.DELETE, Act.PUSH) else None

    @property
    def replaces(self) -> str | None:
        """The model that may be another one afterwards."""
        return self.model if self.act in (Act.PULL, Act.CREATE, Act.COPY) else None

    def claim(self, stores: frozenset[str]) -> Claim:
        if self.reach is Reach.ANY:
            return Claim(Sort.WHOLE_STORE, stores)
        models = frozenset(filter(None, (self.model, self.source)))
        return Claim(_SORTS[self.act] if models else Sort.READS, stores, models)


def read_mutation(act: Act, body: bytes | bytearray, content_type: bytes = _JSON) -> Mutation:
    """What a client sent to the act's path."""
    body = bytes(body)
    members, reach = _read(body)
    if members is None:
        return Mutation(act, body, content_type, reach)
    try:
        return _mutation(act, members, body, content_type)
    except (msgspec.MsgspecError, ValueError, RecursionError):  # of another type than Ollama takes
        return Mutation(act, body, content_type, Reach.NONE)


def pull_of(model: str, *, insecure: bool) -> Mutation:
    """A pull of the gateway's own."""
    fields = {"model": model, "insecure": True} if insecure else {"model": model}
    return read_mutation(Act.PULL, json.dumps(fields).encode())


def deletion_of(model: str) -> Mutation:
    """A deletion of the gateway's own."""
    return read_mutation(Act.DELETE, json.dumps({"model": model}).encode())


def copy_of(source: str, destination: str) -> Mutation:
    """A copy of the gateway's own."""
    return read_mutation(Act.COPY, json.dumps({"source": source, "destination": destination}).encode())


def _read(body: bytes) -> tuple[_Members | None, Reach]:
    """The members of the object, the last of each name (Go does not mind the case); None: there is no object."""
    try:
        return {name.lower(): raw for name, raw in _members(body).items()}, Reach.NAMED
    except (msgspec.MsgspecError, ValueError, RecursionError):
        if len(body) > _LENIENT_BYTES:
            return None, Reach.ANY
    try:
        value, _ = _lenient.raw_decode(body.decode("utf-8", "replace").lstrip())
        if not isinstance(value, dict):
            return None, Reach.NONE
        return {str(name).lower(): _raw(each) for name, each in value.items()}, Reach.NAMED
    except json.JSONDecodeError:  # which is no JSON for Go either
        return None, Reach.NONE
    except (ValueError, RecursionError):
        return None, Reach.ANY


def _mutation(act: Act, members: _Members, body: bytes, content_type: bytes) -> Mutation:
    if act is Act.COPY:
        source, model = _name(members, "source"), _name(members, "destination")
        reach = Reach.NAMED if source and model else Reach.NONE
        return Mutation(act, body, content_type, reach, model, source)
    model = _name(members, "model") or _name(members, "name")
    reach = Reach.NAMED if model else Reach.NONE
    if act is Act.DELETE:
        return Mutation(act, body, content_type, reach, model)
    streams = _value(members, "stream", bool | None) is not False
    if not streams:
        body = msgspec.json.encode(members | {"stream": _raw(True)})
    source = _name(members, "from") if act is Act.CREATE else None
    rest = _rest(members) if act is Act.PULL else ""
    return Mutation(act, body, content_type, reach, model, source, streams, rest)


def _name(members: _Members, member: str) -> str | None:
    name = _value(members, member, str | None)
    if not isinstance(name, str) or not name:
        return None
    if len(name) > _MOST_NAME or not name.isprintable():
        raise ValueError("no name of a model")
    return normalise_model(name) or None


def _value(members: _Members, member: str, shape: object) -> object:
    raw = members.get(member)
    return None if raw is None else msgspec.json.decode(raw, type=shape)


def _rest(members: _Members) -> str:
    """Without what two pulls of the same may differ in."""
    others = {name: raw for name, raw in members.items() if name not in ("model", "name", "stream")}
    if sum(len(name) + len(memoryview(raw)) for name, raw in others.items()) > _MOST_REST:
        return hashlib.sha256(msgspec.json.encode(others, order="deterministic")).hexdigest()
    values = {name: _plain(raw) for name, raw in others.items()}
    return json.dumps({name: value for name, value in values.items() if value not in (None, False, "")}, sort_keys=True)


def _plain(raw: msgspec.Raw) -> object:
    """What it says, or as it is written where that cannot be read."""
    text = bytes(raw).decode("utf-8", "replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())
