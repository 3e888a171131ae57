"""``corral connect`` and ``corral launch``: other programs made to talk to this gateway."""

from __future__ import annotations

import http.client
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar
from urllib.parse import urlsplit

import click

from corral.errors import OperatorError
from corral.gateway.cli.client_side import address_of
from corral.gateway.cli.clients import CLIENTS, Client, Setting
from corral.gateway.cli.completion import TIMEOUT_S, complete_model
from corral.gateway.cli.messages import EXAMPLE_MODEL, client_url, talks, visible
from corral.gateway.cli.options import DEFAULT_ADMIN, config_file, debug_option, json_option
from corral.gateway.cli.settings_file import Change, carry_out, merged

SCHEMA: Final = 1
DEFAULT_URL: Final = "http://127.0.0.1:11434"
_TIMEOUT_S: Final = 1.0
_MAX_LIST_BYTES: Final = 4 << 20

F = TypeVar("F", bound=Callable[..., object])


def _shared(command: F) -> F:
    """What both commands take."""
    command = click.option(
        "--url",
        metavar="URL",
        callback=_checked_url,
        help="Where clients connect.  [default: where the gateway that runs says, else the configuration]",
    )(command)
    return click.option(
        "--model",
        metavar="NAME",
        shell_complete=complete_model,
        help="The model to name.  [default: one that the gateway has]",
    )(command)


def _checked_url(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    url = (value if "://" in value else f"http://{value}").rstrip("/")
    try:
        parts = urlsplit(url)
        known = parts.scheme == "http" and bool(parts.hostname) and (parts.port or 1) > 0 and not parts.path
    except ValueError:
        known = False
    if not known or any(letter in url for letter in "'\"\\ $`"):
        raise click.BadParameter(f"{value!r} is not an address; write for instance {DEFAULT_URL}", ctx, param)
    return url


@click.command()
@click.argument("client", type=click.Choice(list(CLIENTS)))
@_shared
@click.option("--write", "writes", is_flag=True, help="Write the client's own settings file, after showing the change.")
@click.option("--yes", is_flag=True, help="With --write: do not ask.")
@click.option("--export", "exports", is_flag=True, help='Print only lines for a shell to read: eval "$(…)".')
@json_option
@debug_option
def connect(
    client: str, url: str | None, model: str | None, writes: bool, yes: bool, exports: bool, as_json: bool
) -> int:
    """Show what CLIENT must be told to talk to this gateway: variables, its settings file, a command.

    With --write its settings file is changed: what it says besides stays, and the old file is kept beside it. A file
    that cannot be read as plain JSON or YAML, or with comments that would be lost, is left alone.

    \b
    Examples:
      corral connect claude
      corral connect continue --write
      eval "$(corral connect openai --export)"
      corral connect openwebui --url http://gpu-box:11434
    """
    chosen = CLIENTS[client]
    url, model = _reached(url, model)
    setting = chosen.make(url, model)
    if writes:
        return _write(client, setting, yes=yes)
    if exports:
        click.echo("\n".join(export_lines(setting)))
    else:
        click.echo(_as_json(client, url, model, setting) if as_json else told(client, chosen, setting, url, model))
    return 0


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("client", type=click.Choice(list(CLIENTS)))
@click.argument("words", metavar="[-- ARGS...]", nargs=-1, type=click.UNPROCESSED)
@_shared
@debug_option
def launch(client: str, words: Sequence[str], url: str | None, model: str | None) -> int:
    """Run CLIENT so that it talks to this gateway; nothing of its settings is changed.

    ARGS go to the client's program. For `openai`, `anthropic` and `python` they are the program itself. `corral connect
    CLIENT` shows what is set.

    \b
    Examples:
      corral launch claude
      corral launch claude --model qwen3-coder:30b -- -p "What does this repository do?"
      corral launch ollama -- run llama3.1:8b
      corral launch openai -- python app.py
    """
    chosen = CLIENTS[client]
    url, model = _reached(url, model)
    setting = chosen.make(url, model)
    line = command_line(setting, words)
    if line:
        _become(client, line, setting.env)
    click.echo(told(client, chosen, setting, url, model))
    return 0


def _become(client: str, line: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """This process is the program from now on, so that signals and its exit code are its own."""
    program = shutil.which(line[0])
    if program is None:
        raise OperatorError(f"no program {line[0]!r} was found; `corral connect {client}` says what to set by hand")
    sys.stdout.flush()
    os.execve(program, list(line), {**os.environ, **env})


def command_line(setting: Setting, words: Sequence[str]) -> list[str]:
    """The client's program with its own arguments; ``ollama`` with others takes these instead of its usual ones."""
    if not setting.command:
        return list(words)
    if setting.command[0] == "ollama" and words:
        return ["ollama", *words]
    return [*setting.command, *words]


def _reached(url: str | None, model: str | None) -> tuple[str, str]:
    """The gateway's address and a model of it; what does not answer is said, but is no error."""
    url = url or _running_url() or _configured_url()
    if model is None:
        names = _models(url)
        if names is None:
            click.echo(f"nothing answers on {url} yet: `corral serve` (or --url URL)", err=True)
        model = next(filter(talks, names or ()), EXAMPLE_MODEL)
    if not model or any(not letter.isprintable() or letter in "'\"\\ $`" for letter in model):
        raise OperatorError(f"{visible(model)!r} cannot be the name of a model; name one with --model")
    return url, model


def _running_url() -> str | None:
    """Where the gateway that runs here says that clients connect."""
    try:
        return address_of(os.environ.get("CORRAL_ADMIN") or DEFAULT_ADMIN, TIMEOUT_S)
    except OperatorError:
        return None


def _configured_url() -> str:
    from corral.gateway.config.sources import Sources

    listen = Sources(config_file(os.environ, Path()), os.environ).settle().config.listen
    return client_url(f"http://{listen}")


def _models(url: str) -> list[str] | None:
    """Names of the gateway's models; None: it does not answer."""
    parts = urlsplit(url)
    try:
        with closing(http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=_TIMEOUT_S)) as asked:
            asked.request("GET", "/api/tags")
            page = json.loads(asked.getresponse().read(_MAX_LIST_BYTES))
            return [str(entry["name"]) for entry in page["models"]]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, RecursionError):
        return None


