"""The reader of GPUs: its rhythm, and that no driver, however it misbehaves, holds up anything but its own GPU."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from corral.emulator.nvml import machines, state
from corral.model import Gpu, GpuFault, GpuMiss, GpuSample, GpuSurvey, GpuVendor, GpuXid
from corral.probes.gpu import GpuReadError, GpuSource
from corral.probes.reader import GpuReader, survey_now
from tests.probes import standin

INTERVAL_S = 0.02
DEADLINE_S = 0.1
WAIT_S = 20.0


class Scripted:
    """A driver that does as the test says."""

    vendor = GpuVendor.AMD

    def __init__(self, *uuids: str) -> None:
        self.uuids = uuids
        self.gates: dict[str, threading.Event] = {}
        """Calls that do not return until their event is set: of a GPU, or by the name of the method."""
        self.errors: dict[str, Exception] = {}
        """As :attr:`gates`."""
        self.reported: list[tuple[str, int]] = []
        self.is_closed = False

    def survey(self) -> GpuSurvey:
        self._do("survey")
        return GpuSurvey(tuple(Gpu(uuid, i, self.vendor, f"GPU {i}", None) for i, uuid in enumerate(self.uuids)))

    def read(self, uuid: str, at_s: float) -> GpuSample:
        self._do(uuid)
        return GpuSample(uuid, at_s, utilisation_ratio=0.5)

    def xids(self) -> tuple[tuple[str, int], ...]:
        self._do("xids")
        reported, self.reported = self.reported, []
        return tuple(reported)

    def close(self) -> None:
        self._do("close")
        self.is_closed = True

    def _do(self, what: str) -> None:
        if what in self.gates:
            self.gates[what].wait()
        if what in self.errors:
            raise self.errors[what]

    def hang(self, *whats: str) -> None:
        self.gates |= {what: threading.Event() for what in whats}

    def release(self) -> None:
        gates, self.gates = self.gates, {}
        for gate in gates.values():
            gate.set()


class Recorded:
    """Keeps what it is fed, and lets a test wait for more."""

    def __init__(self) -> None:
        self.samples: list[GpuSample] = []
        self.misses: list[GpuMiss] = []
        self.xids: list[GpuXid] = []
        self.rounds: list[float] = []
        self._fed = asyncio.Event()

    def gpu_sampled(self, sample: GpuSample) -> None:
        self.samples.append(sample)

    def gpu_missed(self, miss: GpuMiss) -> None:
        self.misses.append(miss)

    def gpu_reported(self, xid: GpuXid) -> None:
        self.xids.append(xid)

    def gpus_read(self, seconds: float) -> None:
        self.rounds.append(seconds)
        self._fed.set()

    def sampled(self, uuid: str) -> int:
        return sum(sample.uuid == uuid for sample in self.samples)

    def missed(self, uuid: str) -> list[GpuFault]:
        return [miss.fault for miss in self.misses if miss.uuid == uuid]

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait for the round after which it is so."""
        async with asyncio.timeout(WAIT_S):
            while not is_so():
                self._fed.clear()
                await self._fed.wait()

    async def more_rounds(self, count: int) -> None:
        wanted = len(self.rounds) + count
        await self.until(lambda: len(self.rounds) >= wanted)


@asynccontextmanager
async def reading(
    *sources: GpuSource, interval_s: float = INTERVAL_S, survey_s: float = WAIT_S
) -> AsyncIterator[tuple[GpuReader, Recorded]]:
    """A reader at work."""
    feed = Recorded()
    reader = GpuReader(sources, feed, time.monotonic, interval_s, deadline_s=DEADLINE_S, survey_s=survey_s)
    try:
        await reader.start()
        yield reader, feed
    finally:
        for source in sources:
            if isinstance(source, Scripted):
                source.release()
        await reader.close()


def readers() -> int:
    """How many threads of readers there are."""
    return sum(thread.name == "GPU reader" for thread in threading.enumerate())


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().split()[0] for record in caplog.records if record.name == "corral.probes.reader"]


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterable[None]:
    """A thread ends soon after its reader was closed, and its driver returned."""
    yield
    until_s = time.monotonic() + WAIT_S
    while readers():
        assert time.monotonic() < until_s
        time.sleep(0.005)


