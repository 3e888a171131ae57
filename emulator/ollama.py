"""``python -m corral.emulator.ollama``: an executable that behaves as ``ollama``, on an emulated GPU.

``serve`` reads the environment as the real one does, and has a process for each loaded model as the real one has. The
other commands are requests to the server that ``OLLAMA_HOST`` names, which may as well be a real Ollama or a gateway.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from corral.emulator.environment import Started
    from corral.emulator.runner import Runner

_USAGE = """Large language model runner

Usage:
  ollama [flags]
  ollama [command]

Available Commands:
  serve       Start Ollama
  create      Create a model
  show        Show information for a model
  run         Run a model
  stop        Stop a running model
  pull        Pull a model from a registry
  push        Push a model to a registry
  list        List models
  ps          List running models
  cp          Copy a model
  rm          Remove a model

Flags:
  -h, --help      help for ollama
  -v, --version   Show version information
"""


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """The exit code."""
    match list(arguments):
        case ["--version" | "-v"] | ["version"]:
            _say_version(environment)
            return 0
        case ["serve" | "start"]:
            return _serve(environment)
        case [] | ["--help" | "-h" | "help"]:
            sys.stdout.write(_USAGE)
            return 0
        case [name, *rest]:
            return _command(name, rest, environment)
    return 1


def _command(name: str, rest: Sequence[str], environment: Mapping[str, str]) -> int:
    from corral.emulator.cli.commands import COMMANDS, carry_out

    if name in COMMANDS:
        return carry_out(name, rest, environment)
    what = f"unknown flag: {name}" if name.startswith("-") else f'unknown command "{name}" for "ollama"'
    sys.stderr.write(f"Error: {what}\n")
    return 1


def _say_version(environment: Mapping[str, str]) -> None:
    from corral.emulator.variables import address, version

    own, server = version(environment), _version_of_server(*address(environment))
    if server is None:
        sys.stdout.write("Warning: could not connect to a running Ollama instance\n")
    else:
        sys.stdout.write(f"ollama version is {server}\n")
    if server != own:
        sys.stdout.write(f"Warning: client version is {own}\n")


def _version_of_server(host: str, port: int) -> str | None:
    connection = http.client.HTTPConnection(host, port, timeout=2.0)
    try:
        connection.request("GET", "/api/version")
        return str(json.loads(connection.getresponse().read())["version"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None
    finally:
        connection.close()


def _serve(environment: Mapping[str, str]) -> int:
    import click

    from corral.emulator.environment import started_with
    from corral.errors import OperatorError

    try:
        started = started_with(environment)
        return _run(started)
    except (OperatorError, click.ClickException) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        sys.stderr.write(f"Error: {message}\n")
        return 1


def _run(started: Started) -> int:
    import uvloop

    from corral.emulator.launch import check_places
    from corral.emulator.serving import serve

    settings = started.settings
    check_places(settings)
    _log("routes.go:1931", "server config", store=str(settings.store or ""), parallel=settings.parallel)

    def ready(host: str, port: int) -> None:
        _log("routes.go:1984", f"Listening on {_shown(host, port)} (version {settings.version})")
        _log_gpus(started)

    def loading(runner: Runner, line: list[str]) -> None:
        _log("llama_server.go:452", "starting llama-server", model=runner.job.name, cmd=" ".join(line))

    try:
        uvloop.run(serve(settings, ready, started=loading))
    except OSError as error:
        if error.errno is None:
            raise
        reason = os.strerror(error.errno).lower()
        sys.stderr.write(f"Error: listen tcp {_shown(settings.host, settings.port)}: bind: {reason}\n")
        return 1
    return 0


def _log_gpus(started: Started) -> None:
    source, message = "types.go:42", "inference compute"
    for gpu in started.gpus:
        total = f"{gpu.memory_bytes / (1 << 30):.1f} GiB"
        free = f"{gpu.spec.vram_bytes / (1 << 30):.1f} GiB"
        facts = {"id": gpu.uuid, "library": "CUDA", "description": gpu.description, "total": total, "available": free}
        _log(source, message, **facts)
    if not started.settings.gpu.vram_bytes:
        _log(source, message, id="cpu", library="cpu", description="cpu")


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _log(source: str, message: str, **facts: object) -> None:
    """A line as Go's ``slog`` writes it."""
    stamp = datetime.now().astimezone().isoformat(timespec="milliseconds")
    more = "".join(f" {key}={_quoted(str(value))}" for key, value in facts.items())
    sys.stderr.write(f"time={stamp} level=INFO source={source} msg={_quoted(message)}{more}\n")
    sys.stderr.flush()


def _quoted(text: str) -> str:
    return json.dumps(text) if not text or any(mark in text for mark in ' "=\n') else text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
