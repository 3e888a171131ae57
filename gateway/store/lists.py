"""The lists of models of the stores' leaders, read when something has changed and told to all that share the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import aiohttp

from corral.gateway.serve.poller import Poller
from corral.model import Replica
from corral.probes.ollama import Miss, OllamaProbe, TagsEntry

READ_S: Final = 5.0
_REFRESH_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Page:
    """One list, with the gateway's own names in it."""

    began_s: float
    entries: tuple[TagsEntry, ...]

    def find(self, model: str) -> TagsEntry | None:
        """``model`` is normalised."""
        return next((entry for entry in self.entries if entry.model.name == model), None)


class Lists:
    """Reads and tells."""

    def __init__(self, poller: Poller, session: aiohttp.ClientSession, clock: Callable[[], float]) -> None:
        self._poller = poller
        self._session = session
        self._clock = clock

    async def read(self, replica: Replica) -> Page | None:
        """None: it could not be read."""
        began_s = self._clock()
        page = await OllamaProbe(self._session, replica).tags(READ_S)
        return None if isinstance(page, Miss) else Page(began_s, page)

    async def tell(self, replica: Replica, page: Page | None) -> None:
        """The page was read since the store was changed; None: have all replicas asked."""
        if page is None:
            await self._poller.refresh(tags=True, ps=False, deadline_s=_REFRESH_S)
        else:
            self._poller.adopt_tags(replica.id, page.entries, page.began_s)
