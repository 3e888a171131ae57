"""What a reload changes, in lines for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from corral.gateway.config.masking import masked
from corral.gateway.config.owned import GpusConfig, GroupConfig
from corral.gateway.config.schema import Config, PolicyConfig, ReplicaConfig

NEEDS_RESTART = frozenset({"listen", "admin_listen", "state_dir", "tracing", "measure_links"})
"""Keys whose new value only counts after a restart: sockets and the lock are open, threads run, work is done."""


def diff_config(old: Config, new: Config) -> list[str]:
    """One line per change, none when nothing changed."""
    lines = _replicas(old.replicas, new.replicas)
    for field in msgspec.structs.fields(Config):
        if field.name == "replicas":
            continue
        before, after = getattr(old, field.name), getattr(new, field.name)
        note = " (needs a restart)" if field.name in NEEDS_RESTART else ""
        lines += [line + note for line in _changes(field.name, before, after)]
    return lines


def _replicas(old: tuple[ReplicaConfig, ...], new: tuple[ReplicaConfig, ...]) -> list[str]:
    before, after = {r.id: r for r in old}, {r.id: r for r in new}
    lines = [f"replica {r.id} removed ({r.url})" for r in old if r.id not in after]
    for replica in new:
        if replica.id not in before:
            lines.append(f"replica {replica.id} added ({replica.url})")
        else:
            lines += _changes(f"replica {replica.id}", before[replica.id], replica)
    return lines


def _changes(path: str, old: Any, new: Any) -> list[str]:
    if old == new:
        return []
    if isinstance(old, PolicyConfig):
        return [f"{path}: {_policy(old)} → {_policy(new)}"]
    if isinstance(old, GpusConfig) or isinstance(new, GpusConfig):
        return [f"{path}: {_gpus(old)} → {_gpus(new)}"]
    if path.endswith("env") and isinstance(old, dict):  # environments hold passwords: no values
        names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        return [f"{path}.{name}: {_was(old, new, name)}" for name in names]
    if _holds_structs(old) or _holds_structs(new):
        names = list(dict.fromkeys((*old, *new)))
        return [line for name in names for line in _changes(f"{path}.{name}", old.get(name), new.get(name))]
    if isinstance(old, msgspec.Struct) and new is not None:
        names = [field.name for field in msgspec.structs.fields(type(old))]
        return [line for name in names for line in _changes(f"{path}.{name}", getattr(old, name), getattr(new, name))]
    return [f"{path}: {_text(masked(path, old))} → {_text(masked(path, new))}"]


def _holds_structs(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(each, msgspec.Struct) for each in value.values())


def _policy(policy: PolicyConfig) -> str:
    options = "".join(f", {name}: {masked(name, value)}" for name, value in policy.options.items())
    return f"{policy.name}{f' of {policy.path}' if policy.path else ''}{options}"


def _was(old: Mapping[str, str], new: Mapping[str, str], name: str) -> str:
    if name in old and name in new:
        return "changed"
    return "removed" if name in old else "added"


def _gpus(gpus: GpusConfig | None) -> str:
    if gpus is None or gpus.auto:
        return _text(None) if gpus is None else "auto"
    return _text(tuple(map(_group, gpus.groups)))


def _group(group: GroupConfig) -> str:
    """Its GPUs, and what else is said of them; of its environment only the names."""
    usual = GroupConfig(gpus=group.gpus)
    names = [field.name for field in msgspec.structs.fields(GroupConfig)]
    said = [(name, getattr(group, name)) for name in names if getattr(group, name) != getattr(usual, name)]
    more = [f"{name}: {_text(tuple(value) if isinstance(value, dict) else value)}" for name, value in said]
    return " ".join(("+".join(group.gpus), *(f"({text})" for text in more)))


def _text(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {content}" for name, content in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value)
