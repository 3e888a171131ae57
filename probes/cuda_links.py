"""``python -m corral.probes.cuda_links UUID…``: how long a small copy from each of these GPUs to each other takes.

It is a program of its own, because using a GPU takes some of its memory for as long as the process lives, and because a
driver that hangs would hang whoever asks. It prints a line of JSON for each pair, ``{"a": …, "b": …, "seconds": …}``,
or ``{"problem": …}`` with what stood in the way; figures are only ever measured.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_ubyte, c_uint64, c_void_p
from itertools import permutations
from statistics import median
from typing import Any, Final

CUDA_LIBRARY: Final = "CORRAL_CUDA_LIBRARY"
"""The environment variable that names NVIDIA's driver library, where the system does not find it by itself."""
LIBRARY: Final = "libcuda.so.1"
LONGEST_S: Final = 60
"""The system ends this process then, whoever waits for it or not."""
_BYTES: Final = 64
_WARM_UPS, _SAMPLES = 10, 101
_ALREADY_ENABLED: Final = 704


class CudaError(Exception):
    """The driver cannot, or will not."""


class Cuda:
    """NVIDIA's driver; every call may hang."""

    def __init__(self, library: str) -> None:
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise CudaError(f"{library} cannot be loaded: {error}") from error

    def call(self, name: str, *args: Any, allowed: int = 0) -> None:
        """Raises CudaError unless the function answers with success, or with the ``allowed`` code."""
        try:
            code = getattr(self._library, name)(*args)
        except AttributeError:
            raise CudaError(f"this driver has no {name}") from None
        if code not in (0, allowed):
            raise CudaError(f"{name} failed: {self._error_name(code)}")

    def _error_name(self, code: int) -> str:
        name = c_char_p()
        try:
            known = self._library.cuGetErrorName(code, byref(name)) == 0 and name.value is not None
        except AttributeError:
            known = False
        return f"{(name.value or b'').decode()} ({code})" if known else f"error {code}"


class Device:
    """One GPU in use: a context, a small buffer there, and two events to measure between."""

    def __init__(self, cuda: Cuda, number: int) -> None:
        self._cuda = cuda
        self.number = number
        self.context, self.buffer = c_void_p(), c_uint64()
        self._begin, self._end = c_void_p(), c_void_p()
        cuda.call("cuCtxCreate_v2", byref(self.context), 0, number)
        cuda.call("cuMemAlloc_v2", byref(self.buffer), c_size_t(_BYTES))
        cuda.call("cuEventCreate", byref(self._begin), 0)
        cuda.call("cuEventCreate", byref(self._end), 0)

    def seconds_to(self, peer: Device) -> float:
        """The median of many copies, by the GPU's own clock: what one disturbed copy took does not matter."""
        can = c_int()
        self._cuda.call("cuDeviceCanAccessPeer", byref(can), self.number, peer.number)
        if not can.value:
            raise CudaError("the two cannot reach each other's memory")
        self._cuda.call("cuCtxSetCurrent", self.context)
        self._cuda.call("cuCtxEnablePeerAccess", peer.context, 0, allowed=_ALREADY_ENABLED)
        taken_ms = [self._copy_ms(peer) for _ in range(_WARM_UPS + _SAMPLES)]
        return round(median(taken_ms[_WARM_UPS:]) / 1000, 9)  # in single precision, a digit more means nothing

    def _copy_ms(self, peer: Device) -> float:
        call, taken_ms = self._cuda.call, c_float()
        call("cuEventRecord", self._begin, None)
        call("cuMemcpyPeerAsync", peer.buffer, peer.context, self.buffer, self.context, c_size_t(_BYTES), None)
        call("cuEventRecord", self._end, None)
        call("cuEventSynchronize", self._end)
        call("cuEventElapsedTime", byref(taken_ms), self._begin, self._end)
        return taken_ms.value


def measure(library: str, uuids: Sequence[str]) -> Iterator[dict[str, str | float]]:
    """What is to be printed, as it is found."""
    try:
        cuda = Cuda(library)
        devices = _devices(cuda, uuids)
    except CudaError as error:
        yield {"problem": str(error)}
        return
    for uuid in uuids:
        if uuid not in devices:
            yield {"problem": f"{uuid}: the driver shows no such GPU"}
    for a, b in permutations(devices, 2):
        try:
            yield {"a": a, "b": b, "seconds": devices[a].seconds_to(devices[b])}
        except CudaError as error:
            yield {"problem": f"{a} to {b}: {error}"}


def _devices(cuda: Cuda, uuids: Sequence[str]) -> dict[str, Device]:
    """By uuid, those of ``uuids`` that the driver shows."""
    count, number = c_int(), c_int()
    cuda.call("cuInit", 0)
    cuda.call("cuDeviceGetCount", byref(count))
    found = {}
    for ordinal in range(count.value):
        cuda.call("cuDeviceGet", byref(number), ordinal)
        uuid = _uuid(cuda, number.value)
        if uuid in uuids:
            found[uuid] = Device(cuda, number.value)
    return found


def _uuid(cuda: Cuda, number: int) -> str:
    said = (c_ubyte * 16)()
    cuda.call("cuDeviceGetUuid", said, number)
    digits = bytes(said).hex()
    return "GPU-" + "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def main(uuids: Sequence[str]) -> None:
    signal.alarm(LONGEST_S)
    for line in measure(os.environ.get(CUDA_LIBRARY) or LIBRARY, uuids):
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
    os._exit(0)  # without the driver's own farewell, which may hang, too


if __name__ == "__main__":
    main(sys.argv[1:])
