"""Builds the policy a configuration names."""

from __future__ import annotations

from pathlib import Path

from corral.errors import ConfigError
from corral.gateway.config.schema import Config
from corral.model import Policy
from corral.policies.catalogue import make_policy


def build_policy(config: Config, path: Path | None) -> Policy:
    """The policy of ``config``. Raises :class:`ConfigError`, which names the file ``path`` where there is one."""
    try:
        return make_policy(config.policy.name, config.policy.path, config.policy.options)
    except ConfigError as error:
        if path is None or not str(error).startswith("policy"):
            raise
        raise ConfigError(f"{path}: {error}") from error
