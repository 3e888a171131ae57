"""Settings that come from the environment: Ollama's own variables, Corral's, and those that guides name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from corral.errors import ConfigError
from corral.gateway.config.addresses import parse_address
from corral.gateway.config.ollama_host import parse_ollama_host
from corral.gateway.config.owned import OllamaConfig
from corral.gateway.config.schema import Config, PolicyConfig, ProbesConfig, QueueConfig

SCHEDULERS: Final = {"load-aware": "weighted-least-load", "round-robin": "round-robin"}
"""What guides call them, and what they are called here."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable that sets a key of the configuration."""

    name: str
    key: str
    read: Callable[[str], Any]
    """Its value as that key's; ValueError: it cannot be one. None: as if the variable were not set."""
    wins: bool = False
    """Over the file. Else the file goes first."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What one variable says."""

    name: str
    key: str
    value: Any


def settings(environ: Mapping[str, str], is_moot: Callable[[Variable], bool]) -> Iterator[Setting]:
    """What the environment says, but for variables that somebody goes before.

    Raises :class:`ConfigError`, which names the variable.
    """
    for variable in VARIABLES:
        text = environ.get(variable.name, "").strip().strip("'\"")
        if not text or is_moot(variable):
            continue
        try:
            value = variable.read(text)
        except ValueError as error:
            why = f"; {error}" if str(error) else ""
            raise ConfigError(f"{variable.name}={text}: cannot be used as {variable.key}{why}") from None
        if value is not None:
            yield Setting(variable.name, variable.key, value)


def _number(struct: type[msgspec.Struct], name: str, text: str) -> Any:
    """As the schema has it; 0 leaves a number that may be left out to Ollama."""
    field = next(field for field in msgspec.structs.fields(struct) if field.name == name)
    if text == "0" and field.default is None:
        return None
    try:
        return msgspec.convert(text, field.type, strict=False)
    except msgspec.ValidationError:
        raise ValueError("unset it, or mend it") from None


def _origins(text: str) -> tuple[str, ...]:
    origins = [part.strip() for part in text.split(",") if part.strip()]
    wanted = next(field for field in msgspec.structs.fields(Config) if field.name == "origins").type
    try:
        found: tuple[str, ...] = msgspec.convert(origins, wanted)
    except msgspec.ValidationError:
        raise ValueError("expected origins with commas between, for instance https://chat.example,app://*") from None
    return found


def _scheduler(text: str) -> PolicyConfig:
    name = SCHEDULERS.get(text.lower())
    if name is None:
        raise ValueError(f"there is no such scheduler; known: {', '.join(SCHEDULERS)} (or set policy in a file)")
    return PolicyConfig(name=name)


def _interval(text: str) -> ProbesConfig:
    if not text.isdecimal() or not 50 <= int(text) <= 3_600_000:
        raise ValueError("expected whole milliseconds from 50 to 3600000, for instance 500")
    return ProbesConfig(gpu_interval_s=int(text) / 1000, ollama_interval_s=int(text) / 1000)


_ollama = partial(partial, _number, OllamaConfig)

VARIABLES: Final = (
    Variable("CORRAL_LISTEN", "listen", parse_address, wins=True),
    Variable("CORRAL_ADMIN_LISTEN", "admin_listen", parse_address, wins=True),
    Variable("OLLAMA_HOST", "listen", parse_ollama_host),
    Variable("OLLAMA_ORIGINS", "origins", _origins),
    Variable("OLLAMA_MAX_QUEUE", "queue.max_requests", partial(_number, QueueConfig, "max_requests")),
    Variable("OLLAMA_MODELS", "ollama.models", Path),
    Variable("OLLAMA_NUM_PARALLEL", "ollama.parallel", _ollama("parallel")),
    Variable("OLLAMA_MAX_LOADED_MODELS", "ollama.max_loaded", _ollama("max_loaded")),
    Variable("OLLAMA_CONTEXT_LENGTH", "ollama.context_length", _ollama("context_length")),
    Variable("OLLAMA_KEEP_ALIVE", "ollama.keep_alive", _ollama("keep_alive")),
    Variable("OLLAMA_SCHEDULER", "policy", _scheduler),
    Variable("OLLAMA_SCHEDULER_INTERVAL", "probes", _interval),
)
"""Of two that set one key the earlier wins."""
