"""A process with nothing but a supervisor, to be killed: ``STATE_DIR FIRST_PORT ID[,NAME=VALUE…] …``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.gateway.run.stage import plan, stage


async def main(state_dir: str, first_port: str, *words: str) -> None:
    plans = []
    for word in words:
        id, *pairs = word.split(",")
        plans.append(plan(id, **dict(pair.split("=", 1) for pair in pairs)))
    async with stage(Path(state_dir), *plans, first_port=int(first_port)) as on:
        await on.running(*(one.id for one in plans))
        sys.stdout.write("running\n")
        sys.stdout.flush()
        await asyncio.sleep(300)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
