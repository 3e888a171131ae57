"""Reads the GPUs again and again, on threads of its own: a driver may take its time, or never return.

Each call to a driver is made on a thread while the event loop waits for it under a deadline. A call that is late is
left alone on its thread, its GPU is *hung* until the call returns, and the other GPUs are read on another thread
meanwhile: so one GPU costs one thread at most, whatever its driver does.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from queue import SimpleQueue
from typing import Any, Final

from corral.model import GpuFault, GpuMiss, GpuSurvey, GpuVendor, GpuXid
from corral.probes.amd import AmdSource
from corral.probes.gpu import GpuFeed, GpuReadError, GpuSource
from corral.probes.nvml import NvmlSource

log = logging.getLogger(__name__)

SURVEY_S: Final = 10.0
"""A driver without persistence mode takes seconds to wake up its GPUs."""
DEADLINE_S: Final = 1.0
"""For one GPU; the slowest known call takes some tens of milliseconds."""
CLOSE_S: Final = 0.5

Answer = tuple[Any, float]
"""What a call returned, and the seconds it took."""


def sources(nvml_library: str | None) -> tuple[GpuSource, ...]:
    """Every kind of GPU that can be read. ``nvml_library``: NVIDIA's library, where the system does not find it."""
    return (NvmlSource(nvml_library), AmdSource())


class GpuReader:
    """Feeds one reading of each GPU every interval. All methods are for the event loop."""

    def __init__(
        self,
        sources: Sequence[GpuSource],
        feed: GpuFeed,
        clock: Callable[[], float],
        interval_s: float,
        *,
        deadline_s: float = DEADLINE_S,
        survey_s: float = SURVEY_S,
    ) -> None:
        self.survey = GpuSurvey()
        self._sources = sources
        self._feed = feed
        self._clock = clock
        self._interval_s = interval_s
        self._deadline_s = deadline_s
        self._survey_s = survey_s
        self._source_of: dict[str, GpuSource] = {}
        self._stuck: dict[object, asyncio.Future[Answer]] = {}
        """Calls that were left alone: by GPU uuid, or by source for those that concern none."""
        self._hand: _Hand | None = None
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._troubles: dict[str, str] = {}

    async def start(self) -> GpuSurvey:
        """Find the GPUs and begin to read them. Always returns: a driver that hangs is a problem of the survey."""
        await self._look()
        if not self.survey.gpus:
            log.info("no_gpu")
        return self.survey

    async def look_again(self) -> GpuSurvey:
        """Find the GPUs that have come since. One that is not found now stays known: it may only be lost."""
        await self._look()
        return self.survey

    async def _look(self) -> None:
        surveys = [await self._survey(source) for source in self._sources]
        before, self.survey = self.survey, grown(self.survey, merged(surveys))
        for problem in self.survey.problems:
            if problem not in before.problems:
                log.warning('gpu_problem what="%s"', problem)
        if len(self.survey.gpus) > len(before.gpus):
            log.info('gpus found=%d names="%s"', len(self.survey.gpus), _names(self.survey))
        if self.survey.gpus and self._task is None:
            self._task = asyncio.create_task(self._run(), name="GPU reader")
        elif self._task is None:
            self._dismiss()

    async def _survey(self, source: GpuSource) -> GpuSurvey:
        found = await self._call((source, "survey"), source.survey, self._survey_s)
        result = _hung(source) if found is None else found[0]
        survey = _failed(source, result) if isinstance(result, Exception) else result
        self._source_of |= dict.fromkeys((gpu.uuid for gpu in survey.gpus), source)
        return survey

    def set_interval(self, interval_s: float) -> None:
        """Read in this rhythm from now on."""
        if interval_s != self._interval_s:
            self._interval_s = interval_s
            self._changed.set()

    async def close(self) -> None:
        """Read no more. Returns soon, also while a driver's call hangs."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for source in self._sources:
            if source in self._source_of.values() and not self._stuck:
                await self._call(source, source.close, CLOSE_S)
        self._dismiss()

    # -- rounds

    async def _run(self) -> None:
        while True:
            due_s = self._clock() + self._interval_s
            self._changed.clear()
            try:
                await self._round()
                self._changes("reader", "")
            except Exception:  # the rhythm must go on, or every GPU would look stale for ever
                if self._changes("reader", "crashed"):
                    log.exception("gpu_reader_failed")
            try:
                async with asyncio.timeout(max(0.0, due_s - self._clock())):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _round(self) -> None:
        took_s = 0.0
        for uuid, source in list(self._source_of.items()):
            took_s += await self._read(uuid, source)
        for source in {id(source): source for source in self._source_of.values()}.values():
            took_s += await self._collect(source)
        self._feed.gpus_read(took_s)

    async def _read(self, uuid: str, source: GpuSource) -> float:
        """Read one GPU and tell the feed; the seconds it took."""
        at_s = self._clock()
        answer = await self._call(uuid, lambda: source.read(uuid, at_s), self._deadline_s)
        if answer is None:
            self._missed(GpuMiss(uuid, at_s, GpuFault.HUNG, "its driver does not return"))
            return 0.0
        result, seconds = answer
        if isinstance(result, GpuReadError):
            self._missed(GpuMiss(uuid, at_s, result.fault, result.reason))
        elif isinstance(result, Exception):
            self._missed(GpuMiss(uuid, at_s, GpuFault.FAILED, f"{type(result).__name__}: {result}"))
        else:
            if self._changes(uuid, ""):
                log.info("gpu_back gpu=%s", uuid)
            self._feed.gpu_sampled(result)
        return seconds

    async def _collect(self, source: GpuSource) -> float:
        """Fetch the errors that the driver reported."""
        answer = await self._call(source, source.xids, self._deadline_s)
        if answer is None or isinstance(answer[0], Exception):
            return 0.0
        reported, seconds = answer
        for uuid, code in reported:
            log.warning("gpu_xid gpu=%s code=%d", uuid, code)
            self._feed.gpu_reported(GpuXid(uuid, self._clock(), code))
        return seconds

    def _missed(self, miss: GpuMiss) -> None:
        if self._changes(miss.uuid, miss.fault.value):
            log.warning('gpu_%s gpu=%s reason="%s"', miss.fault.value, miss.uuid, miss.reason)
        self._feed.gpu_missed(miss)

    def _changes(self, what: str, trouble: str) -> bool:
        before = self._troubles.get(what, "")
        self._troubles[what] = trouble
        return before != trouble

    # -- calls

    async def _call(self, key: object, call: Callable[[], Any], deadline_s: float) -> Answer | None:
        """What ``call`` returned (an exception it raised is returned too); None: it is late, or an earlier one still
        is."""
        if key in self._stuck:
            return None
        if self._hand is None:
            self._hand = _Hand()
        future = self._hand.do(call)
        done, _ = await asyncio.wait({future}, timeout=deadline_s)
        if done:
            return future.result()
        self._stuck[key] = future
        future.add_done_callback(lambda _: self._stuck.pop(key, None))
        self._dismiss()
        return None

    def _dismiss(self) -> None:
        """Let the thread end when it has nothing more to do."""
        if self._hand is not None:
            self._hand.leave()
            self._hand = None


class _Hand:
    """A thread that makes one call after the other. The interpreter does not wait for it at its exit."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Answer]] | None] = SimpleQueue()
        threading.Thread(target=self._work, name="GPU reader", daemon=True).start()

    def do(self, call: Callable[[], Any]) -> asyncio.Future[Answer]:
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._jobs.put((call, future))
        return future

    def leave(self) -> None:
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            call, future = job
            began_s = time.perf_counter()
            try:
                result = call()
            except Exception as error:
                result = error
            try:
                self._loop.call_soon_threadsafe(_settle, future, (result, time.perf_counter() - began_s))
            except RuntimeError:  # the loop was closed meanwhile
                return


