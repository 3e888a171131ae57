"""``serve --watch``: the configuration is read again when its file, or that of its policy, was changed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from corral.gateway.config.sources import Settled, Stamp, stamp_of
from corral.gateway.reloading import Outcome

PERIOD_S: Final = 1.0


async def watch(
    settled: Callable[[], Settled],
    reload: Callable[[], Awaitable[Outcome]],
    is_over: Callable[[], bool],
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Look once a second, until the gateway is to stop.

    Files are looked at rather than events of the kernel: so it does not matter whether an editor writes, renames or
    swaps a link, and network file systems count, too. One that is still being written, or not there for the moment,
    is waited for: it is read when it looked the same twice. One that was refused is read again when it, or the policy
    that it names, was changed.
    """
    seen: Stamp = settled().stamp
    refused: Stamp = ()
    named: tuple[Path, ...] = ()
    while True:
        await sleep(PERIOD_S)
        if is_over():
            return
        now = await asyncio.to_thread(stamp_of, (*settled().files, *named))
        stable, seen = now == seen, now
        if stable and None not in now and now not in (settled().stamp, refused):
            outcome = await reload()
            found: tuple[Path, ...] = () if outcome.policy_path is None else (outcome.policy_path,)
            if found != named:
                named = found
                now = seen = await asyncio.to_thread(stamp_of, (*settled().files, *named))
            refused = () if outcome.used else now
