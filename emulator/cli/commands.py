"""The commands of ``ollama`` that are requests to its server: the same ones in the same order, and the same words."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from corral.emulator.cli import progress
from corral.emulator.cli.arguments import MANY, CommandError, Given, Usage, read
from corral.emulator.cli.client import Client, StatusError
from corral.emulator.cli.modelfile import read_request
from corral.emulator.cli.run import Run, load
from corral.emulator.cli.show import about
from corral.emulator.cli.words import human_bytes, human_time, moment_of, table

_ASPECTS: Final = ("license", "modelfile", "parameters", "system", "template")
_STOP: Final = {"keep_alive": "0s"}


@dataclass(frozen=True, slots=True)
class Command:
    """One of them."""

    act: Callable[[Client, Given], None]
    usage: Usage
    about: str


def carry_out(name: str, words: Sequence[str], environment: Mapping[str, str]) -> int:
    """The exit code."""
    command = COMMANDS[name]
    if "--help" in words or "-h" in words:
        sys.stdout.write(f"{command.about}\n")
        return 0
    try:
        given = read(command.usage, words)
        with closing(Client(environment)) as client:
            client.heartbeat()
            command.act(client, given)
    except StatusError as error:
        if error.status != 401 or not error.signin_url:
            return _failed(str(error))
        sys.stdout.write("You need to be signed in to Ollama to run Cloud models.\n\n")
        sys.stdout.write(f"If your browser did not open, navigate to:\n    {error.signin_url}\n\n")
    except (CommandError, OSError) as error:
        return _failed(str(error))
    return 0


def _failed(message: str) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"Error: {message}\n")
    return 1


def _list(client: Client, given: Given) -> None:
    start = given.arguments[0].lower() if given.arguments else ""
    rows = [
        [model["name"], model["digest"][:12], _size(model), human_time(model["modified_at"])]
        for model in client.get("/api/tags")["models"]
        if model["name"].lower().startswith(start)
    ]
    sys.stdout.write(table(("NAME", "ID", "SIZE", "MODIFIED"), rows))


def _size(model: Mapping[str, Any]) -> str:
    return "-" if model.get("remote_model") else human_bytes(model["size"])


def _ps(client: Client, given: Given) -> None:
    start = given.arguments[0] if given.arguments else ""
    rows = [_running(model) for model in client.get("/api/ps")["models"] if model["name"].startswith(start)]
    sys.stdout.write(table(("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"), rows))


def _running(model: Mapping[str, Any]) -> list[str]:
    start = [model["name"], model["digest"][:12], human_bytes(model["size"])]
    return [*start, _processor(model), str(model["context_length"]), _until(model["expires_at"])]


def _processor(model: Mapping[str, Any]) -> str:
    size, on_gpu = model["size"], model["size_vram"]
    if on_gpu == 0:
        return "100% CPU"
    if on_gpu == size:
        return "100% GPU"
    if on_gpu > size or size == 0:
        return "Unknown"
    on_cpu = int((size - on_gpu) / size * 100 + 0.5)
    return f"{on_cpu}%/{100 - on_cpu}% CPU/GPU"


def _until(stamp: str) -> str:
    return "Stopping..." if moment_of(stamp) < datetime.now(UTC) else human_time(stamp)


def _show(client: Client, given: Given) -> None:
    wanted = [name for name in _ASPECTS if given.is_on(name)]
    if len(wanted) > 1:
        only = "'--license', '--modelfile', '--parameters', '--system', or '--template'"
        raise CommandError(f"only one of {only} can be specified")
    verbose = given.is_on("verbose")
    body = {"model": "", "system": "", "template": "", "verbose": verbose, "options": None, "name": given.arguments[0]}
    found = client.post("/api/show", body)
    if wanted:
        text = found.get(wanted[0], "")
        sys.stdout.write(text if wanted[0] in ("system", "template") else f"{text}\n")
    else:
        sys.stdout.write(about(found, verbose=verbose))


def _run(client: Client, given: Given) -> None:
    Run(client, given.arguments[0], given).start()


def _stop(client: Client, given: Given) -> None:
    try:
        load(client, given.arguments[0], _STOP)
    except CommandError as error:
        if "not found" in str(error):
            raise CommandError(f'couldn\'t find model "{given.arguments[0]}" to stop') from None
        raise


def _remove(client: Client, given: Given) -> None:
    for name in given.arguments:
        try:
            load(client, name, _STOP)
        except CommandError as error:
            if "not found" not in str(error).lower():
                sys.stderr.write(f"Warning: unable to stop model '{name}'\n")
        client.delete("/api/delete", {"model": "", "name": name})
        sys.stdout.write(f"deleted '{name}'\n")
        sys.stdout.flush()


def _copy(client: Client, given: Given) -> None:
    source, destination = given.arguments
    client.post("/api/copy", {"source": source, "destination": destination})
    sys.stdout.write(f"copied '{source}' to '{destination}'\n")


def _pull(client: Client, given: Given) -> None:
    progress.pull(client, given.arguments[0], insecure=given.is_on("insecure"))


def _push(client: Client, given: Given) -> None:
    name = given.arguments[0]
    progress.show(client.stream("/api/push", progress.registry_body(name, insecure=given.is_on("insecure"))))
    sys.stdout.write(f"\nYou can find your model at:\n\n\thttps://ollama.com/{name.removesuffix(':latest')}\n")


def _create(client: Client, given: Given) -> None:
    name, path = given.arguments[0], Path(given.flags.get("file") or "Modelfile")
    if re.fullmatch(r"[\w.:/-]+", name) is None:
        raise CommandError(f"invalid model name: {name}")
    if not path.exists():
        raise CommandError("specified Modelfile wasn't found")
    request = read_request(path.absolute(), name)
    for digest, file in request.uploads.items():
        if not client.has_blob(digest):
            client.put_blob(digest, file)
    if given.flags.get("quantize"):
        request.body["quantize"] = given.flags["quantize"]
    progress.show(client.stream("/api/create", request.body))


_RUN_VALUES: Final = frozenset({"keepalive", "format", "dimensions"})
_RUN_SWITCHES: Final = frozenset({"verbose", "insecure", "nowordwrap", "hidethinking", "truncate", "think"})
_LIST: Final = Command(_list, Usage(0, 1), "List models")

COMMANDS: Final[dict[str, Command]] = {
    "create": Command(
        _create, Usage(1, 1, frozenset({"file", "quantize"}), short={"f": "file", "q": "quantize"}), "Create a model"
    ),
    "show": Command(
        _show,
        Usage(1, 1, switches=frozenset({*_ASPECTS, "verbose"}), short={"v": "verbose"}),
        "Show information for a model",
    ),
    "run": Command(_run, Usage(1, MANY, _RUN_VALUES, _RUN_SWITCHES), "Run a model"),
    "stop": Command(_stop, Usage(1, 1), "Stop a running model"),
    "pull": Command(_pull, Usage(1, 1, switches=frozenset({"insecure"})), "Pull a model from a registry"),
    "push": Command(_push, Usage(1, 1, switches=frozenset({"insecure"})), "Push a model to a registry"),
    "list": _LIST,
    "ls": _LIST,
    "ps": Command(_ps, Usage(0, 1), "List running models"),
    "cp": Command(_copy, Usage(2, 2), "Copy a model"),
    "rm": Command(_remove, Usage(1, MANY), "Remove a model"),
}
