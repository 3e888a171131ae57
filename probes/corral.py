"""Reads a replica that is a Corral: as an Ollama, and on its admin port how those below it stand."""

from __future__ import annotations

import re
from typing import Final

import aiohttp
import msgspec
from yarl import URL

from corral.model import LeafLoad, Replica, TreeLoad
from corral.probes.ollama import Miss, OllamaProbe

_decode: Final = msgspec.json.Decoder(TreeLoad).decode
MOST_REPLICAS: Final = 4096
_RUN: Final = re.compile(r"[0-9a-f]{8}")
_ID: Final = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]{1,64}"
_LEAF: Final = re.compile(rf"{_ID}(?:/{_ID}){{0,7}}")


class CorralProbe(OllamaProbe):
    """``asker``: the run of the gateway that asks."""

    def __init__(self, session: aiohttp.ClientSession, replica: Replica, asker: str) -> None:
        super().__init__(session, replica)
        host, port = replica.admin or (replica.host, replica.port)
        self._admin = URL.build(scheme="http", host=host, port=port)
        self._asker = asker

    async def tree(self, deadline_s: float) -> TreeLoad | Miss:
        """``GET /load``: each replica below it, without what who asks has sent there."""
        body = await self._get(f"/load?via={self._asker}", deadline_s, self._admin)
        if isinstance(body, Miss):
            return body
        try:
            tree = _decode(body)
        except (ValueError, RecursionError):
            return Miss.NONSENSE
        return tree if _is_sound(tree) else Miss.NONSENSE


def _is_sound(tree: TreeLoad) -> bool:
    """Whether its names can stand in headers, and its figures be divided by."""
    runs = all(map(_RUN.fullmatch, (tree.gateway, *tree.gateways)))
    ids = {load.id for load in tree.replicas}
    if not runs or len(tree.replicas) > MOST_REPLICAS or len(ids) < len(tree.replicas):
        return False
    return all(map(_LEAF.fullmatch, ids)) and all(map(_is_possible, tree.replicas))


def _is_possible(load: LeafLoad) -> bool:
    slots = (1 if load.slots is None else load.slots, *load.slots_by_model.values(), load.gpus)
    counts = (*load.in_flight.values(), load.wait_s)
    return load.weight > 0 and min(slots) >= 1 and min(counts) >= 0
