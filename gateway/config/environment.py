"""Settings that come from the environment, for people who followed guides that name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from corral.errors import ConfigError
from corral.gateway.config.schema import Config, PolicyConfig, ProbesConfig

SCHEDULER: Final = "OLLAMA_SCHEDULER"
INTERVAL: Final = "OLLAMA_SCHEDULER_INTERVAL"
POLICIES: Final = {"load-aware": "weighted-least-load", "round-robin": "round-robin"}
"""What the guides call them, and what they are called here."""


def with_environment(config: Config, environ: Mapping[str, str]) -> Config:
    """``config`` with what the environment says, where the file leaves it at its default.

    ``OLLAMA_SCHEDULER`` chooses the policy, ``OLLAMA_SCHEDULER_INTERVAL`` (milliseconds) how often GPUs and Ollamas
    are probed. Raises :class:`ConfigError`, which names the variable.
    """
    policy, probes = _policy(environ.get(SCHEDULER, "").strip()), _probes(environ.get(INTERVAL, "").strip())
    if policy is not None and config.policy == PolicyConfig():
        config = msgspec.structs.replace(config, policy=policy)
    if probes is not None and config.probes == ProbesConfig():
        config = msgspec.structs.replace(config, probes=probes)
    return config


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
