"""The commands by name. A command's module is imported when it runs, so that ``corral --help`` is quick."""

from __future__ import annotations

import importlib
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from corral import __version__
from corral.gateway.cli.options import debug_option, no_garbage

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


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
    "config": Entry("corral.gateway.cli.config:config", "Show the configuration in effect; its JSON Schema."),
    "policy": Entry("corral.gateway.cli.policy:policy", "List, show, begin and try out policies."),
    "plan": Entry("corral.gateway.cli.plan:plan", "Show the Ollamas Corral would start here, and why."),
    "doctor": Entry("corral.gateway.cli.doctor:doctor", "Check this machine: GPUs, drivers, Ollama, store, limits."),
    "status": Entry("corral.gateway.cli.operate:status", "Show the replicas and the queue of a running gateway."),
    "explain": Entry("corral.gateway.cli.explain:explain", "Show why the last requests went where they went."),
    "requests": Entry("corral.gateway.cli.requests:requests", "Show the last requests, with what took how long."),
    "top": Entry("corral.gateway.cli.top.command:top", "Watch GPUs, replicas, queue and requests in the terminal."),
    "logs": Entry("corral.gateway.cli.logs:logs", "Show the log of the gateway, or of the Ollama of one replica."),
    "bench": Entry("corral.gateway.cli.bench.command:bench", "Measure how fast an address answers, beside one Ollama."),
    "info": Entry("corral.gateway.cli.info:info", "Show versions, paths, ports and variables, to paste into a report."),
    "reload": Entry("corral.gateway.cli.reload:reload", "Have a running gateway read its configuration again."),
    "drain": Entry("corral.gateway.cli.operate:drain", "Send no new requests to one replica."),
    "resume": Entry("corral.gateway.cli.operate:resume", "Send requests to a drained replica again."),
    "restart": Entry("corral.gateway.cli.operate:restart", "Restart the Ollama of a replica, or of all in turn."),
    "stop": Entry("corral.gateway.cli.operate:stop", "End the Ollama of a replica: its GPU is free until `start`."),
    "start": Entry("corral.gateway.cli.operate:start", "Start the Ollama of a replica that was stopped or given up."),
    "models": Entry(
        "corral.gateway.cli.models:models", "Show, pull, load, unload and remove models; clear out the stores."
    ),
    "init": Entry("corral.gateway.cli.init:init", "Write a first configuration, with comments."),
    "connect": Entry("corral.gateway.cli.launch:connect", "Show or write what a client needs to talk to Corral."),
    "launch": Entry("corral.gateway.cli.launch:launch", "Run a client so that it talks to Corral."),
    "completion": Entry(
        "corral.gateway.cli.completion:completion", "Print what a shell needs to complete commands and names."
    ),
    "man": Entry("corral.gateway.cli.man:man", "Show a page of the manual."),
    "emulate": Entry("corral.emulator.command:emulate", "Run one emulated Ollama (no GPU, invented text)."),
}


SECTIONS: Final = {
    "Serve": ("serve", "up", "demo", "init", "plan", "check-config", "config", "policy"),
    "See": ("status", "top", "requests", "explain", "logs", "doctor", "info"),
    "Act": ("models", "reload", "drain", "resume", "restart", "stop", "start"),
    "Use": ("connect", "launch", "completion", "man"),
}
"""Of the help. What is in none stands at its end."""
OTHER_NAMES: Final = {
    "undrain": "resume",
    "validate": "check-config",
    "list": "models",
    "ls": "models",
    "ps": "models place",
    "pull": "models pull",
    "rm": "models rm",
    "run": "launch ollama -- run",
}
"""What people type who know other programs, and what it is here."""


class CommandTable(click.Group):
    """A group whose commands are imported only when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, name = entry.place.partition(":")
        with no_garbage():
            command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        if not any(param.name == "debug" for param in command.params):
            debug_option(command)  # the emulator knows nothing of the gateway's command line
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names come from the table: a shell does not wait until all of Corral is imported."""
        from click.shell_completion import CompletionItem

        names = [CompletionItem(name, help=entry.summary) for name, entry in COMMANDS.items()]
        found = [item for item in names if str(item.value).startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            known = OTHER_NAMES.get(args[0].lower())
            nearest = [known] if known else get_close_matches(args[0].lower(), COMMANDS, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(COMMANDS)}"
            raise click.UsageError(f"no command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, COMMANDS))
        listed = {name for names in SECTIONS.values() for name in names}
        more = {"More": tuple(name for name in COMMANDS if name not in listed)}
        for title, names in (SECTIONS | more).items():
            if names:
                with formatter.section(title):
                    formatter.write_dl([(name.ljust(width), COMMANDS[name].summary) for name in names])


@click.group(cls=CommandTable, invoke_without_command=True)
@click.version_option(__version__, prog_name="corral", message="%(prog)s %(version)s")
@debug_option
@click.pass_context
def corral(ctx: click.Context) -> int | None:
    """Corral: one Ollama endpoint for all the GPUs you own.

    It runs one Ollama per GPU, listens where Ollama would, and sends each request to the replica that can take it.
    Clients change nothing: Ollama's own API, and its OpenAI and Anthropic routes, pass as they are.

    \b
    Do what fits this machine:     corral
    Use all GPUs of this machine:  corral serve
    See beforehand what it starts: corral plan
    See what it is doing:          corral status
    Try it without a GPU:          corral demo

    `corral COMMAND --help` says more about each command.
    """
    if ctx.invoked_subcommand is not None:
        return None
    click.echo("`corral` alone does what `corral up` does; `corral --help` shows all commands.\n")
    from corral.gateway.cli.up import up

    return int(ctx.invoke(up))