# -- rhythm -----------------------------------------------------------------------------------------------------------


async def test_every_gpu_is_read_once_in_every_interval() -> None:
    async with reading(Scripted("A", "B"), Scripted("C")) as (reader, feed):
        assert [gpu.uuid for gpu in reader.survey.gpus] == ["A", "B", "C"]
        await feed.more_rounds(5)
    assert [sample.uuid for sample in feed.samples[:15]] == ["A", "B", "C"] * 5
    times = [sample.taken_at_s for sample in feed.samples if sample.uuid == "A"]
    assert times[-1] - times[0] > INTERVAL_S * (len(times) - 1) / 2
    assert feed.misses == []
    assert all(0 < seconds < WAIT_S for seconds in feed.rounds)


async def test_a_new_interval_counts_at_once() -> None:
    async with reading(Scripted("A"), interval_s=3600) as (reader, feed):
        await feed.more_rounds(1)
        reader.set_interval(INTERVAL_S)
        await feed.more_rounds(3)


async def test_a_reading_is_as_old_as_its_beginning() -> None:
    source = Scripted("A")
    async with reading(source) as (_, feed):
        await feed.more_rounds(1)
        before_s = time.monotonic()
        await feed.more_rounds(2)
        assert before_s < feed.samples[-1].taken_at_s < time.monotonic()


# -- drivers that hang ------------------------------------------------------------------------------------------------


async def test_a_gpu_that_hangs_makes_only_its_own_samples_stale() -> None:
    source = Scripted("A", "B", "C")
    async with reading(source) as (_, feed):
        await feed.more_rounds(1)
        source.hang("B")
        await feed.until(lambda: len(feed.missed("B")) >= 5)
        known = feed.sampled("B")
        before = feed.sampled("A"), feed.sampled("C")
        await feed.more_rounds(5)
        assert min(feed.sampled("A") - before[0], feed.sampled("C") - before[1]) >= 5
        assert feed.sampled("B") == known
        assert set(feed.missed("B")) == {GpuFault.HUNG}
        assert {miss.uuid for miss in feed.misses} == {"B"}
        source.release()
        await feed.until(lambda: feed.sampled("B") > known)


async def test_a_gpu_that_hangs_holds_one_thread_until_it_returns() -> None:
    source = Scripted("A", "B")
    async with reading(source) as (_, feed):
        source.hang("A")
        await feed.until(lambda: len(feed.missed("A")) >= 10)
        assert readers() == 2
        source.release()
        await feed.until(lambda: readers() == 1)


async def test_when_every_gpu_hangs_each_is_hung_and_the_loop_goes_on() -> None:
    source = Scripted("A", "B", "C", "D")
    async with reading(source) as (_, feed):
        source.hang("A", "B", "C", "D", "xids")
        await feed.until(lambda: all(len(feed.missed(uuid)) >= 3 for uuid in source.uuids))
        assert {miss.fault for miss in feed.misses} == {GpuFault.HUNG}
        assert readers() <= 5
        before = len(feed.samples)
        await feed.more_rounds(10)  # they cost no deadline any more
        assert len(feed.samples) == before
        source.release()
        await feed.until(lambda: all(feed.sampled(uuid) > 0 for uuid in source.uuids))


async def test_a_gpu_that_hangs_for_ever_is_told_in_the_log_once_and_once_more_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    source = Scripted("A")
    async with reading(source) as (_, feed):
        source.hang("A")
        await feed.until(lambda: len(feed.missed("A")) >= 5)
        source.release()
        known = feed.sampled("A")
        await feed.until(lambda: feed.sampled("A") >= known + 3)
    assert events(caplog) == ["gpus", "gpu_hung", "gpu_back"]


async def test_a_vendor_that_hangs_at_the_start_is_a_problem_and_the_others_gpus_are_read() -> None:
    stuck, fine = Scripted("A"), Scripted("B")
    stuck.hang("survey")
    async with reading(stuck, fine, survey_s=DEADLINE_S) as (reader, feed):
        assert [gpu.uuid for gpu in reader.survey.gpus] == ["B"]
        assert "amd driver does not answer" in reader.survey.problems[0]
        await feed.until(lambda: feed.sampled("B") >= 3)
        assert {sample.uuid for sample in feed.samples} == {"B"}


