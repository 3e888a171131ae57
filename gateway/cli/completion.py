"""Completion of the command line by the shell: names of models and replicas come from the gateway that runs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import click
from click.shell_completion import BashComplete, add_completion_class, split_arg_string

from corral.errors import CorralError
from corral.gateway.cli.options import DEFAULT_ADMIN, debug_option

VARIABLE: Final = "_CORRAL_COMPLETE"
"""By which the shell's function asks: ``bash_complete``, ``zsh_complete``, ``fish_complete``."""
SHELLS: Final = ("bash", "zsh", "fish")
TIMEOUT_S: Final = 0.3
"""Nobody waits longer for a word."""


class Bash(BashComplete):
    """bash takes words apart at ``:`` and ``=``. So it is asked for the whole line instead, and gets back what belongs
    behind the last such sign."""

    name: ClassVar[str] = "bash"
    source_template: ClassVar[str] = """\
%(complete_func)s() {
    local type value
    COMPREPLY=()
    while IFS=',' read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(env COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F %(complete_func)s %(prog_name)s 2>/dev/null || complete -F %(complete_func)s %(prog_name)s
"""

    def source(self) -> str:
        return self.source_template % self.source_vars()  # without a look at the version of a bash that is not asking

    def get_completion_args(self) -> tuple[list[str], str]:
        return line_before_cursor(os.environ)

    def format_completion(self, item: click.shell_completion.CompletionItem) -> str:
        _, incomplete = self.get_completion_args()
        return f"{item.type},{behind_break(str(item.value), incomplete, os.environ.get('COMP_WORDBREAKS', ':='))}"


def line_before_cursor(environ: Mapping[str, str]) -> tuple[list[str], str]:
    """The words after the program's name, and the one that the cursor is in."""
    line = os.fsencode(environ.get("COMP_LINE", ""))[: int(environ.get("COMP_POINT", "0"))].decode(errors="replace")
    words = split_arg_string(line)[1:]
    incomplete = words.pop() if words and not line[-1:].isspace() else ""
    return words, incomplete


def behind_break(value: str, incomplete: str, breaks: str) -> str:
    """What bash is to put in place of its own last word, which begins behind the last of ``breaks``."""
    option, equals, part = incomplete.partition("=") if incomplete.startswith("--") else ("", "", incomplete)
    head = f"{option}{equals}" if equals and "=" not in breaks else ""
    signs = [sign for sign in ":=" if sign in breaks]
    cut = max((part.rfind(sign) for sign in signs), default=-1) + 1
    return head + (value[cut:] if value.startswith(part[:cut]) else value)


def answer_shell() -> int:
    """Answer the shell's function that has set :data:`VARIABLE`; whatever goes wrong, there is just no answer."""
    from corral.gateway.cli.table import corral

    add_completion_class(Bash)
    try:
        corral.main([], prog_name="corral", complete_var=VARIABLE, standalone_mode=False)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 1
    except Exception:
        return 1
    return 1  # the shell is not known


@click.command()
@click.argument("shell", type=click.Choice(SHELLS), required=False)
@debug_option
def completion(shell: str | None) -> int:
    """Print what SHELL needs to complete commands, options, and the names of models and replicas.

    Left out, SHELL is the one that the variable SHELL names. Names come from the gateway that runs; where none answers
    within 0.3 s there are none.

    \b
    Examples:
      eval "$(corral completion bash)"        in ~/.bashrc
      eval "$(corral completion zsh)"         in ~/.zshrc, after compinit
      corral completion fish > ~/.config/fish/completions/corral.fish
    """
    from corral.gateway.cli.table import corral

    shell = shell or os.path.basename(os.environ.get("SHELL", ""))
    if shell not in SHELLS:
        known = ", ".join(SHELLS)
        raise click.UsageError(f"which shell? known: {known}", click.get_current_context())
    add_completion_class(Bash)
    made = click.shell_completion.get_completion_class(shell)
    assert made is not None
    click.echo(made(corral, {}, "corral", VARIABLE).source(), nl=False)
    return 0


# -- names


def complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of models that the gateway has."""
    page = _page(ctx, "/models")
    names = [model.get("name") for model in page.get("models", ()) if model.get("digest") is not None]
    return _matching(names, incomplete)


def complete_replica(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of the gateway's replicas."""
    return _matching([replica.get("id") for replica in _page(ctx, "/snapshot").get("replicas", ())], incomplete)


def complete_policy(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of Corral's policies."""
    from corral.policies import POLICIES

    return _matching(list(POLICIES), incomplete)


def complete_page(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The first word of a page of the manual."""
    from corral.gateway.cli.table import COMMANDS

    begun = ctx.params.get(param.name or "") or ()
    return [] if begun else _matching([*COMMANDS, "corral.yaml"], incomplete)


def _page(ctx: click.Context, path: str) -> dict[str, Any]:
    from corral.gateway.cli.admin_client import ask

    try:
        return ask(ctx.params.get("admin") or DEFAULT_ADMIN, "GET", path, timeout_s=TIMEOUT_S)
    except (CorralError, OSError, ValueError):
        return {}


_WORD: Final = re.compile(r"[^\s,\\'\"$`;&|<>()*?!]+\Z")
"""What a shell takes as it is, whatever a client has called its model."""


def _matching(names: list[Any], incomplete: str) -> list[str]:
    return [name for name in names if isinstance(name, str) and name.startswith(incomplete) and _WORD.match(name)]
