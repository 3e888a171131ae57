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
from corral.gateway.config.sources import Sources

OLLAMA = ReplicaUrl("127.0.0.1", 11434)
PORT, FRONT_PORT, ADMIN_PORT = 11434, 11430, 11435
COMMAND = "corral up"
GPU_DEVICES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd")
RUNS_ALREADY = """\
A Corral serves {where} already.

  corral status           shows what it does
  corral connect CLIENT   says how a client uses it"""


@dataclass(frozen=True, slots=True)
class Machine:
    """What was found here that a gateway could stand in front of."""

    ollama_version: str | None
    """Of the Ollama that answers on Ollama's own port; None: none answers."""
    ollama_binary: str | None
    gpu: str | None
    """The device file that shows it."""
    corral: bool = False
    """A Corral answers on Ollama's own port."""


@click.command()
@debug_option
@click.pass_context
def up(ctx: click.Context) -> int:
    """Do what fits this machine; `corral` alone and `make run` do the same.

    \b
    1. $CORRAL_CONFIG or ./corral.yaml exists: serve it.
    2. A Corral answers on 127.0.0.1:11434: say so.
    3. An Ollama answers there: serve in front of it, on 127.0.0.1:11430.
    4. The program `ollama` is here: start one Ollama per GPU and serve
       (without a GPU: one on the CPU).
    5. Only a GPU is here: say what is missing.
    6. None of these: start the demo with emulated replicas.

    Ports that are taken are replaced by the next free ones, and that is said. `corral serve` never does that.

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
    if machine.corral:
        click.echo(RUNS_ALREADY.format(where=f"{OLLAMA.host}:{OLLAMA.port}"))
        return 0
    if machine.ollama_version:
        return serve_in_front(machine.ollama_version, OLLAMA, FRONT_PORT, ADMIN_PORT)
    if machine.ollama_binary:
        click.echo(f"Ollama is installed ({machine.ollama_binary}): Corral runs it, as `corral serve` does.\n")
        return serve_where_free(PORT, ADMIN_PORT)
    if machine.gpu:
        click.echo(advice(machine.gpu))
        return 0
    from corral.gateway.cli.demo import demo

    click.echo("Neither an Ollama nor a GPU was found here, and there is no corral.yaml: starting the demo.\n")
    return int(ctx.invoke(demo, listen=None, admin_listen=None, speed=1.0, count=3, rate=None, log_level="warning"))


def serve_where_free(port: int, admin_port: int) -> int:
    """Serve what this machine has, on these ports or the next free ones, unless the environment names others."""
    said = Sources(None, os.environ).settle()
    flags = {}
    if "listen" not in said.origins:
        flags["listen"] = COMMAND, next_free(port, set(), "Corral")
    if "admin_listen" not in said.origins:
        taken = {flags["listen"][1].port} if flags else {said.config.listen.port}
        flags["admin_listen"] = COMMAND, next_free(admin_port, taken, "its admin port")
    return serve_config(Sources(None, os.environ, flags), log_level="info", after_card=lambda ready: "")


def serve_in_front(version: str, ollama: ReplicaUrl, front_port: int, admin_port: int) -> int:
    """Serve with the one Ollama that runs here as the only replica."""
    client = next_free(front_port, set(), "Corral")
    admin = next_free(admin_port, {client.port}, "its admin port")
    replica = ReplicaConfig(id="a", url=ollama)
    config = Config(listen=client, admin_listen=admin, replicas=(replica,))
    click.echo(f"An Ollama (version {version}) answers on {ollama.host}:{ollama.port}: Corral goes in front of it.\n")
    sources = Sources(None, os.environ, base=config, command=COMMAND)
    return serve_config(sources, log_level="info", after_card=lambda ready: how_to_move(ollama, client_url(ready.url)))


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
    from corral.gateway.serve.listening import who_listens

    who, _, version = who_listens(ollama.host, ollama.port).partition(" ")
    return Machine(
        ollama_version=version if who == "ollama" else None,
        ollama_binary=shutil.which("ollama"),
        gpu=next((device for device in devices if Path(device).exists()), None),
        corral=who == "corral",
    )


def advice(gpu: str) -> str:
    """A GPU without the program: what to get, and what can be tried meanwhile."""
    return f"""\
A GPU is here ({gpu}), but no program `ollama`: https://ollama.com/download says how to get it.
Then run the same command again: Corral starts one Ollama per GPU by itself.

An `ollama` that is not in PATH is named in {CONFIG_NAME}:

ollama: {{binary: /opt/ollama/bin/ollama}}

Without any of that, `corral demo` shows Corral with emulated replicas."""
