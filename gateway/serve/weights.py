"""Finds out which models are made of the same weights, by asking replicas what their models are made of.

Only models of which another one has about the same size are asked for, one at a time, and each version once. Nothing
waits for it: names that are not yet known to be one are two, as they are to whoever does not look.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final

import aiohttp
import msgspec
from yarl import URL

from corral.gateway.carrier import Carrier
from corral.gateway.run.own_requests import in_one_line
from corral.gateway.schedule.aliases import RELOADING, Unknown, Weights
from corral.gateway.serve.poller import Poller
from corral.gateway.wire.fields import signature_of
from corral.gateway.wire.shapes import Options
from corral.model import Replica
from corral.probes.ollama import TagsEntry

log: Final = logging.getLogger("corral.gateway")

ASK_S: Final = 10.0
PAUSE_S: Final = 0.1
"""Between two questions: to answer one an Ollama reads the head of a file."""
AGAIN_S: Final = 15.0
"""After a failure; twice as long after each more."""
LATEST_S: Final = 900.0
MOST_ANSWER: Final = 8 << 20
_SAME_TIME_S: Final = 1e-3
_BLOB: Final = re.compile(r"([A-Z]+) .*sha256[-:]([0-9a-f]{64})\s*")


class _Shown(msgspec.Struct):
    modelfile: str = ""
    parameters: str = ""
    modified_at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


class NotTold(Exception):
    """The replica did not say it, and why."""


@dataclass(frozen=True, slots=True)
class _Again:
    """A question that was not answered."""

    failures: int
    due_s: float


class WeightsReader:
    """Asks for what the scheduler wants to know. To be told when a list of models was read; close it at the end."""

    def __init__(
        self, carrier: Carrier, poller: Poller, session: aiohttp.ClientSession, clock: Callable[[], float]
    ) -> None:
        self._carrier = carrier
        self._poller = poller
        self._session = session
        self._clock = clock
        self._again: dict[str, _Again] = {}
        """By digest; only of those that are wanted."""
        self._task: asyncio.Task[None] | None = None
        self.report_bug: Callable[[str, Exception], None] = lambda where, error: None
        self._closed = False

    def look(self) -> None:
        """See whether there is something to ask, and begin to."""
        wanted = self._carrier.scheduler.unknown_weights
        if not wanted:
            self._again.clear()
        elif self._task is None and not self._closed and self._next() is not None:
            self._task = asyncio.create_task(self._ask_all(), name="weights")
            self._task.add_done_callback(self._done)

    async def close(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self.report_bug("weights", error)

    async def _ask_all(self) -> None:
        while (found := self._next()) is not None:
            unknown, replica = found
            try:
                weights = await self._ask(unknown, replica)
            except NotTold as reason:
                self._put_off(unknown, replica, str(reason))
            else:
                scheduler = self._carrier.scheduler
                self._carrier.apply(scheduler.know_weights(unknown.digest, weights, self._clock()))
            await asyncio.sleep(PAUSE_S)

    def _next(self) -> tuple[Unknown, Replica] | None:
        """What is to be asked now, and the replica that has the least to do of those that can say."""
        scheduler, now_s = self._carrier.scheduler, self._clock()
        wanted = scheduler.unknown_weights
        digests = {unknown.digest for unknown in wanted}
        self._again = {digest: again for digest, again in self._again.items() if digest in digests}
        usable = [replica for replica in scheduler.usable() if not self._poller.is_silent(replica.id)]
        for unknown in wanted:
            again = self._again.get(unknown.digest)
            able = [replica for replica in usable if replica.id in unknown.replicas]
            if able and (again is None or now_s >= again.due_s):
                return unknown, min(able, key=lambda replica: scheduler.inflight_on(replica.id))
        return None

    def _put_off(self, unknown: Unknown, replica: Replica, reason: str) -> None:
        before = self._again.get(unknown.digest)
        failures = 1 if before is None else before.failures + 1
        due_s = self._clock() + min(LATEST_S, AGAIN_S * 2.0 ** min(failures - 1, 16))
        self._again[unknown.digest] = _Again(failures, due_s)
        level = logging.INFO if before is None else logging.DEBUG
        log.log(
            level, 'weights_not_known replica=%s model=%s reason="%s"', replica.id, in_one_line(unknown.name), reason
        )

    async def _ask(self, unknown: Unknown, replica: Replica) -> Weights:
        """Raises :class:`NotTold`, also where the name means another version by now."""
        entry = self._entry(unknown, replica)
        if entry is None:
            raise NotTold("it has another version by now")
        shown = await self._show(entry.spelled, replica)
        at_s = entry.modified_s if shown.modified_at is None else shown.modified_at.timestamp()
        if self._entry(unknown, replica) != entry or abs(at_s - entry.modified_s) > _SAME_TIME_S:
            raise NotTold("it has another version by now")
        return weights_of(shown.modelfile, shown.parameters)

    def _entry(self, unknown: Unknown, replica: Replica) -> TagsEntry | None:
        """The version in question, as the replica lists it."""
        entries = self._poller.pages(replica.id).tags or ()
        wanted = (unknown.name, unknown.digest)
        return next((entry for entry in entries if (entry.model.name, entry.model.digest) == wanted), None)

    async def _show(self, name: str, replica: Replica) -> _Shown:
        """The one seam where the client library's exceptions end."""
        url = URL.build(scheme="http", host=replica.host, port=replica.port, path="/api/show")
        try:
            async with (
                asyncio.timeout(ASK_S),
                self._session.post(url, json={"model": name}, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    raise NotTold(f"status {response.status}")
                return msgspec.json.decode(await _bounded(response.content), type=_Shown)
        except TimeoutError as late:
            raise NotTold(f"no answer within {ASK_S:g} s") from late
        except (aiohttp.ClientError, OSError) as error:
            raise NotTold(type(error).__name__) from error
        except (ValueError, RecursionError) as error:
            raise NotTold("nonsense answer") from error


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    body = bytearray()
    async for piece in content.iter_any():
        body += piece
        if len(body) > MOST_ANSWER:
            raise ValueError("too long")
    return bytes(body)


def weights_of(modelfile: str, parameters: str) -> Weights:
    """What ``/api/show`` says of it.

    A file names all it is made of before anything that somebody else may have written, in which anything may stand.
    """
    blobs: list[str] = []
    for line in modelfile.splitlines():
        found = _BLOB.fullmatch(line)
        if found is not None:
            blobs.append(f"{found[1]} {found[2]}")
        elif line.strip() and not line.startswith("#"):
            break
    options = _options(parameters)
    if options is None or not any(blob.startswith("FROM ") for blob in blobs):
        return Weights(())
    return Weights(tuple(blobs), options)


def _options(parameters: str) -> str | None:
    """The signature; values stand there as Go prints them: ``8192``, ``1.048576e+06``, ``true``. None: unreadable."""
    lines = [line.split(None, 1) for line in parameters.splitlines()]
    try:
        values = {line[0]: msgspec.json.decode(line[1]) for line in lines if line and line[0] in RELOADING}
        return signature_of(msgspec.convert(values, type=Options), None)
    except (ValueError, IndexError, OverflowError):
        return None
