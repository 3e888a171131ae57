"""``corral plan``: what would Corral start on this machine, and why?"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import msgspec

from corral.errors import OperatorError
from corral.gateway.cli.messages import client_url
from corral.gateway.cli.options import config_option, debug_option, json_option
from corral.gateway.config import Config, naming
from corral.gateway.config.sources import Sources
from corral.gateway.layout.plan import Facts
from corral.model import GpuSample
from corral.probes.gpu import NVML_LIBRARY

MAX_FACTS_BYTES = 64 << 20


@click.command()
@config_option
@click.option(
    "--facts",
    "facts_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Plan for the machine whose `corral plan --json` was saved there, instead of this one.",
)
@json_option
@debug_option
def plan(config_path: Path | None, facts_path: Path | None, as_json: bool) -> int:
    """Show the GPUs, their links, and the Ollamas Corral would start on them, with the reason for each.

    Nothing is started and nothing is changed. `corral serve` decides by the same code.

    \b
    Examples:
      corral plan
      corral plan --config corral.yaml
      corral plan --json > box.json
      corral plan --facts box.json --config try.yaml
    """
    from corral.gateway.layout.choose import make_plan
    from corral.gateway.layout.render import plan_json, plan_text

    config = Sources(config_path, os.environ).settle().config
    facts = facts_here(config) if facts_path is None else read_facts(facts_path)
    with naming(config_path):
        made = make_plan(config, facts)
    if facts_path is None:
        made = replace(made, advice=(*made.advice, *_advice_of_running(config, made.advice)))
    click.echo(json.dumps(plan_json(made, facts), indent=2) if as_json else plan_text(made, facts))
    return 0


def _advice_of_running(config: Config, known: Sequence[str]) -> list[str]:
    """What a gateway that runs with this configuration has seen of models too big for their GPU; none runs: nothing."""
    from corral.gateway.cli.admin_client import ask

    admin = client_url(f"http://{config.admin_listen}")
    try:
        advice = ask(admin, "GET", "/snapshot").get("advice")
    except OperatorError:
        return []
    return [f"{text} (seen by the gateway that runs)" for text in advice or () if text not in known]


def facts_here(config: Config) -> Facts:
    """What a layout depends on, of this machine. It may take seconds."""
    from corral.gateway.doctor.drivers import look
    from corral.gateway.doctor.running import gpu_users, own_pids
    from corral.gateway.layout.facts import gather
    from corral.gateway.layout.free import free_bytes

    drivers = look(os.environ.get(NVML_LIBRARY))
    samples = [reading for reading in drivers.read() if isinstance(reading, GpuSample)]
    own = own_pids(gpu_users(Path("/"), samples) or ())
    return replace(gather(config, drivers.survey, os.environ), free_bytes=free_bytes(samples, own))


def read_facts(path: Path) -> Facts:
    """The ``facts`` of a page that ``corral plan --json`` printed. Raises :class:`OperatorError`."""
    try:
        if path.stat().st_size > MAX_FACTS_BYTES:
            raise OperatorError(f"{path}: is larger than {MAX_FACTS_BYTES} bytes; this cannot be a plan")
        return msgspec.json.decode(path.read_bytes(), type=_Page).facts
    except OSError as error:
        raise OperatorError(f"{path}: cannot be read: {error.strerror or error}") from error
    except msgspec.MsgspecError as error:
        raise OperatorError(f"{path}: is not what `corral plan --json` prints: {error}") from error


class _Page(msgspec.Struct):
    facts: Facts
