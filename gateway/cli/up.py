"""``corral up``: what a fresh clone does when somebody only wants it to run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import click

from corral.gateway.cli.messages import client_url
from corral.gateway.cli.options import debug_option
from corral.gateway.cli.ports import next_free
from corral.gateway.cli.serve import serve
from corral.gateway.cli.serving import serve_config
from corral.gateway.config import Config, ReplicaConfig, ReplicaUrl

CONFIG_NAME = "corral.yaml"
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
    3. Only its program or a GPU is here: print a configuration to copy.
    4. Neither: start the demo with emulated replicas.

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

To have Corral on {ollama.port}, so that no client needs to change:
  1. Ctrl-C here, and restart the Ollama on another port: {_START[0].strip()}
     (as a service: Environment=OLLAMA_HOST=127.0.0.1:21001)
  2. Save this as {CONFIG_NAME} here, one line per Ollama, one Ollama per GPU:

listen: {ollama.host}:{ollama.port}
replicas:
  - {{id: a, url: "http://127.0.0.1:21001"}}

  3. Run the same command again."""


def look_around(devices: Iterable[str], ollama: ReplicaUrl) -> Machine:
    from corral.gateway.serve.listening import ollama_version

    return Machine(
        ollama_version=ollama_version(ollama.host, ollama.port),
        ollama_binary=shutil.which("ollama"),
        gpu=next((device for device in devices if Path(device).exists()), None),
    )


def advice(machine: Machine) -> str:
    """What was found, and a configuration to copy."""
    return "\n".join([*_found(machine), "", *_steps()])


def _found(machine: Machine) -> list[str]:
    if machine.ollama_binary:
        found = f"Ollama is installed ({machine.ollama_binary}), but none answers on 127.0.0.1:11434."
    else:
        found = f"A GPU is here ({machine.gpu}), but no Ollama: https://ollama.com/download says how to get it."
    return [found, "Corral does not start Ollamas itself; it goes in front of the ones that run."]


def _steps() -> list[str]:
    return [
        "Start an Ollama for Corral:",
        "",
        *_START,
        "",
        f"Save this as {CONFIG_NAME} here and run the same command again:",
        "",
        "listen: 127.0.0.1:11434",
        "replicas:",
        '  - {id: a, url: "http://127.0.0.1:21001"}',
        '  # - {id: b, url: "http://127.0.0.1:21002"}   # one line per Ollama, one Ollama per GPU:',
        "  #   CUDA_VISIBLE_DEVICES=1 OLLAMA_HOST=127.0.0.1:21002 ollama serve",
        "",
        "Without touching any of that, `corral demo` shows Corral with emulated replicas.",
    ]


_START = ["  OLLAMA_HOST=127.0.0.1:21001 ollama serve"]
