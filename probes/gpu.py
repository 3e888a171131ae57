"""What every GPU probe is: a blocking source per vendor, and the feed its readings go to."""

from __future__ import annotations

from typing import Final, Protocol

from corral.model import GpuFault, GpuMiss, GpuSample, GpuSurvey, GpuVendor, GpuXid

NVML_LIBRARY: Final = "CORRAL_NVML_LIBRARY"
"""The environment variable that names NVIDIA's library, where the system does not find it by itself."""


class GpuReadError(Exception):
    """One GPU could not be read."""

    def __init__(self, fault: GpuFault, reason: str) -> None:
        super().__init__(reason)
        self.fault = fault
        self.reason = reason


class GpuSource(Protocol):
    """One vendor's driver. Every method may block for as long as the driver likes, so none is called on the loop.

    A call that hangs is left alone on its thread, and the others are made from another one meanwhile.
    """

    @property
    def vendor(self) -> GpuVendor: ...

    def survey(self) -> GpuSurvey:
        """Find the GPUs, anew at each call; a driver that is not there is an empty survey, not an error."""
        ...

    def read(self, uuid: str, at_s: float) -> GpuSample:
        """Read one GPU of the last survey. Raises :class:`GpuReadError`."""
        ...

    def xids(self) -> tuple[tuple[str, int], ...]:
        """Errors that the driver reported since the last call, as (uuid, Xid code); never waits for one."""
        ...

    def close(self) -> None: ...


class GpuFeed(Protocol):
    """Where readings go. Called on the event loop; must not block."""

    def gpu_sampled(self, sample: GpuSample) -> None: ...

    def gpu_missed(self, miss: GpuMiss) -> None: ...

    def gpu_reported(self, xid: GpuXid) -> None: ...

    def gpus_read(self, seconds: float) -> None:
        """One round over all GPUs took so long."""
        ...
