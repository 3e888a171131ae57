"""From the options of ``corral emulate`` to a running emulator."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvloop

from corral.emulator.ask import Rejected, duration_s
from corral.emulator.catalog import gpu_named, model_given
from corral.emulator.faults import fault_given
from corral.emulator.runner import FOREVER_S
from corral.emulator.serving import serve
from corral.emulator.settings import Settings
from corral.errors import OperatorError


def launch(settings: Settings, *, until_stdin_closes: bool) -> None:
    """Serve until told to stop. OperatorError where the machine does not allow it."""
    check_places(settings)
    uvloop.run(_main(settings, until_stdin_closes=until_stdin_closes))


def settings_from(options: Mapping[str, Any]) -> Settings:
    host, port = _address(options["listen"])
    return Settings(
        id=options["identity"] or str(port or os.getpid()),
        gpu=gpu_named(options["gpu"]),
        models=tuple(model_given(text) for text in options["models"] or _models_of(options["gguf"])),
        host=host,
        port=port,
        version=_version(options["ollama_version"]),
        parallel=options["parallel"],
        speed=options["speed"],
        max_loaded=options["max_loaded"],
        max_queue=options["max_queue"],
        keep_alive_s=_keep_alive(options["keep_alive"]),
        context_length=options["context_length"],
        fixed_tok_s=options["rate"],
        load_s=options["load_seconds"],
        stall_ps=options["stall_ps"],
        store=_path(options["store"]),
        noprune=options["noprune"],
        registry=_path(options["registry"]),
        pull_s=options["pull_seconds"],
        gpu_files=tuple(Path(text) for text in options["gpu_files"]),
        runner_process=options["runner_process"],
        gguf=_gguf(options["engine"], options["gguf"]),
        threads=options["threads"],
        account=options["account"],
        no_cloud=options["no_cloud"],
        seed=options["seed"],
        faults=tuple(fault_given(text) for text in options["faults"]),
    )


async def _main(settings: Settings, *, until_stdin_closes: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    if until_stdin_closes:
        loop.add_reader(sys.stdin.fileno(), lambda: _read_stdin(loop, stop))
    try:
        await serve(settings, _announce, stop)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
            raise
        raise OperatorError(f"--listen {settings.host}:{settings.port}: {os.strerror(error.errno)}") from None


def check_places(settings: Settings) -> None:
    """Fail at the start, not at the first write."""
    try:
        if settings.store is not None:
            settings.store.mkdir(parents=True, exist_ok=True)
            _try_writing(settings.store / f".{os.getpid()}.new")
    except OSError as error:
        raise OperatorError(f"--store {settings.store}: cannot be written: {error.strerror}") from None
    for path in settings.gpu_files:
        _check_gpu_file(path)


def _check_gpu_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        _try_writing(path.with_name(f".{path.name}.{os.getpid()}.new"))
    except OSError as error:
        raise OperatorError(f"--gpu-file {path}: cannot be written: {error.strerror}") from None


def _try_writing(path: Path) -> None:
    path.write_bytes(b"")
    path.unlink()


def _read_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        loop.remove_reader(sys.stdin.fileno())
        stop.set()


def _announce(host: str, port: int) -> None:
    shown = f"[{host}]" if ":" in host else host
    sys.stdout.write(f"listening on http://{shown}:{port}\n")
    sys.stdout.flush()


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise OperatorError(f"--listen {text}: not HOST:PORT; for example 127.0.0.1:21001, or 127.0.0.1:0")
    return host.strip("[]") or "127.0.0.1", int(port)


def _version(text: str) -> str:
    plain = text.removeprefix("v")
    if not all(part.isdigit() for part in plain.partition("-")[0].split(".")):
        raise OperatorError(f"--ollama-version {text}: not a version; for example 0.32.15 or 0.24.0")
    return plain


def _keep_alive(text: str) -> float:
    """Where it starts Ollama takes a bare number for seconds; in a request it must be no text then."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = duration_s(text)
        except Rejected:
            seconds = math.nan
    if math.isnan(seconds):
        raise OperatorError(f"--keep-alive {text}: not a duration; for example 5m, 30s, 0 or -1")
    return FOREVER_S if seconds < 0 else seconds


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _models_of(gguf: str | None) -> list[str]:
    """Without ``--model`` a GGUF file names its model."""
    if gguf is None or not Path(gguf).is_file():
        return []
    path = Path(gguf)
    return [f"{path.stem.lower().replace(' ', '-')}={max(path.stat().st_size / 1e9, 0.001):.3f}"]


def _gguf(engine: str, text: str | None) -> Path | None:
    if engine == "emulated":
        if text is not None:
            raise OperatorError("--gguf needs --engine llamacpp")
        return None
    if text is None:
        raise OperatorError("--engine llamacpp needs --gguf FILE, a model in GGUF format")
    if not Path(text).is_file():
        raise OperatorError(f"--gguf {text}: no such file")
    return Path(text)
