"""``corral demo``: the whole of Corral without a GPU."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Final

import click

from corral.gateway.cli.card import Ready
from corral.gateway.cli.demo_load import DemoLoad
from corral.gateway.cli.emulated_gpus import EmulatedGpus, emulated_gpus
from corral.gateway.cli.emulators import EmulatedReplica, Emulators
from corral.gateway.cli.messages import DEMO_IS_EMULATED, GPUS_NOT_SHOWN, client_url, copy_and_try
from corral.gateway.cli.options import debug_option
from corral.gateway.cli.ports import given_address, next_free
from corral.gateway.cli.serving import LOG_LEVELS, serve_config
from corral.gateway.config import Address, Config, ProbesConfig, ReplicaConfig, ReplicaUrl
from corral.gateway.config.sources import Sources

MODELS: Final = ("llama3.1:8b", "qwen2.5:7b", "all-minilm")
GPUS: Final = (("RTX 3060 12GB", 2, 1.0), ("RTX 4090 24GB", 4, 2.8), ("RTX 5090 32GB", 8, 5.0))
"""Name, parallel requests, weight: as their memory bandwidths, 360 : 1008 : 1792 GB/s."""


def _a_number(ctx: click.Context, param: click.Parameter, value: float) -> float:
    if math.isnan(value):  # it compares with nothing, so no range keeps it out
        raise click.BadParameter("nan is not a number.", ctx, param)
    return value


def _a_rate(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    return None if value is None else _a_number(ctx, param, value)


@click.command()
@click.option(
    "--listen",
    metavar="HOST:PORT",
    envvar="CORRAL_LISTEN",
    help="Where clients connect.  [default: 127.0.0.1:11434, or the next free port]",
)
@click.option(
    "--admin-listen",
    metavar="HOST:PORT",
    envvar="CORRAL_ADMIN_LISTEN",
    help="The admin port.  [default: 127.0.0.1:11435, or the next]",
)
@click.option(
    "--speed",
    type=click.FloatRange(0.01, 1000),
    default=1.0,
    show_default=True,
    callback=_a_number,
    help="10: ten times real speed.",
)
@click.option(
    "--replicas", "count", type=click.IntRange(1, 16), default=3, show_default=True, help="How many emulated replicas."
)
@click.option(
    "--load",
    "rate",
    metavar="[RATE]",
    is_flag=False,
    flag_value=2.0,
    type=click.FloatRange(0.01, 1000),
    callback=_a_rate,
    help="Made-up clients, too, that ask RATE times a second (2, if left out): so something moves.",
)
@click.option("--log-level", type=click.Choice(LOG_LEVELS), default="warning", show_default=True)
@debug_option
def demo(
    listen: str | None, admin_listen: str | None, speed: float, count: int, rate: float | None, log_level: str
) -> int:
    """Try Corral without a GPU: a gateway in front of emulated replicas.

    The replicas are emulated: no GPU is used, no model is loaded, the answers are invented text. Everything else is
    real: the gateway, its queue, its policy, its admin port.

    \b
    Examples:
      corral demo
      corral demo --load
      corral demo --speed 5 --load 20
      corral demo --listen 127.0.0.1:8080
    """
    asked = (given_address(listen, "--listen"), given_address(admin_listen, "--admin-listen"))
    emulated = emulated_replicas(count)
    click.echo(DEMO_IS_EMULATED.format(count=count) + "\n")
    with emulated_gpus([replica.gpu for replica in emulated]) as gpus:
        emulated = [replace(replica, gpu_file=file) for replica, file in zip(emulated, gpus.files, strict=True)]
        return _serve(emulated, gpus, speed, asked, rate, log_level)


def _serve(
    emulated: Sequence[EmulatedReplica],
    gpus: EmulatedGpus,
    speed: float,
    asked: tuple[Address | None, Address | None],
    rate: float | None,
    log_level: str,
) -> int:
    def after_card(ready: Ready) -> str:
        if rate is not None:
            load.start(client_url(ready.url))
        return copy_and_try(ready.url, ready.admin_url, MODELS[0], _python(), _corral())

    with Emulators(emulated, MODELS, speed) as emulators, DemoLoad(rate or 0.0, MODELS) as load:
        urls = emulators.urls()
        unseen = gpus.ready()
        if unseen is not None:
            click.echo(GPUS_NOT_SHOWN.format(why=unseen) + "\n")
        client, admin = choose_addresses(*asked)  # as late as can be: a port that is free now may soon be taken
        config = demo_config(client, admin, emulated, urls, gpus_shown=unseen is None)
        return serve_config(
            Sources(None, os.environ, base=config, command="corral demo"),
            log_level=log_level,
            after_card=after_card,
        )


def emulated_replicas(count: int) -> list[EmulatedReplica]:
    """``count`` replicas on unequal GPUs, named after them."""
    replicas = []
    for number, (gpu, parallel, weight) in enumerate(islice(cycle(GPUS), count)):
        name = "-".join(gpu.lower().split()[:2]) + (f"-{number // len(GPUS) + 1}" if number >= len(GPUS) else "")
        replicas.append(EmulatedReplica(id=name, gpu=gpu, parallel=parallel, weight=weight))
    return replicas


def demo_config(
    listen: Address,
    admin: Address,
    emulated: Sequence[EmulatedReplica],
    urls: Sequence[ReplicaUrl],
    *,
    gpus_shown: bool,
) -> Config:
    replicas = tuple(
        ReplicaConfig(
            id=replica.id,
            url=url,
            weight=replica.weight,
            slots=replica.parallel,
            gpus=(str(number),) if gpus_shown else (),
        )
        for number, (replica, url) in enumerate(zip(emulated, urls, strict=True))
    )
    return Config(listen=listen, admin_listen=admin, replicas=replicas, probes=ProbesConfig(gpu_interval_s=0.5))


def choose_addresses(listen: Address | None, admin_listen: Address | None) -> tuple[Address, Address]:
    """The addresses asked for; where none was asked for, Ollama's own or the next free ones, said aloud."""
    client = listen or next_free(11434, set(), "the demo")
    return client, admin_listen or next_free(11435, {client.port}, "its admin port")


def _python() -> str:
    """A Python that has the ``ollama`` package, as a person would type it."""
    return _typed(Path(sys.executable)) if find_spec("ollama") else "pip install ollama && python3"


def _corral() -> str:
    """This command, as a person would type it."""
    beside = Path(sys.executable).with_name("corral")
    return _typed(beside) if beside.exists() else "corral"


def _typed(path: Path) -> str:
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
