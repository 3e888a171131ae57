"""The life of an emulator: from its first socket to the end of its last process."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from corral.emulator.app import App
from corral.emulator.gpufile import GpuFiles
from corral.emulator.runnerprocess import Log, RunnerProcesses
from corral.emulator.settings import Settings


async def serve(
    settings: Settings,
    ready: Callable[[str, int], None],
    until: asyncio.Event | None = None,
    started: Log | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT (or ``until``); ``ready`` is told the address once it is bound, ``started`` each
    runner process."""
    loop = asyncio.get_running_loop()
    stop = until or asyncio.Event()
    app = App(settings)
    processes = RunnerProcesses(app.rig, started) if settings.runner_process else None
    files = GpuFiles(settings, app.rig, processes) if settings.gpu_files else None
    server = await loop.create_server(app.connection, settings.host, settings.port, backlog=1024)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    host, port = server.sockets[0].getsockname()[:2]
    if files is not None:
        app.keep(loop.create_task(files.keep_writing()))
    ready(host, port)
    await stop.wait()
    server.close()
    app.close()
    if processes is not None:
        processes.end_all()
    if files is not None:
        files.leave()
