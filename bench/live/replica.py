"""`python -m bench.live.replica JSON`: the emulator as one replica of a box, whose GPU need not be one that exists.

The length of an answer is told at the end of the prompt, not by ``num_predict``: whoever stands in between shall know
of it no more than the laboratory tells.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import uvloop

from corral.emulator import generation, inference
from corral.emulator.app import App
from corral.emulator.ask import Ask
from corral.emulator.catalog import ModelSpec
from corral.emulator.generation import Script
from corral.emulator.inference import EmulatedEngine, Engine
from corral.emulator.script import script_for
from corral.emulator.settings import Settings
from corral.laboratory.boxes import BoxSpec, make_box

TOLD_BYTES = 8
"""What the end of a prompt says of its answer: a number of tokens, right-aligned."""
LISTENING = "listening on port "
ROOT = Path(__file__).parents[2]


class LiveError(Exception):
    """A run could not be made."""


class Orders(msgspec.Struct, frozen=True):
    """Which replica to be."""

    box: BoxSpec
    number: int
    speed: float
    tells_own_seconds: bool = False
    """The durations in its answers are not divided by the speed."""


class ToldEngine(EmulatedEngine):
    """Writes as many tokens as the prompt's end says."""

    def script(self, ask: Ask, model: ModelSpec) -> Script:
        told = ask.prompt[-TOLD_BYTES:].strip()
        return script_for(replace(ask, num_predict=int(told)) if told.isdigit() else ask, model)


class FastTime:
    """Stands in for the module ``time`` where the durations of an answer are taken: in the emulated machine's seconds,
    as :mod:`bench.live.gateway` counts them."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self.time, self.time_ns = time.time, time.time_ns

    def monotonic(self) -> float:
        return time.monotonic() * self._speed


class ReplicaApp(App):
    """The emulator, but for who decides how long an answer is."""

    def _engine(self) -> Engine:
        return ToldEngine(self.rig)


def settings_of(orders: Orders) -> Settings:
    box = make_box(orders.box)
    replica = box.replicas[orders.number]
    return Settings(
        id=replica.id,
        gpu=replica.gpu,
        models=box.models,
        parallel=replica.slots,
        max_loaded=replica.max_loaded,
        speed=orders.speed,
        seed=orders.number,
    )


class ReplicaProcess:
    """A replica as a child process, which ends when its standard input does: at the latest with the driver."""

    def __init__(self, orders: Orders) -> None:
        command = [sys.executable, "-m", "bench.live.replica", msgspec.json.encode(orders).decode()]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.port = 0

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith(LISTENING):
            raise LiveError(f"an emulator did not start: {line!r}")
        self.port = int(line.removeprefix(LISTENING))

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


async def serve(orders: Orders) -> None:
    """Until standard input ends."""
    loop, settings = asyncio.get_running_loop(), settings_of(orders)
    if orders.tells_own_seconds:
        for module in (generation, inference):
            setattr(module, "time", FastTime(orders.speed))  # noqa: B010
    app, over = ReplicaApp(settings), asyncio.Event()

    def read_stdin() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            loop.remove_reader(sys.stdin.fileno())
            over.set()

    loop.add_reader(sys.stdin.fileno(), read_stdin)
    gc.freeze()
    gc.disable()  # at this speed a pause of a millisecond is a long one, and nobody lives here for long
    server = await loop.create_server(app.connection, settings.host, 0, backlog=1024)
    print(f"{LISTENING}{server.sockets[0].getsockname()[1]}", flush=True)
    await over.wait()
    server.close()
    app.close()


def main(argv: Sequence[str]) -> None:
    uvloop.run(serve(msgspec.json.decode(argv[0], type=Orders)))


if __name__ == "__main__":
    main(sys.argv[1:])
