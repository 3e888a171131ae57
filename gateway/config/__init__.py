"""The configuration: what may stand in ``corral.yaml``, and how it is read."""

from corral.gateway.config.diff import NEEDS_RESTART, diff_config
from corral.gateway.config.load import load_config, naming, parse_config
from corral.gateway.config.policy import build_policy
from corral.gateway.config.schema import (
    Address,
    Config,
    LimitsConfig,
    PolicyConfig,
    ProbesConfig,
    QueueConfig,
    ReplicaConfig,
    ReplicaUrl,
    TimeoutsConfig,
)

__all__ = [
    "NEEDS_RESTART",
    "Address",
    "Config",
    "LimitsConfig",
    "PolicyConfig",
    "ProbesConfig",
    "QueueConfig",
    "ReplicaConfig",
    "ReplicaUrl",
    "TimeoutsConfig",
    "build_policy",
    "diff_config",
    "load_config",
    "naming",
    "parse_config",
]
