"""The commands by name. A command's module is imported when it runs, so that ``corral --help`` is quick."""

from __future__ import annotations

import importlib
from difflib import get_close_matches
from typing import Final, NamedTuple

import click

from corral import __version__
from corral.gateway.cli.options import debug_option


class Entry(NamedTuple):
    """Where a command lives, and its line in ``corral --help``."""

    place: str
    """``module:object``."""
    summary: str


COMMANDS: Final = {
    "serve": Entry("corral.gateway.cli.serve:serve", "Serve: one Ollama address for all the GPUs of this machine."),
    "demo": Entry("corral.gateway.cli.demo:demo", "Try it without a GPU: a gateway in front of emulated replicas."),
    "up": Entry("corral.gateway.cli.up:up", "Do what fits this machine: serve, or else the demo."),
    "check-config": Entry(
        "corral.gateway.cli.check:check_config", "Check a configuration file and show what it means."
    ),
    "plan": Entry("corral.gateway.cli.plan:plan", "Show the Ollamas Corral would start here, and why."),
    "doctor": Entry("corral.gateway.cli.doctor:doctor", "Check this machine: GPUs, drivers, Ollama, store, limits."),
    "status": Entry("corral.gateway.cli.operate:status", "Show the replicas and the queue of a running gateway."),
    "explain": Entry("corral.gateway.cli.explain:explain", "Show why the last requests went where they went."),
    "drain": Entry("corral.gateway.cli.operate:drain", "Send no new requests to one replica."),
    "resume": Entry("corral.gateway.cli.operate:resume", "Send requests to a drained replica again."),
    "restart": Entry("corral.gateway.cli.operate:restart", "Restart the Ollama of a replica, or of all in turn."),
    "stop": Entry("corral.gateway.cli.operate:stop", "End the Ollama of a replica: its GPU is free until `start`."),
    "start": Entry("corral.gateway.cli.operate:start", "Start the Ollama of a replica that was stopped or given up."),
    "models": Entry("corral.gateway.cli.models:models", "Show, pull, remove and place models; clear out the stores."),
    "emulate": Entry("corral.emulator.command:emulate", "Run one emulated Ollama (no GPU, invented text)."),
}


class CommandTable(click.Group):
    """A group whose commands are imported only when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, name = entry.place.partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        if not any(param.name == "debug" for param in command.params):
            debug_option(command)  # the emulator knows nothing of the gateway's command line
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            nearest = get_close_matches(args[0].lower(), COMMANDS, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(COMMANDS)}"
            raise click.UsageError(f"no command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


@click.group(cls=CommandTable, invoke_without_command=True)
@click.version_option(__version__, prog_name="corral", message="%(prog)s %(version)s")
@debug_option
@click.pass_context
def corral(ctx: click.Context) -> None:
    """Corral: one Ollama endpoint for all the GPUs you own.

    It runs one Ollama per GPU, listens where Ollama would, and sends each request to the replica that can take it.
    Clients change nothing: Ollama's own API, and its OpenAI and Anthropic routes, pass as they are.

    \b
    Use all GPUs of this machine:  corral serve
    See beforehand what it starts: corral plan
    See what it is doing:          corral status
    Try it without a GPU:          corral demo

    `corral COMMAND --help` says more about each command.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