async def test_closing_does_not_wait_for_a_call_that_hangs() -> None:
    source = Scripted("A", "B")
    async with reading(source) as (reader, feed):
        source.hang("A", "B", "xids", "close")
        await feed.until(lambda: len(feed.missed("B")) >= 1)
        began_s = time.monotonic()
        await reader.close()
        assert time.monotonic() - began_s < 3
        assert not source.is_closed


async def test_closing_in_the_middle_of_a_call_does_not_wait_for_it() -> None:
    source = Scripted("A")
    async with reading(source, interval_s=3600) as (reader, _):
        source.hang("A", "close")
        began_s = time.monotonic()
        await reader.close()
        assert time.monotonic() - began_s < 3


async def test_closing_leaves_the_driver() -> None:
    source = Scripted("A")
    async with reading(source) as (_, feed):
        await feed.more_rounds(1)
    assert source.is_closed


CHILD = """
import asyncio, sys, time
from pathlib import Path
from corral.emulator.nvml import state
from corral.probes.nvml import NvmlSource
from corral.probes.reader import GpuReader
class Feed:
    misses = 0
    def gpu_sampled(self, sample): pass
    def gpu_missed(self, miss): self.misses += 1
    def gpu_reported(self, xid): pass
    def gpus_read(self, seconds): pass
async def main(library, folder):
    feed = Feed()
    reader = GpuReader([NvmlSource(library, folder / "sys")], feed, time.monotonic, 0.02, deadline_s=0.1)
    await reader.start()
    for number in range(4):
        state.hang(folder, number)
    while feed.misses < 8:
        await asyncio.sleep(0.01)
    await reader.close()
    print("closed", flush=True)
asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
"""


def test_a_process_can_end_while_all_its_gpus_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = standin.machine(tmp_path, monkeypatch, machines.four_unequal())
    line = [sys.executable, "-c", CHILD, standin.library(), str(folder)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "closed\n")
    assert done.stderr.count("gpu_hung") == done.stderr.count("\n") == 4


# -- drivers that fail ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [GpuFault.LOST, GpuFault.FAILED])
async def test_a_failed_reading_is_a_miss_with_its_reason(fault: GpuFault) -> None:
    source = Scripted("A", "B")
    source.errors["A"] = GpuReadError(fault, "fell off the bus")
    async with reading(source) as (_, feed):
        await feed.more_rounds(3)
        assert {(miss.uuid, miss.fault, miss.reason) for miss in feed.misses} == {("A", fault, "fell off the bus")}
        assert feed.sampled("B") >= 3
        del source.errors["A"]
        await feed.until(lambda: feed.sampled("A") > 0)


async def test_an_error_nobody_thought_of_is_a_failed_reading_of_that_gpu() -> None:
    source = Scripted("A", "B")
    source.errors = {"A": ZeroDivisionError("oops"), "xids": KeyError("events"), "close": OSError("gone")}
    async with reading(source) as (_, feed):
        await feed.more_rounds(3)
    assert {(miss.uuid, miss.fault, miss.reason) for miss in feed.misses} == {
        ("A", GpuFault.FAILED, "ZeroDivisionError: oops")
    }
    assert feed.sampled("B") >= 3


async def test_a_vendor_whose_gpus_cannot_be_listed_is_a_problem() -> None:
    broken, fine = Scripted("A"), Scripted("B")
    broken.errors["survey"] = RuntimeError("no such ioctl")
    async with reading(broken, fine) as (reader, _):
        assert [gpu.uuid for gpu in reader.survey.gpus] == ["B"]
        assert reader.survey.problems == ("The amd GPUs cannot be listed: RuntimeError: no such ioctl.",)


async def test_errors_that_the_driver_reports_are_fed() -> None:
    source = Scripted("A", "B")
    async with reading(source) as (_, feed):
        await feed.more_rounds(1)
        source.reported = [("B", 79), ("A", 31)]
        await feed.until(lambda: len(feed.xids) == 2)
        await feed.more_rounds(2)
    assert [(xid.uuid, xid.code) for xid in feed.xids] == [("B", 79), ("A", 31)]


