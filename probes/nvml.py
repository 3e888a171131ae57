"""NVIDIA's GPUs through the driver's own library (NVML): initialised once, and anew when the driver was restarted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from types import ModuleType

from corral.model import GpuFault, GpuSample, GpuSurvey, GpuVendor
from corral.probes.gpu import GpuReadError
from corral.probes.nvml_calls import (
    INVALID_ARGUMENT,
    LIBRARY_NOT_FOUND,
    NO_DRIVER,
    NOT_FOUND,
    Device,
    Handle,
    advice,
    ask,
    fault_of,
    load,
    pointer,
)
from corral.probes.nvml_links import links
from corral.probes.nvml_sensors import Sensors
from corral.probes.nvml_survey import find

XID_EVENTS = 0x8
MAX_EVENTS = 64
"""Taken at one time: a GPU that reports without end must not keep the reader."""
SICK_MISSES = 3
"""After so many failed readings of a GPU in a row the library is initialised anew: a lost GPU that was reset comes back
only then, and an operator can reset it only while nobody holds it open."""
FIRST_PAUSE_S = 5.0
MAX_PAUSE_S = 60.0
BUSY = "its driver is being initialised, or does not return from an earlier call"


class NvmlSource:
    """Every call may hang. Methods may be called from several threads; none waits for another's call."""

    vendor = GpuVendor.NVIDIA

    def __init__(self, library: str | None = None, sysfs: Path = Path("/sys")) -> None:
        self._library = library
        self._sysfs = sysfs
        self._session: _Session | None = None
        self._calls = _Calls()
        self._misses: dict[str, int] = {}
        self._trouble = "its driver is not initialised"
        self._gone = True
        self._renew_at_s = float("-inf")
        self._pause_s = FIRST_PAUSE_S

    def survey(self) -> GpuSurvey:
        """See :class:`corral.probes.gpu.GpuSource`. No library at all is no problem: there may be no such GPU."""
        with self._calls.one():
            try:
                nvml = load(self._library)
            except (OSError, ImportError) as error:
                return GpuSurvey(problems=(f"The NVIDIA library cannot be loaded: {error}.",))
            try:
                return self._survey(nvml)
            except nvml.NVMLError as error:
                silent = error.value == LIBRARY_NOT_FOUND
                return GpuSurvey(problems=() if silent else (advice(nvml, error.value),))

    def read(self, uuid: str, at_s: float) -> GpuSample:
        """See :class:`corral.probes.gpu.GpuSource`. Initialises the library anew when that is due."""
        with self._calls.one():
            session = self._current(at_s)
            try:
                sample = session.sensors(uuid).read(at_s)
            except GpuReadError:
                self._missed(uuid, session)
                raise
            except session.nvml.NVMLError as error:
                self._gone |= error.value in NO_DRIVER
                self._missed(uuid, session)
                raise GpuReadError(fault_of(error.value), str(error).rstrip(".")) from error
            self._answered(uuid)
            return sample

    def xids(self) -> tuple[tuple[str, int], ...]:
        """See :class:`corral.probes.gpu.GpuSource`. One of a MIG device is reported of the GPU it is a part of."""
        with self._calls.one():
            session = self._session
            return () if session is None else session.xids()

    def close(self) -> None:
        """Leave the driver, unless a call hangs in it."""
        with self._calls.one():
            if self._calls.alone and self._session is not None:
                self._session.close()
                self._session = None
                self._gone = True

    def _survey(self, nvml: ModuleType) -> GpuSurvey:
        if self._session is None:
            self._open(nvml)
        try:
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            if error.value not in NO_DRIVER or not self._calls.alone:
                raise
            self._open(nvml)  # it was restarted since
            count = nvml.nvmlDeviceGetCount()
        found, problems = find(nvml, self._sysfs, count)
        return GpuSurvey(
            gpus=tuple(one.gpu for one in found),
            links=links(found),
            driver_version=ask(nvml, "nvmlSystemGetDriverVersion"),
            cuda_version=_cuda_version(nvml),
            problems=tuple(problems),
        )

    def _open(self, nvml: ModuleType) -> None:
        old, self._session = self._session, None
        if old is not None:
            old.close()
        nvml.nvmlInit()
        self._session = _Session(nvml)
        self._gone = False

    def _current(self, at_s: float) -> _Session:
        sick = any(misses >= SICK_MISSES for misses in self._misses.values())
        if (self._gone or sick) and at_s >= self._renew_at_s and self._calls.alone:
            self._renew(at_s)
        if self._session is None:
            raise GpuReadError(GpuFault.FAILED, self._trouble if self._calls.alone else BUSY)
        return self._session

    def _renew(self, at_s: float) -> None:
        self._renew_at_s = at_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
        self._misses.clear()
        try:
            nvml = load(self._library)
        except (OSError, ImportError) as error:
            self._trouble = str(error)
            return
        try:
            self._open(nvml)
        except nvml.NVMLError as error:
            self._gone = True
            self._trouble = advice(nvml, error.value)

    def _missed(self, uuid: str, session: _Session) -> None:
        self._misses[uuid] = self._misses.get(uuid, 0) + 1
        session.forget(uuid)

    def _answered(self, uuid: str) -> None:
        self._misses.pop(uuid, None)
        if not self._misses and not self._gone:
            self._pause_s = FIRST_PAUSE_S


