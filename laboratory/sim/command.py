"""``corral policy sim``: what a policy would do, before it is live."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from corral.gateway.cli.completion import complete_policy
from corral.gateway.cli.options import config_option, debug_option, json_option

if TYPE_CHECKING:
    from corral.gateway.config import Config
    from corral.gateway.layout.plan import Facts
    from corral.laboratory.sim.report import Report
    from corral.laboratory.sim.simulate import Asked

_RATE = click.FloatRange(0.001, 1000)


def _a_number(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    if value is not None and math.isnan(value):  # it compares with nothing, so no range keeps it out
        raise click.BadParameter("nan is not a number.", ctx, param)
    return value


@click.command(short_help="Show what a policy would do to these requests, before it is live.")
@click.argument("trace", metavar="[TRACE]", default="poisson", type=click.Path(allow_dash=True))
@config_option
@click.option(
    "--policy",
    metavar="NAME",
    shell_complete=complete_policy,
    help="The policy to try.  [default: the configuration's]",
)
@click.option(
    "--against",
    metavar="NAME",
    multiple=True,
    shell_complete=complete_policy,
    help="What it is compared with.  [default: the one in effect, the default, and round-robin]",
)
@click.option("--load", type=_RATE, callback=_a_number, help="Requests come at so much of what the box can do.")
@click.option("--speed", type=_RATE, callback=_a_number, help="Requests come so many times as fast as they did.")
@click.option("--models", metavar="NAME[=GB],…", default="", help="What a trace without models asks for, or sizes.")
@click.option("--gpu", "gpus", metavar="[ID=]GPU", multiple=True, help="The GPU of one replica, or of all.")
@click.option("--box", "box_name", metavar="NAME", help="A box of the laboratory instead of the configuration's.")
@click.option(
    "--facts",
    "facts_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The GPUs of the machine whose `corral plan --json` was saved there.",
)
@click.option("--requests", type=click.IntRange(2, 1_000_000), default=2000, show_default=True, help="At most so many.")
@click.option("--seeds", type=click.IntRange(1, 100), default=1, show_default=True, help="Runs; medians are shown.")
@click.option("--processes", type=click.IntRange(1, 64), help="Runs side by side.  [default: one for each CPU]")
@json_option
@debug_option
def sim(
    trace: str,
    config_path: Path | None,
    policy: str | None,
    against: Sequence[str],
    load: float | None,
    speed: float | None,
    models: str,
    gpus: Sequence[str],
    box_name: str | None,
    facts_path: Path | None,
    requests: int,
    seeds: int,
    processes: int | None,
    as_json: bool,
) -> int:
    """Play TRACE to the scheduler in virtual time, with emulated GPUs, and show what the policy does beside others.

    TRACE is Corral's own access log (`access_log: {format: json}`), whose requests come as they did; or a public trace
    of Azure, Mooncake or ServeGen; plain or gzip; `-`: standard input. Or it is generated: poisson (if left out),
    bursty, sessions or tenants. These come at 0.7 of what the box can do, unless told otherwise.

    A policy is NAME or FILE.py:CLASS, with options as NAME?option=value&option=value. The code of FILE is run. Rules of
    other balancers are known, too: least-conn, peak-ewma, haproxy-maxconn, ...

    The box is what the configuration says: replicas, weights, slots, models. Their GPUs are those of this machine, or
    of --facts, or as --gpu says; else they are taken for an RTX 4090 made as fast as the replica's weight says.
    Nothing is started, asked or changed.

    \b
    Examples:
      corral policy sim /var/log/corral/access.log --policy prefer-loaded
      corral policy sim access.log.1.gz --policy small_first.py:SmallFirst?max_bytes=4000 --against least-inflight
      corral policy sim bursty --box mixed-8 --models llama3.1:8b,qwen2.5:32b --load 0.9 --seeds 5
    """
    from corral.laboratory.sim import report as reports
    from corral.laboratory.sim.asked import Pace
    from corral.laboratory.sim.simulate import Asked

    if load is not None and speed is not None:
        raise click.UsageError("--load and --speed are two ways to say one thing: give one of them")
    asked = Asked(
        trace,
        policy,
        tuple(against),
        Pace(load, speed),
        tuple(filter(None, models.split(","))),
        tuple(gpus),
        box_name,
        requests,
        seeds,
        processes or os.cpu_count() or 1,
    )
    found = _simulated(asked, config_path, facts_path)
    click.echo(json.dumps(reports.page(found), indent=2)) if as_json else reports.show(found)
    return 0


def _simulated(asked: Asked, config_path: Path | None, facts_path: Path | None) -> Report:
    from corral.gateway.config.sources import Sources
    from corral.laboratory.sim.simulate import simulate

    config = Sources(config_path, os.environ).settle().config

    def facts() -> Facts:
        return _facts(config, facts_path)

    try:
        return simulate(asked, config, facts, lambda done, total: _told(f"{done} of {total} runs"))
    finally:
        _told("")


def _facts(config: Config, path: Path | None) -> Facts:
    from corral.gateway.cli.plan import facts_here, read_facts

    return facts_here(config) if path is None else read_facts(path)


def _told(text: str) -> None:
    """How far it is, on a terminal only."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{text}", nl=False, err=True)
