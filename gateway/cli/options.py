"""What all commands share: the session of one run, ``--debug``, and addresses on the command line."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click

CONFIG_NAME = "corral.yaml"

F = TypeVar("F", bound=Callable[..., object])

DEFAULT_ADMIN = "http://127.0.0.1:11435"


@dataclass(slots=True)
class Session:
    """What one run of the command line was asked for, wherever on the line it stood."""

    debug: bool = False


@contextmanager
def no_garbage() -> Iterator[None]:
    """While modules are imported: nothing of them is garbage, and looking for it takes a tenth of the time."""
    was_looked_for = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_looked_for:
            gc.enable()


def debug_option(command: F) -> F:
    """``--debug``, before or after the command's name alike."""

    def remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        session = ctx.find_object(Session)
        if session is not None and value:
            session.debug = True

    return click.option(
        "--debug",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=remember,
        help="Show tracebacks and log in detail.",
    )(command)


def is_debug() -> bool:
    session = click.get_current_context().find_object(Session)
    return session is not None and session.debug


def admin_option(command: F) -> F:
    return click.option(
        "--admin",
        metavar="URL",
        envvar="CORRAL_ADMIN",
        default=DEFAULT_ADMIN,
        show_default=True,
        help="The admin address of the gateway (admin_listen in its configuration; or set CORRAL_ADMIN).",
    )(command)


def config_option(command: F) -> F:
    """``--config FILE``; the command gets the file to use, None where there is none."""

    def chosen(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
        return value or config_file(os.environ, Path())

    return click.option(
        "--config",
        "config_path",
        metavar="FILE",
        type=click.Path(path_type=Path),
        callback=chosen,
        help="The configuration.  [default: $CORRAL_CONFIG, else ./corral.yaml, else none]",
    )(command)


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs instead of text for people.")(
        command
    )


def config_file(environ: Mapping[str, str], folder: Path) -> Path | None:
    """The configuration to use. One named in the environment is taken even when it is missing, to say so."""
    named = environ.get("CORRAL_CONFIG")
    if named:
        return Path(named)
    path = folder / CONFIG_NAME
    return path if path.exists() else None