# -- what is said


def export_lines(setting: Setting) -> list[str]:
    return [f"export {name}={shlex.quote(value)}" for name, value in setting.env.items()]


def told(client: str, chosen: Client, setting: Setting, url: str, model: str) -> str:
    """Everything about one client, to read and to copy."""
    parts = [f"{chosen.title} with Corral on {url}, model {model}"]
    if setting.env or setting.command:
        lines = [*export_lines(setting), *([shlex.join(setting.command)] if setting.command else [])]
        parts.append("In a shell:\n\n" + _indented("\n".join(lines)))
    if setting.command:
        parts.append(f"The same at once: corral launch {client}")
    if setting.file is not None:
        how = "" if setting.file.kind == "toml" else f" (`corral connect {client} --write` does it)"
        parts.append(f"For good, in ~/{setting.file.path}{how}:\n\n" + _indented(_file_text(setting)))
    if setting.text:
        parts.append(("Or:" if setting.env else "To copy:") + "\n\n" + _indented(setting.text))
    parts += [f"Note: {note}" for note in setting.notes]
    if chosen.source:
        parts.append(f"As {chosen.source} describes it; not tried with the program itself.")
    return "\n\n".join(parts)


def _file_text(setting: Setting) -> str:
    file = setting.file
    assert file is not None
    if file.by_hand:
        return file.by_hand
    return merged(Path("/nonexistent/settings"), file.kind, file.content).after.rstrip()


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())


def _as_json(client: str, url: str, model: str, setting: Setting) -> str:
    file = setting.file
    shown: Mapping[str, Any] = {
        "schema": SCHEMA,
        "client": client,
        "url": url,
        "model": model,
        "env": dict(setting.env),
        "command": list(setting.command),
        "file": None if file is None else {"path": f"~/{file.path}", "kind": file.kind, "text": _file_text(setting)},
        "text": setting.text or None,
        "notes": list(setting.notes),
    }
    return json.dumps(shown, indent=2)


# -- the client's own file


def _write(client: str, setting: Setting, *, yes: bool) -> int:
    file = setting.file
    if file is None or file.kind == "toml":
        raise OperatorError(
            f"there is no file of {client} that is written here; `corral connect {client}` says what to do"
        )
    try:
        change = merged(Path.home() / file.path, file.kind, file.content)
    except OperatorError as error:
        raise OperatorError(f"{error}\n  add this by hand:\n\n{_indented(_file_text(setting))}") from error
    if change.is_none:
        click.echo(f"{change.path} says so already")
        return 0
    click.echo(change.diff())
    if not yes and not click.confirm(f"\nWrite {change.path}?"):
        click.echo("nothing was written")
        return 1
    _say_written(change)
    return 0


def _say_written(change: Change) -> None:
    kept = carry_out(change)
    click.echo(f"wrote {change.path}" + ("" if kept is None else f"; the old one is {kept}"))
