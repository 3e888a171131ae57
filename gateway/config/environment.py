"""Settings that come from the environment, for people who followed guides that name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from corral.errors import ConfigError
from corral.gateway.config.owned import OllamaConfig
from corral.gateway.config.schema import Config, PolicyConfig, ProbesConfig

SCHEDULER: Final = "OLLAMA_SCHEDULER"
INTERVAL: Final = "OLLAMA_SCHEDULER_INTERVAL"
POLICIES: Final = {"load-aware": "weighted-least-load", "round-robin": "round-robin"}
"""What the guides call them, and what they are called here."""
OLLAMA: Final = (
    ("OLLAMA_NUM_PARALLEL", "parallel", None),
    ("OLLAMA_CONTEXT_LENGTH", "context_length", None),
    ("OLLAMA_KEEP_ALIVE", "keep_alive", OllamaConfig().keep_alive),
)


def with_environment(config: Config, environ: Mapping[str, str]) -> Config:
    """``config`` with what the environment says, where the file leaves it at its default.

    ``OLLAMA_SCHEDULER`` chooses the policy, ``OLLAMA_SCHEDULER_INTERVAL`` (milliseconds) how often GPUs and Ollamas
    are probed. Ollama's own ``OLLAMA_NUM_PARALLEL``, ``OLLAMA_CONTEXT_LENGTH`` and ``OLLAMA_KEEP_ALIVE`` are those of
    the Ollamas that Corral runs. Raises :class:`ConfigError`, which names the variable.
    """
    config = msgspec.structs.replace(config, ollama=_ollama(config.ollama, environ))
    policy, probes = _policy(environ.get(SCHEDULER, "").strip()), _probes(environ.get(INTERVAL, "").strip())
    if policy is not None and config.policy == PolicyConfig():
        config = msgspec.structs.replace(config, policy=policy)
    if probes is not None and config.probes == ProbesConfig():
        config = msgspec.structs.replace(config, probes=probes)
    return config


def _ollama(config: OllamaConfig, environ: Mapping[str, str]) -> OllamaConfig:
    said: dict[str, Any] = {}
    for name, key, default in OLLAMA:
        text = environ.get(name, "").strip().strip("'\"")
        if not text or getattr(config, key) != default or (text == "0" and default is None):
            continue  # 0 leaves the number to Ollama, as not to say it
        wanted = next(field.type for field in msgspec.structs.fields(OllamaConfig) if field.name == key)
        try:
            said[key] = msgspec.convert(text, wanted, strict=False)
        except msgspec.ValidationError:
            raise ConfigError(f"{name}={text}: cannot be used as ollama.{key}; unset it, or mend it") from None
    return msgspec.structs.replace(config, **said)


def _policy(text: str) -> PolicyConfig | None:
    if not text:
        return None
    name = POLICIES.get(text.lower())
    if name is None:
        known = ", ".join(POLICIES)
        raise ConfigError(f"{SCHEDULER}={text}: there is no such scheduler; known: {known} (or set policy in a file)")
    return PolicyConfig(name=name)


def _probes(text: str) -> ProbesConfig | None:
    if not text:
        return None
    if not text.isdecimal() or not 50 <= int(text) <= 3_600_000:
        raise ConfigError(f"{INTERVAL}={text}: expected whole milliseconds from 50 to 3600000, for instance 500")
    seconds = int(text) / 1000
    return ProbesConfig(gpu_interval_s=seconds, ollama_interval_s=seconds)