class _Session:
    """What holds from one initialisation of the library to the next."""

    def __init__(self, nvml: ModuleType) -> None:
        self.nvml = nvml
        self._sensors: dict[str, Sensors] = {}
        self._uuids: dict[int, str] = {}
        """By handle, of those whose events are asked for."""
        self._events = ask(nvml, "nvmlEventSetCreate")
        """None: the GPUs can be read without."""

    def sensors(self, uuid: str) -> Sensors:
        """Those of that GPU, found again by its uuid if need be."""
        known = self._sensors.get(uuid)
        if known is None:
            known = self._sensors[uuid] = Sensors(uuid, Device(self.nvml, self._handle(uuid)))
            self._listen(uuid, known.device)
        return known

    def forget(self, uuid: str) -> None:
        """Find that GPU anew at its next reading."""
        self._sensors.pop(uuid, None)

    def xids(self) -> tuple[tuple[str, int], ...]:
        return tuple(self._drain()) if self._events is not None and self._uuids else ()

    def close(self) -> None:
        for leave in (self._free_events, self.nvml.nvmlShutdown):
            try:
                leave()
            except self.nvml.NVMLError:
                pass  # it was gone already

    def _handle(self, uuid: str) -> Handle:
        try:
            return self.nvml.nvmlDeviceGetHandleByUUID(uuid)
        except self.nvml.NVMLError as error:
            if error.value in (NOT_FOUND, INVALID_ARGUMENT):
                raise GpuReadError(GpuFault.LOST, "the driver no longer knows it") from error
            raise

    def _listen(self, uuid: str, device: Device) -> None:
        if self._events is None or pointer(device.handle) in self._uuids:
            return
        try:
            if (device.ask("nvmlDeviceGetSupportedEventTypes") or 0) & XID_EVENTS:
                self.nvml.nvmlDeviceRegisterEvents(device.handle, XID_EVENTS, self._events)
                self._uuids[pointer(device.handle)] = uuid
        except self.nvml.NVMLError:
            pass  # what is wrong with the GPU shows in its reading

    def _drain(self) -> Iterator[tuple[str, int]]:
        for _ in range(MAX_EVENTS):
            try:
                event = self.nvml.nvmlEventSetWait_v2(self._events, 0)
            except self.nvml.NVMLError:
                return  # none is waiting, or the readings show what is wrong
            uuid = self._uuids.get(pointer(event.device))
            if uuid is not None and event.eventType & XID_EVENTS:
                yield uuid, int(event.eventData)

    def _free_events(self) -> None:
        if self._events is not None:
            self.nvml.nvmlEventSetFree(self._events)


class _Calls:
    """How many threads are in the driver: it is not shut down under another's call."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._count = 0

    @property
    def alone(self) -> bool:
        """Asked from within a call: whether that is the only one."""
        return self._count == 1

    @contextmanager
    def one(self) -> Iterator[None]:
        with self._lock:  # never held during a call
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1


def _cuda_version(nvml: ModuleType) -> str | None:
    number = ask(nvml, "nvmlSystemGetCudaDriverVersion_v2")
    if number is None:
        number = ask(nvml, "nvmlSystemGetCudaDriverVersion")
    return None if number is None else f"{number // 1000}.{number % 1000 // 10}"
