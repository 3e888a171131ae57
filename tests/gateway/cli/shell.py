"""Runs ``corral`` in a real child process, as a person would."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

CORRAL = (sys.executable, "-m", "corral")
LIMIT_S = 30


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    """This process's, without what would change what Corral does or says."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("CORRAL", "OLLAMA", "NO_COLOR", "FORCE_COLOR"))}
    return plain | {"PYTHONWARNINGS": "error"} | more


async def corral(*args: str, cwd: str | os.PathLike[str] | None = None, **env: str) -> Ended:
    """Run one command to its end."""
    child = await asyncio.create_subprocess_exec(
        *CORRAL,
        *args,
        cwd=cwd,
        env=environment(**env),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(child.communicate(), LIMIT_S)
    except TimeoutError:
        child.kill()
        await child.wait()
        raise
    return Ended(child.returncode or 0, out.decode(), err.decode())


class Running:
    """A command that runs until it is told to stop; its two outputs come together, line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[str] = []

    async def until(self, part: str) -> str:
        """The first line from here on that contains ``part``."""
        async with asyncio.timeout(LIMIT_S):
            while line := await self._line():
                if part in line:
                    return line
        raise AssertionError(f"ended without saying {part!r}:\n" + "\n".join(self.said))

    async def ended(self) -> int:
        async with asyncio.timeout(LIMIT_S):
            while await self._line():
                pass
            return await self.process.wait()

    async def _line(self) -> str:
        assert self.process.stdout is not None
        raw = await self.process.stdout.readline()
        if raw:
            self.said.append(raw.decode().rstrip("\n"))
        return raw.decode()


@asynccontextmanager
async def running(*args: str, cwd: str | os.PathLike[str] | None = None, **env: str) -> AsyncIterator[Running]:
    """A command in the background, killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *CORRAL,
        *args,
        cwd=cwd,
        env=environment(**env),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield Running(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