async def test_a_fault_in_what_is_fed_does_not_end_the_rhythm(caplog: pytest.LogCaptureFixture) -> None:
    class Clumsy(Recorded):
        def gpu_sampled(self, sample: GpuSample) -> None:
            super().gpu_sampled(sample)
            if len(self.samples) in (1, 2):
                raise LookupError(sample.uuid)

    feed = Clumsy()
    reader = GpuReader([Scripted("A")], feed, time.monotonic, INTERVAL_S)
    await reader.start()
    await feed.until(lambda: len(feed.samples) >= 4)
    await reader.close()
    assert events(caplog) == ["gpu_reader_failed"]


# -- no GPU -----------------------------------------------------------------------------------------------------------


async def test_a_machine_without_a_gpu_is_told_once_and_costs_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with reading(Scripted(), Scripted()) as (reader, feed):
        assert reader.survey == GpuSurvey()
        async with asyncio.timeout(WAIT_S):
            while readers():
                await asyncio.sleep(0.005)
        assert feed.rounds == []
    assert events(caplog) == ["no_gpu"]


def test_a_survey_without_a_loop_finds_all_vendors_gpus() -> None:
    survey = survey_now([Scripted("A"), Scripted("B", "C")])
    assert [gpu.uuid for gpu in survey.gpus] == ["A", "B", "C"]
    assert survey.problems == ()


def test_a_survey_without_a_loop_does_not_wait_for_a_driver_that_hangs() -> None:
    stuck, broken = Scripted("A"), Scripted("B")
    stuck.hang("survey")
    broken.errors["survey"] = OSError("no")
    began_s = time.monotonic()
    survey = survey_now([stuck, Scripted("C"), broken], deadline_s=DEADLINE_S)
    assert time.monotonic() - began_s < WAIT_S
    stuck.release()
    assert [gpu.uuid for gpu in survey.gpus] == ["C"]
    assert len(survey.problems) == 2


# -- with NVIDIA's binding --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterable[Path]:
    folder = standin.machine(tmp_path, monkeypatch, machines.four_unequal())
    yield folder
    for number in range(4):
        state.hang(folder, number, hangs=False)


async def test_nvidia_gpus_are_read_while_one_hangs_and_one_is_lost(folder: Path) -> None:
    uuids = standin.uuids(folder, 4)
    async with reading(standin.source(folder)) as (reader, feed):
        assert [gpu.uuid for gpu in reader.survey.gpus] == uuids
        await feed.more_rounds(2)
        state.update(folder, "gpu3", utilisation=88)
        state.hang(folder, 0)
        state.lose(folder, 1)
        await feed.until(lambda: len(feed.missed(uuids[0])) >= 2 and len(feed.missed(uuids[1])) >= 2)
        assert set(feed.missed(uuids[0])) == {GpuFault.HUNG}
        assert set(feed.missed(uuids[1])) == {GpuFault.LOST}
        await feed.until(lambda: (uuids[1], 79) in [(xid.uuid, xid.code) for xid in feed.xids])
        last = {sample.uuid: sample for sample in feed.samples}
        assert last[uuids[3]].utilisation_ratio == pytest.approx(0.88)
        known = feed.sampled(uuids[0]), feed.sampled(uuids[1])
        state.hang(folder, 0, hangs=False)
        state.find(folder, 1)
        await feed.until(lambda: feed.sampled(uuids[0]) > known[0] and feed.sampled(uuids[1]) > known[1])
        await feed.until(lambda: readers() == 1)
    assert {miss.uuid for miss in feed.misses} == set(uuids[:2])


async def test_a_gpu_that_comes_later_is_read_after_another_look_and_one_not_found_stays(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    driver = Scripted()
    async with reading(driver) as (reader, feed):
        assert reader.survey.gpus == ()
        driver.uuids = ("a", "b")
        assert [gpu.uuid for gpu in (await reader.look_again()).gpus] == ["a", "b"]
        await feed.until(lambda: feed.sampled("a") > 0 and feed.sampled("b") > 0)
        driver.uuids = ("b", "c")
        assert {gpu.uuid for gpu in (await reader.look_again()).gpus} == {"a", "b", "c"}
        before = feed.sampled("a")
        await feed.until(lambda: feed.sampled("c") > 0 and feed.sampled("a") > before)
    assert [event for event in events(caplog) if event in ("no_gpu", "gpus")] == ["no_gpu", "gpus", "gpus"]
