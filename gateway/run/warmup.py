"""Loads models and runs short prompts on a replica before it takes requests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

import aiohttp

from corral.gateway.run.own_requests import OwnRequests, Trouble

log = logging.getLogger(__name__)

PROMPT_S: Final = 60.0
"""A short prompt that takes longer does not warm anything."""


async def warm_up(
    session: aiohttp.ClientSession,
    replica_id: str,
    port: int,
    models: Sequence[str],
    seconds: float,
    clock: Callable[[], float],
) -> None:
    """Returns when the replica is warm, or as warm as it gets: a model that cannot be loaded is logged and left out."""
    replica = OwnRequests(session, "127.0.0.1", port)
    talkers = []
    for model in models:
        began_s = clock()
        try:
            talks = await replica.load(model)
        except Trouble as trouble:
            log.warning('warmup_failed replica=%s model=%s error="%s"', replica_id, model, trouble)
            continue
        log.info("warmup_loaded replica=%s model=%s seconds=%.1f", replica_id, model, clock() - began_s)
        if talks:
            talkers.append(model)
    await _talk(replica, replica_id, talkers, clock, clock() + seconds)


async def _talk(
    replica: OwnRequests, replica_id: str, models: Sequence[str], clock: Callable[[], float], until_s: float
) -> None:
    """Short prompts to the models in turn, one after the other."""
    while models and clock() < until_s:
        for model in models:
            left_s = until_s - clock()
            if left_s <= 0:
                return
            try:
                await replica.prompt(model, min(left_s, PROMPT_S))
            except TimeoutError:
                continue
            except Trouble as trouble:
                log.warning('warmup_failed replica=%s model=%s error="%s"', replica_id, model, trouble)
                return
