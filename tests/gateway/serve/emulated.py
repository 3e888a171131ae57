"""An emulated Ollama inside the test's own loop, so that a test sees what is in its memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from corral.emulator.app import App
from corral.emulator.catalog import gpu_named, model_given
from corral.emulator.runner import Runner
from corral.emulator.settings import Settings

CHAT = "llama3.2:1b"
EMBEDDER = "all-minilm:22m"
KEEP_ALIVE_S = 77.0


class EmulatedOllama:
    """One emulator behind a real socket."""

    def __init__(self, app: App, port: int) -> None:
        self.app = app
        self.port = port

    @property
    def runners(self) -> list[Runner]:
        """Models in memory, those that are coming or leaving too."""
        return list(self.app.rig.machine.runners.values())

    @property
    def loaded(self) -> list[str]:
        """What it lists as loaded."""
        return [runner.job.name for runner in self.app.rig.machine.listed(self.app.rig.now())]


@asynccontextmanager
async def emulated_ollama(load_s: float = 0.05) -> AsyncIterator[EmulatedOllama]:
    """One that has :data:`CHAT` and :data:`EMBEDDER` and loads a model in ``load_s``."""
    models = (model_given(CHAT), model_given(EMBEDDER))
    app = App(Settings("a", gpu_named("RTX 4090"), models, load_s=load_s, keep_alive_s=KEEP_ALIVE_S))
    server = await asyncio.get_running_loop().create_server(app.connection, "127.0.0.1", 0)
    try:
        yield EmulatedOllama(app, server.sockets[0].getsockname()[1])
    finally:
        app.close()
        server.close()
