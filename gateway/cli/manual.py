"""The pages of the manual, made of what ``--help`` says and of the descriptions of the configuration's keys."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Final

import click

from corral import __version__
from corral.gateway.cli.exits import EXITS
from corral.gateway.cli.roff import Block, Item, Literal, Page, Prose, Section
from corral.gateway.cli.table import COMMANDS

CONFIG_PAGE: Final = "corral.yaml"
_EXAMPLES: Final = ("Example:", "Examples:")
_HELP_WIDTH: Final = 78

_LEAST: Final = 'replicas:\n  - {id: a, url: "http://127.0.0.1:21001"}'


def command_pages(command: click.Group) -> Iterator[Page]:
    """One for the program, and one for each of its commands and theirs."""
    ctx = click.Context(command, info_name="corral")
    yield _main_page(command, ctx)
    for name, entry in COMMANDS.items():
        found = command.get_command(ctx, name)
        assert found is not None
        yield from _pages_of(found, click.Context(found, info_name=name, parent=ctx), entry.summary)


def config_page() -> Page:
    """``corral.yaml(5)``."""
    from corral.gateway.config.keys import keys

    items = tuple(Item(key.path, f"{_sentence(key.kind)} Default: {key.default}. {key.meaning}") for key in keys())
    about = (
        Prose(
            "One file in YAML says what Corral serves. Without a file it runs one Ollama on each GPU of this machine. "
            "In front of Ollamas that somebody else runs, the least that it needs is:"
        ),
        Literal(_LEAST),
        Prose(
            "Durations are seconds and sizes are bytes, always plain numbers: the end of a key's name says which. An "
            "unknown key or a value outside its range is an error that names its line; `corral check-config` shows it."
        ),
    )
    sections = (Section("DESCRIPTION", about), Section("KEYS", items), _see_also("corral(1), corral-check-config(1)"))
    return Page(CONFIG_PAGE, 5, __version__, "the configuration of Corral", sections)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _main_page(command: click.Group, ctx: click.Context) -> Page:
    description, examples = _told(command.help or "")
    sections = (
        Section("SYNOPSIS", (Literal(_usage(command, ctx)),)),
        Section("DESCRIPTION", (*description, *examples)),
        Section("COMMANDS", tuple(Item(f"corral {name}", entry.summary) for name, entry in COMMANDS.items())),
        Section("OPTIONS", _options(command, ctx)),
        Section("EXIT STATUS", tuple(Item(str(code), meaning) for code, meaning in EXITS.items())),
        Section(
            "FILES",
            (Item("./corral.yaml", "The configuration where neither `--config` nor `CORRAL_CONFIG` names one."),),
        ),
        Section(
            "ENVIRONMENT",
            (
                Item("CORRAL_CONFIG", "The configuration of the commands that take `--config`."),
                Item("CORRAL_ADMIN", "The admin address of the gateway, of the commands that take `--admin`."),
                Item("NO_COLOR", "Where it is set, nothing is in colour."),
            ),
        ),
        _see_also(", ".join([*(f"corral-{name}(1)" for name in COMMANDS), f"{CONFIG_PAGE}(5)"])),
    )
    return Page("corral", 1, __version__, "one Ollama endpoint for all the GPUs you own", sections)


def _pages_of(command: click.Command, ctx: click.Context, summary: str) -> Iterator[Page]:
    yield _page(command, ctx, summary)
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            found = command.get_command(ctx, name)
            assert found is not None
            yield from _pages_of(found, click.Context(found, info_name=name, parent=ctx), _short(found))


def _page(command: click.Command, ctx: click.Context, summary: str) -> Page:
    description, examples = _told(command.help or "")
    more, more_examples = _told(_epilog(command, ctx))
    parts = [Section("SYNOPSIS", (Literal(_usage(command, ctx)),)), Section("DESCRIPTION", (*description, *more))]
    if isinstance(command, click.Group):
        theirs = ((name, command.get_command(ctx, name)) for name in command.list_commands(ctx))
        items = (Item(f"{ctx.command_path} {name}", _short(found)) for name, found in theirs if found is not None)
        parts.append(Section("COMMANDS", tuple(items)))
    parts.append(Section("OPTIONS", _options(command, ctx)))
    if examples or more_examples:
        parts.append(Section("EXAMPLES", (*examples, *more_examples)))
    name = ctx.command_path.replace(" ", "-")
    parent = ctx.command_path.rpartition(" ")[0].replace(" ", "-")
    parts.append(_see_also(f"{parent}(1), {CONFIG_PAGE}(5)"))
    return Page(name, 1, __version__, summary[:1].lower() + summary[1:].removesuffix("."), tuple(parts))


def _short(command: click.Command) -> str:
    return command.get_short_help_str(200)


def _see_also(text: str) -> Section:
    return Section("SEE ALSO", (Prose(text),))


def _usage(command: click.Command, ctx: click.Context) -> str:
    return " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])


def _options(command: click.Command, ctx: click.Context) -> tuple[Block, ...]:
    records = filter(None, (param.get_help_record(ctx) for param in command.get_params(ctx)))
    return tuple(Item(term, text) for term, text in records)


def _epilog(command: click.Command, ctx: click.Context) -> str:
    """As the command formats it, for it may add to it."""
    formatter = click.HelpFormatter(width=_HELP_WIDTH)
    command.format_epilog(ctx, formatter)
    text = inspect.cleandoc(formatter.getvalue())
    return "\n\n".join(f"\b\n{part}" for part in text.split("\n\n")) if text else ""


def _told(text: str) -> tuple[list[Block], list[Block]]:
    """A help text as description and examples. ``\\b`` begins what stays as it is, as for click."""
    description: list[Block] = []
    examples: list[Block] = []
    for part in filter(None, (part.strip("\n") for part in inspect.cleandoc(text).split("\n\n"))):
        if not part.startswith("\b"):
            description.append(Prose(part))
            continue
        lines = part.removeprefix("\b").strip("\n")
        first, _, rest = lines.partition("\n")
        if first.strip() in _EXAMPLES:
            examples.append(Literal(inspect.cleandoc(f"\n{rest}")))
        else:
            description.append(Literal(lines))
    return description, examples
