"""Builds the policy a configuration names."""

from __future__ import annotations

from pathlib import Path

from corral.errors import ConfigError
from corral.gateway.config.schema import Config, PolicyConfig
from corral.model import Policy
from corral.policies.catalogue import Complaint, PolicyError, make_policy


def build_policy(config: Config, path: Path | None) -> Policy:
    """The policy of ``config``. Raises :class:`ConfigError`, which names the file ``path`` where there is one."""
    try:
        return make_policy(config.policy.name, config.policy.path, config.policy.options)
    except PolicyError as error:
        if path is None:
            raise
        raise ConfigError(f"{path}: {error}") from error


def complaints(policy: PolicyConfig) -> tuple[Complaint, ...]:
    """What keeps this policy from being made; nothing when it can be."""
    try:
        make_policy(policy.name, policy.path, policy.options)
    except PolicyError as error:
        return error.complaints
    return ()