def _settle(future: asyncio.Future[Answer], answer: Answer) -> None:
    if not future.done():
        future.set_result(answer)


def survey_now(sources: Iterable[GpuSource], deadline_s: float = SURVEY_S) -> GpuSurvey:
    """What all ``sources`` find, without an event loop; one that hangs is a problem of the survey."""
    surveys = []
    for source in sources:
        found: SimpleQueue[GpuSurvey | Exception] = SimpleQueue()
        thread = threading.Thread(target=_survey_into, args=(source, found), name="GPU survey", daemon=True)
        thread.start()
        thread.join(deadline_s)
        result = _hung(source) if found.empty() else found.get()
        surveys.append(_failed(source, result) if isinstance(result, Exception) else result)
    return merged(surveys)


def _survey_into(source: GpuSource, found: SimpleQueue[GpuSurvey | Exception]) -> None:
    try:
        found.put(source.survey())
    except Exception as error:
        found.put(error)


def merged(surveys: Sequence[GpuSurvey]) -> GpuSurvey:
    """Several vendors' surveys as one."""
    return GpuSurvey(
        gpus=tuple(gpu for survey in surveys for gpu in survey.gpus),
        links=tuple(link for survey in surveys for link in survey.links),
        driver_version=next((survey.driver_version for survey in surveys if survey.driver_version), None),
        cuda_version=next((survey.cuda_version for survey in surveys if survey.cuda_version), None),
        problems=tuple(problem for survey in surveys for problem in survey.problems),
    )


def grown(known: GpuSurvey, found: GpuSurvey) -> GpuSurvey:
    """``found``, with the GPUs and links that are known but were not found this time."""
    uuids = {gpu.uuid for gpu in found.gpus}
    pairs = {frozenset((link.a, link.b)) for link in found.links}
    missing = tuple(gpu for gpu in known.gpus if gpu.uuid not in uuids)
    gpus = (*found.gpus, *missing)
    if missing:  # at its place, as each survey lists its own
        gpus = tuple(sorted(gpus, key=lambda gpu: (gpu.vendor is not GpuVendor.NVIDIA, gpu.index)))
    return GpuSurvey(
        gpus=gpus,
        links=(*found.links, *(link for link in known.links if frozenset((link.a, link.b)) not in pairs)),
        driver_version=found.driver_version or known.driver_version,
        cuda_version=found.cuda_version or known.cuda_version,
        problems=found.problems,
    )


def _hung(source: GpuSource) -> GpuSurvey:
    what = f"The {source.vendor.value} driver does not answer: its GPUs are not used. Does nvidia-smi hang, too?"
    return GpuSurvey(problems=(what if source.vendor.value == "nvidia" else what.partition(" Does")[0],))


def _failed(source: GpuSource, error: Exception) -> GpuSurvey:
    return GpuSurvey(problems=(f"The {source.vendor.value} GPUs cannot be listed: {type(error).__name__}: {error}.",))


def _names(survey: GpuSurvey) -> str:
    return ", ".join(gpu.name for gpu in survey.gpus)
