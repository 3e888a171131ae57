"""``corral up``: what a fresh clone does when somebody only wants it to run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import click

from corral.gateway.cli.messages import client_url
from corral.gateway.cli.options import CONFIG_NAME, config_file, debug_option
from corral.gateway.cli.ports import next_free
from corral.gateway.cli.serve import serve
from corral.gateway.cli.serving import serve_config
from corral.gateway.config import Config, ReplicaConfig, ReplicaUrl

OLLAMA = ReplicaUrl("127.0.0.1", 11434)
FRONT_PORT, ADMIN_PORT = 11430, 11435
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
    2. An Ollama answers on 127.0.0.1:11434: serve in front of it,
       on 127.0.0.1:11430.
    3. The program `ollama` is here: start one Ollama per GPU and serve
       (without a GPU: one on the CPU).
    4. Only a GPU is here: say what is missing.
    5. None of these: start the demo with emulated replicas.

    \b
    Examples:
      corral up
      CORRAL_CONFIG=/etc/corral.yaml corral up
    """
    path = config_file(os.environ, Path())
    if path is not None:
        click.echo(f"serving {path}")
        return int(ctx.invoke(serve, config_path=path, log_level="info"))
    machine = look_around(GPU_DEVICES, OLLAMA)
    if machine.ollama_version:
        return serve_in_front(machine.ollama_version, OLLAMA, FRONT_PORT, ADMIN_PORT)
    if machine.ollama_binary:
        click.echo(f"Ollama is installed ({machine.ollama_binary}): Corral runs it, as `corral serve` does.\n")
        return int(ctx.invoke(serve, config_path=None, log_level="info"))
    if machine.gpu:
        click.echo(advice(machine.gpu))
        return 0
    from corral.gateway.cli.demo import demo

    click.echo("Neither an Ollama nor a GPU was found here, and there is no corral.yaml: starting the demo.\n")
    return int(ctx.invoke(demo, listen=None, admin_listen=None, speed=1.0, count=3, log_level="warning"))


def serve_in_front(version: str, ollama: ReplicaUrl, front_port: int, admin_port: int) -> int:
    """Serve with the one Ollama that runs here as the only replica."""
    client = next_free(front_port, set(), "Corral")
    admin = next_free(admin_port, {client.port}, "its admin port")
    replica = ReplicaConfig(id="a", url=ollama)
    config = Config(listen=client, admin_listen=admin, replicas=(replica,))
    click.echo(f"An Ollama (version {version}) answers on {ollama.host}:{ollama.port}: Corral goes in front of it.\n")
    return serve_config(
        None, config, log_level="info", after_card=lambda ready: how_to_move(ollama, client_url(ready.url))
    )


def how_to_move(ollama: ReplicaUrl, url: str) -> str:
    """What was done, and the steps from there to Ollama's own port."""
    return f"""\
Nothing of that Ollama was changed: who asks {url} comes through Corral,
who asks http://{ollama.host}:{ollama.port} still reaches the Ollama itself.

To have Corral on {ollama.port}, so that no client needs to change, and one Ollama on every GPU:
  1. Ctrl-C here, and stop that Ollama (as a service: sudo systemctl disable --now ollama).
  2. Run the same command again: Corral starts Ollamas of its own; `corral plan` shows which.

To keep it running, on another port and with Corral in front of it:
  1. Ctrl-C here, and restart it with OLLAMA_HOST=127.0.0.1:21001 (as a service: Environment=OLLAMA_HOST=…).
  2. Save this as {CONFIG_NAME} here, one line per Ollama, and run the same command again:

listen: {ollama.host}:{ollama.port}
replicas:
  - {{id: a, url: "http://127.0.0.1:21001"}}
"""


def look_around(devices: Iterable[str], ollama: ReplicaUrl) -> Machine:
    from corral.gateway.serve.listening import ollama_version

    return Machine(
        ollama_version=ollama_version(ollama.host, ollama.port),
        ollama_binary=shutil.which("ollama"),
        gpu=next((device for device in devices if Path(device).exists()), None),
    )


def advice(gpu: str) -> str:
    """A GPU without the program: what to get, and what can be tried meanwhile."""
    return f"""\
A GPU is here ({gpu}), but no program `ollama`: https://ollama.com/download says how to get it.
Then run the same command again: Corral starts one Ollama per GPU by itself.

An `ollama` that is not in PATH is named in {CONFIG_NAME}:

ollama: {{binary: /opt/ollama/bin/ollama}}

Without any of that, `corral demo` shows Corral with emulated replicas."""
