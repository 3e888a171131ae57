"""``corral init``: a first configuration file, from what this machine shows and what only a person knows."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from corral.errors import OperatorError
from corral.gateway.cli.init_file import EVERYWHERE, LOOPBACK, Answers, file_text
from corral.gateway.cli.options import CONFIG_NAME, debug_option

if TYPE_CHECKING:
    from corral.gateway.layout.plan import Facts

_WHERE: Final = "\nWhere is the program `ollama` (Enter: it will be installed later)"
_CONTEXT: Final = 4096
"""A model that does not fit one GPU with so little is large."""


@dataclass(frozen=True, slots=True)
class Found:
    """What could be seen without asking."""

    gpus: tuple[str, ...] = ()
    program: str | None = None
    """With its version; None: there is no ``ollama``."""
    running: tuple[tuple[str, str], ...] = ()
    """Ollamas that answer on this machine: URL and version."""
    models: int = 0
    large_models: tuple[str, ...] = ()


@click.command()
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    default=CONFIG_NAME,
    show_default=True,
    help="The file to write; `-` prints it instead.",
)
@click.option("--yes", is_flag=True, help="Ask nothing: take what would be the answer to Enter.")
@click.option("--force", is_flag=True, help="Replace FILE if it is there already.")
@debug_option
def init(output: Path, yes: bool, force: bool) -> int:
    """Write a first configuration, with comments. Only what cannot be found out is asked.

    Looked at are the GPUs, the program `ollama`, its models, and the Ollamas that run on this machine. Nothing is
    started or changed.

    \b
    Examples:
      corral init
      corral init --yes --output /etc/corral/corral.yaml
      corral init --yes --output - | less
    """
    if str(output) != "-" and output.exists() and not force:
        raise OperatorError(f"{output}: is there already; --force replaces it, --output FILE writes another one")
    found = look_around()
    for line in seen(found):
        click.echo(line, err=True)
    text = file_text(answered(found, ask=not yes))
    _check(text)
    if str(output) == "-":
        click.echo(text, nl=False)
        return 0
    _write(output, text, force=force)
    click.echo(
        f"wrote {output}\n  look at it:  corral check-config {output}\n  use it:      corral serve --config {output}"
    )
    return 0


def look_around() -> Found:
    """What is on this machine; it takes a second or two."""
    from corral.gateway.cli.plan import facts_here
    from corral.gateway.config import Config
    from corral.gateway.doctor.running import ollama_ports
    from corral.gateway.serve.listening import ollama_version

    facts = facts_here(Config())
    ports = sorted({11434, *ollama_ports(Path("/"))})
    versions = ((port, ollama_version(LOOPBACK, port)) for port in ports)
    program = facts.program
    return Found(
        gpus=tuple(gpu_words(facts)),
        program=None if program is None else f"{program.path} (version {program.version or 'not known'})",
        running=tuple((f"http://{LOOPBACK}:{port}", version) for port, version in versions if version is not None),
        models=len(facts.models),
        large_models=tuple(large_models(facts)),
    )


def gpu_words(facts: Facts) -> Iterable[str]:
    from corral.gateway.layout.estimate import gib
    from corral.gateway.layout.machine import Machine

    machine = Machine.of(facts, 0)
    for gpu in machine.gpus:
        size = "" if gpu.memory_bytes is None else f", {gib(gpu.memory_bytes)}"
        yield f"{machine.label(gpu)}: {gpu.name}{size}"


def large_models(facts: Facts) -> Iterable[str]:
    """Models of the store that fit no GPU alone, where there are several GPUs that hold them together."""
    from corral.gateway.layout.estimate import need_bytes
    from corral.gateway.layout.machine import Machine

    machine = Machine.of(facts, 0)
    rooms = [room for gpu in machine.gpus if not gpu.is_split and (room := machine.room((gpu,))) is not None]
    if len(rooms) < 2:
        return
    for model in facts.models:
        if max(rooms) < need_bytes(model, _CONTEXT, 1, 1) and need_bytes(model, _CONTEXT, 1, len(rooms)) <= sum(rooms):
            yield model.name


def seen(found: Found) -> Iterable[str]:
    """What was found, a line each."""
    yield from (_line(True, gpu) for gpu in found.gpus)
    if not found.gpus:
        yield _line(False, "no GPU")
    yield _line(found.program is not None, f"ollama: {found.program or 'no such program in PATH'}")
    if found.models:
        yield _line(True, f"{found.models} models in the store")
    yield from (_line(True, f"an Ollama (version {version}) runs on {url}") for url, version in found.running)


def _line(is_there: bool, text: str) -> str:
    mark = ("✔" if is_there else "✗") if _is_unicode() else ("+" if is_there else "-")
    return f"{mark} {text}"


def _is_unicode() -> bool:
    return (getattr(sys.stderr, "encoding", None) or "").lower().replace("-", "") == "utf8"


def answered(found: Found, *, ask: bool) -> Answers:
    """The person's answers, or what Enter would answer."""
    answers = Answers(gpus=found.gpus, host=_host(ask))
    urls = _urls(found, ask)
    if urls:
        port = 11434 if all(not url.endswith(":11434") for url in urls) else 11444
        return replace(answers, urls=urls, port=port, admin_port=port + 1)
    return replace(answers, large_models=_large(found, ask), program=_program(found, ask))


def _host(ask: bool) -> str:
    question = "\nShall other machines of the network be able to use it (everybody there could)?"
    return EVERYWHERE if ask and click.confirm(question, default=False, err=True) else LOOPBACK


def _urls(found: Found, ask: bool) -> tuple[str, ...]:
    """Of the Ollamas to stand in front of; empty: Corral is to run its own."""
    running = tuple(url for url, _ in found.running)
    can_run = found.program is not None
    if running:
        names = ", ".join(running)
        question = f"\nStand in front of what runs already ({names})? No: Corral runs one Ollama per GPU itself"
        stays = not can_run or not found.gpus or len(running) >= len(found.gpus)
        if click.confirm(question, default=stays, err=True) if ask else stays:
            return running
        return ()
    if can_run or not ask:
        return ()
    question = "\nThere is no `ollama` here. URLs of Ollamas elsewhere, separated by spaces (Enter: none)"
    return tuple(_checked(word) for word in click.prompt(question, default="", show_default=False, err=True).split())


def _checked(text: str) -> str:
    from corral.gateway.config.addresses import parse_replica_url

    url = text if "://" in text else f"http://{text}"
    try:
        return str(parse_replica_url(url))
    except ValueError as error:
        raise OperatorError(f"{text!r} is not the URL of an Ollama: {error}") from None


def _large(found: Found, ask: bool) -> tuple[str, ...]:
    if not found.large_models or not ask:
        return found.large_models
    names = ", ".join(found.large_models)
    question = f"\nToo big for one GPU: {names}. Shall GPUs be put together for them?"
    return found.large_models if click.confirm(question, default=True, err=True) else ()


def _program(found: Found, ask: bool) -> str | None:
    if found.program is not None or not ask:
        return None
    return click.prompt(_WHERE, default="", show_default=False, err=True) or None


def _check(text: str) -> None:
    """The file would be accepted; that it is not would be a bug."""
    from corral.gateway.config import parse_config

    parse_config(text, CONFIG_NAME)


def _write(path: Path, text: str, *, force: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise OperatorError(f"{path}: is there by now; --force replaces it") from None
    except OSError as error:
        raise OperatorError(f"{path}: cannot be written: {os.strerror(error.errno or 0)}") from error
