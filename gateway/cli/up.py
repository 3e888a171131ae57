"""``corral up``: what a fresh clone does when somebody only wants it to run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import click

from corral.gateway.cli.options import debug_option
from corral.gateway.cli.serve import serve

CONFIG_NAME = "corral.yaml"
OLLAMA = ("127.0.0.1", 11434)
GPU_DEVICES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd")


@dataclass(frozen=True, slots=True)
class Machine:
    """What was found here that a gateway could stand in front of."""

    ollama_version: str | None
    """Of the Ollama that answers on Ollama's own port; None: none answers."""
    ollama_binary: str | None
    gpu: str | None
    """The device file that shows it."""


@click.command()
@debug_option
@click.pass_context
def up(ctx: click.Context) -> int:
    """Do what fits this machine; `make run` calls it.

    \b
    1. $CORRAL_CONFIG or ./corral.yaml exists: serve it.
    2. An Ollama or a GPU is here: print a configuration to copy.
    3. Neither: start the demo with emulated replicas.
    """
    path = config_file(os.environ, Path())
    if path is not None:
        click.echo(f"serving {path}")
        return int(ctx.invoke(serve, config_path=path, log_level="info"))
    machine = look_around(GPU_DEVICES)
    if machine != Machine(None, None, None):
        click.echo(advice(machine))
        return 0
    from corral.gateway.cli.demo import demo

    click.echo("Neither an Ollama nor a GPU was found here, and there is no corral.yaml: starting the demo.\n")
    return int(ctx.invoke(demo, listen=None, admin_listen=None, speed=1.0, count=3, log_level="warning"))


def config_file(environ: os._Environ[str] | dict[str, str], folder: Path) -> Path | None:
    """The configuration to serve. One named in the environment is taken even when it is missing, to say so."""
    named = environ.get("CORRAL_CONFIG")
    if named:
        return Path(named)
    path = folder / CONFIG_NAME
    return path if path.exists() else None


def look_around(devices: Iterable[str]) -> Machine:
    from corral.gateway.serve.listening import ollama_version

    return Machine(
        ollama_version=ollama_version(*OLLAMA),
        ollama_binary=shutil.which("ollama"),
        gpu=next((device for device in devices if Path(device).exists()), None),
    )


def advice(machine: Machine) -> str:
    """What was found, and a configuration to copy."""
    return "\n".join([*_found(machine), "", *_steps(machine)])


def _found(machine: Machine) -> list[str]:
    lines = []
    if machine.ollama_version:
        lines.append(f"An Ollama (version {machine.ollama_version}) answers on 127.0.0.1:11434.")
    elif machine.ollama_binary:
        lines.append(f"Ollama is installed ({machine.ollama_binary}), but none answers on 127.0.0.1:11434.")
    else:
        lines.append(f"A GPU is here ({machine.gpu}), but no Ollama: https://ollama.com/download says how to get it.")
    return [*lines, "Corral does not start Ollamas itself; it goes in front of the ones that run."]


def _steps(machine: Machine) -> list[str]:
    port = 11434 if machine.ollama_version else 21001
    start = [] if machine.ollama_version else ["Start an Ollama for Corral:", "", *_START, ""]
    listen = "127.0.0.1:11430" if machine.ollama_version else "127.0.0.1:11434"
    return [
        *start,
        f"Save this as {CONFIG_NAME} here and run the same command again:",
        "",
        f"listen: {listen}{_LISTEN_NOTE if machine.ollama_version else ''}",
        "replicas:",
        f'  - {{id: a, url: "http://127.0.0.1:{port}"}}',
        '  # - {id: b, url: "http://127.0.0.1:21002"}   # one line per Ollama, one Ollama per GPU:',
        "  #   CUDA_VISIBLE_DEVICES=1 OLLAMA_HOST=127.0.0.1:21002 ollama serve",
        "",
        "Without touching any of that, `corral demo` shows Corral with emulated replicas.",
    ]


_START = ["  OLLAMA_HOST=127.0.0.1:21001 ollama serve"]
_LISTEN_NOTE = "   # clients connect here; for 11434 itself, move Ollama away with OLLAMA_HOST"
