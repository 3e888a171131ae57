"""The command line's outermost frame: runs a command and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import click

from corral.errors import OperatorError
from corral.gateway.cli.exits import EXIT_BUG, EXIT_INTERRUPTED
from corral.gateway.cli.options import Session
from corral.gateway.cli.table import corral


def main() -> None:
    if "_CORRAL_COMPLETE" in os.environ:  # a shell asks, not a person
        from corral.gateway.cli.completion import answer_shell

        sys.exit(answer_shell())
    sys.exit(run(sys.argv[1:]))


def run(args: Sequence[str]) -> int:
    """Run one command line; the exit code is the answer. Errors go to stderr, tracebacks only with ``--debug``."""
    session = Session()
    color = False if os.environ.get("NO_COLOR") else None
    try:
        result = corral.main(list(args), prog_name="corral", standalone_mode=False, obj=session, color=color)
        sys.stdout.flush()
    except click.ClickException as error:
        return _failed(session, _usage_error(error), error.exit_code)
    except OperatorError as error:
        return _failed(session, str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter complains at its exit
        return 1
    except Exception as error:
        hint = "this is a bug in Corral; run it again with --debug and report what it says"
        return _failed(session, f"{type(error).__name__}: {error}\n  {hint}", EXIT_BUG)
    return result if isinstance(result, int) else 0


def _failed(session: Session, text: str, exit_code: int) -> int:
    """Say what went wrong; called while its exception is being handled."""
    if session.debug:
        traceback.print_exc()
    color = False if os.environ.get("NO_COLOR") else None
    click.echo(f"{click.style('error:', fg='red', bold=True)} {text}", err=True, color=color)
    return exit_code


def _usage_error(error: click.ClickException) -> str:
    message = error.format_message()
    message = message[:1].lower() + message[1:]
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"{message}\n  see: {error.ctx.command_path} --help"
    return message
