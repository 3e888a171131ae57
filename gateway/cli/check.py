"""``corral check-config``: is a file right, and what would run?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import msgspec

from corral.gateway.cli.options import debug_option, json_option
from corral.gateway.config import Config, load_config
from corral.gateway.config.problems import InvalidConfig
from corral.gateway.config.schema import Address, ReplicaUrl


@click.command("check-config")
@click.argument("config_path", metavar="FILE", type=click.Path(path_type=Path))
@json_option
@debug_option
def check_config(config_path: Path, as_json: bool) -> int:
    """Check FILE without starting anything, and show what would run.

    \b
    Exit code 0: the file can be used. 78: it cannot, and stderr says
    where (file:line:column), what, and what to write instead; with
    --json standard output does, for editors.

    \b
    The least a file needs is one of:
      gpus: auto
      replicas: [{id: a, url: "http://127.0.0.1:21001"}]

    \b
    Examples:
      corral check-config corral.yaml
      corral check-config corral.yaml --json
    """
    try:
        config = load_config(config_path)
    except InvalidConfig as error:
        if not as_json:
            raise
        click.echo(json.dumps(problems_json(error), indent=2))
        return error.exit_code
    click.echo(json.dumps(config_json(config), indent=2) if as_json else _summary(config_path, config))
    return 0


def problems_json(error: InvalidConfig) -> dict[str, Any]:
    """All that is wrong, place by place; lines and columns count from 1, and are null where there is no such place."""
    return {
        "schema": 1,
        "problems": [
            {
                "file": error.source,
                "line": each.line or None,
                "column": each.column or None,
                "key": each.path,
                "message": each.text,
            }
            for each in error.problems
        ],
    }


def config_json(config: Config) -> Any:
    """The whole configuration, defaults written out, as plain data."""
    return msgspec.to_builtins(_plain(config))


def _plain(value: Any) -> Any:
    if isinstance(value, Address | ReplicaUrl | Path):
        return str(value)
    if isinstance(value, msgspec.Struct):
        return {field.name: _plain(getattr(value, field.name)) for field in msgspec.structs.fields(type(value))}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _summary(path: Path, config: Config) -> str:
    policy = config.policy
    options = "".join(f"  {name}={value}" for name, value in policy.options.items())
    lines = [
        f"{path}: can be used",
        f"  listen    {config.listen}",
        f"  admin     {config.admin_listen}",
        f"  policy    {policy.name}{f' of {policy.path}' if policy.path else ''}{options}",
        f"  queue     {config.queue.max_requests} requests, {config.queue.max_wait_s:g} s each",
    ]
    lines += _owned(config)
    if config.discovery is not None:
        lines += [f"  found by  {place}" for place in config.discovery.places]
    width = max((len(replica.id) for replica in config.replicas), default=0)
    for replica in config.replicas:
        slots = "not known yet" if replica.slots is None else replica.slots
        lines.append(f"  replica   {replica.id:<{width}}  {replica.url}  weight {replica.weight:g}  slots {slots}")
    return "\n".join(lines)


def _owned(config: Config) -> list[str]:
    """What Corral runs itself; which GPUs there are, only `corral plan` can say."""
    if not config.owns_replicas:
        return []
    if config.gpus is None or config.gpus.auto:
        large = f", groups for {', '.join(config.large_models)}" if config.large_models else ""
        return [f"  gpus      one Ollama per GPU{large} (corral plan shows which)"]
    names = "  ".join("+".join(group.gpus) for group in config.gpus.groups)
    return [f"  gpus      {names} (corral plan shows what that makes)"]
