"""``corral policy``: which policies there are, what they do and can be told, and the beginning of one's own."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from random import Random
from typing import Any, Final

import click

from corral.errors import OperatorError
from corral.gateway.cli.completion import complete_policy
from corral.gateway.cli.options import debug_option, json_option, no_garbage
from corral.gateway.cli.policy_template import class_name, policy_file, policy_yaml
from corral.gateway.config.policy_docs import PolicyDoc, options_of, policy_docs
from corral.gateway.config.policy_promises import broken_promises
from corral.gateway.config.problems import nearest_of
from corral.policies.catalogue import ENTRY_POINTS, make_policy

SIM: Final = "corral.laboratory.sim.command:sim"
"""Nothing of the gateway needs the laboratory, so it is named and not imported."""


class _Policies(click.Group):
    """With a command that lives in the laboratory."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands, "sim"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "sim":
            return super().get_command(ctx, cmd_name)
        module, _, name = SIM.partition(":")
        with no_garbage():
            command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Policies)
@debug_option
def policy() -> None:
    """List and show the policies, which decide where each request goes; begin one of your own, check it, and see what
    it would do.

    \b
    Examples:
      corral policy list
      corral policy show weighted-least-load
      corral policy new my-policy
      corral policy sim access.log --policy prefer-loaded
    """


@policy.command("list", short_help="List the policies, each with its rule.")
@json_option
@debug_option
def list_policies(as_json: bool) -> int:
    """List Corral's own policies, each with its rule, and those of installed packages.

    \b
    Examples:
      corral policy list
      corral policy list --json
    """
    docs, installed = policy_docs(), sorted({point.name for point in entry_points(group=ENTRY_POINTS)})
    if as_json:
        page = {"schema": 1, "policies": [_doc_json(doc) for doc in docs], "installed": installed}
        click.echo(json.dumps(page, indent=2))
        return 0
    click.echo("\n".join([*(f"{doc.name}\n{_wrapped(doc.rule)}" for doc in docs), *_installed(installed)]))
    return 0


@policy.command(short_help="Show one policy: its rule, its options, and how to use it.")
@click.argument("name", shell_complete=complete_policy)
@json_option
@debug_option
def show(name: str, as_json: bool) -> int:
    """Show the policy NAME: its rule, its options with their defaults, and the lines that choose it.

    \b
    Examples:
      corral policy show prefer-loaded
    """
    docs = {doc.name: doc for doc in policy_docs()}
    if name not in docs:
        raise OperatorError(f"there is no policy {name!r}{nearest_of(name, docs)} known policies: {', '.join(docs)}")
    click.echo(json.dumps(_doc_json(docs[name]), indent=2) if as_json else policy_text(docs[name]))
    return 0


@policy.command(short_help="Write a file to begin a policy of your own with.")
@click.argument("name")
@click.option("--output", metavar="FILE", type=click.Path(path_type=Path), help="[default: NAME.py here]")
@debug_option
def new(name: str, output: Path | None) -> int:
    """Write a commented Python file that begins a policy called NAME, and show how to use it.

    \b
    Examples:
      corral policy new small-first
    """
    try:
        made = class_name(name)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="NAME") from None
    path = output or Path(f"{name.replace('-', '_')}.py")
    try:
        with path.open("x") as file:
            file.write(policy_file(made))
    except FileExistsError:
        raise OperatorError(f"{path} is there already, and is left as it is; name another with --output") from None
    except OSError as error:
        raise OperatorError(f"{path}: cannot be written: {error.strerror or error}") from error
    click.echo(f"{path} was written. To use it, have the configuration beside it say:\n\n{policy_yaml(made, path)}")
    click.echo(f"To see whether it keeps what a policy promises: corral policy check {path} {made}")
    return 0


@policy.command(short_help="Check that a policy of your own keeps what a policy promises.")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.argument("name", metavar="CLASS")
@click.option(
    "--option", "-o", "given", metavar="KEY=VALUE", multiple=True, help="An option of the policy, as in YAML."
)
@debug_option
def check(path: Path, name: str, given: tuple[str, ...]) -> int:
    """Let the policy CLASS of FILE decide a thousand made-up requests, and say which promises it breaks.

    It runs the code of FILE, as `corral serve` would.

    \b
    Exit code 0: it keeps them all. 1: it breaks some. 78: it cannot be made.

    \b
    Examples:
      corral policy check small_first.py SmallFirst -o max_bytes=4000
    """
    made = make_policy(name, path, dict(map(_option, given)))
    broken = broken_promises(made, Random(0))
    if broken:
        raise OperatorError("\n  ".join([f"{name} of {path} breaks what a policy promises:", *broken]))
    click.echo(f"{name} of {path} keeps what a policy promises")
    own = options_of(type(made))
    if own:
        click.echo("\n".join(["options:", *_option_lines(own)]))
    return 0


def _option(text: str) -> tuple[str, Any]:
    import yaml

    name, equals, value = text.partition("=")
    if name and equals:
        try:
            return name, yaml.safe_load(value)
        except yaml.YAMLError:
            pass
    raise click.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--option")


def policy_text(doc: PolicyDoc) -> str:
    lines = [doc.name, _wrapped(doc.rule), "", *(["options:", *_option_lines(doc.options), ""] if doc.options else [])]
    example = "".join(f", {each.name}: {each.default:g}" for each in doc.options[:1] if isinstance(each.default, float))
    return "\n".join([*lines, "in the configuration:", f"  policy: {{name: {doc.name}{example}}}"])


def _option_lines(options: Iterable[Any]) -> list[str]:
    options = list(options)
    width = max(len(each.name) for each in options)
    lines = []
    for each in options:
        default = "must be given" if each.is_required else f"default {_plain(each.default)}"
        lines.append(f"  {each.name:<{width}}  {each.kind}, {default}. {each.meaning}".rstrip())
    return lines


def _plain(value: object) -> str:
    """As a file has it."""
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, default=str)


def _installed(names: Iterable[str]) -> list[str]:
    return [f"of installed packages: {', '.join(names)}"] if names else []


def _wrapped(text: str) -> str:
    return click.wrap_text(text, 100, "  ", "  ")


def _doc_json(doc: PolicyDoc) -> dict[str, Any]:
    options = [
        {"name": each.name, "kind": each.kind, "default": each.default, "meaning": each.meaning} for each in doc.options
    ]
    return {"name": doc.name, "rule": doc.rule, "options": options}
