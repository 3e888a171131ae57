"""Calls into NVIDIA's library, its errors sorted: a sensor that is not there, a GPU that is lost, anything else."""

from __future__ import annotations

import ctypes
import importlib
from types import ModuleType
from typing import Any

from corral.model import GpuFault

LIBRARY = "libnvidia-ml.so.1"
UNINITIALISED, INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND = 1, 2, 3, 4, 6
DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, FUNCTION_NOT_FOUND, IS_LOST, RESET_REQUIRED = 9, 12, 13, 15, 16
VERSION_MISMATCH, OTHER_VERSION = 18, 25

NEVER = frozenset({NOT_SUPPORTED, FUNCTION_NOT_FOUND, OTHER_VERSION})
"""The sensor is not there, and will not be while the driver runs."""
LOST = frozenset({IS_LOST, RESET_REQUIRED})
NO_DRIVER = frozenset({UNINITIALISED, DRIVER_NOT_LOADED})
"""The driver went away under us: nothing answers until it is initialised again."""
FATAL = LOST | NO_DRIVER | {VERSION_MISMATCH}
"""Any other error concerns the one call: drivers answer with odd codes for a single sensor, as nvidia-smi's *ERR!*."""

Handle = Any
"""An opaque pointer of the library."""


def load(library: str | None) -> ModuleType:
    """The binding, set to that library (None: to ``libnvidia-ml.so.1``). Raises OSError if that path cannot be loaded.

    Imported here and not at the top: it takes 50 ms, which only machines with an NVIDIA driver should pay.
    """
    nvml: Any = importlib.import_module("pynvml")
    if getattr(nvml.nvmlLib, "_name", LIBRARY) != (library or LIBRARY):
        # None: the binding loads its own at its next initialisation
        nvml.nvmlLib = None if library is None else ctypes.CDLL(library)
        nvml._nvmlGetFunctionPointer_cache.clear()  # or it would go on calling the library before
    module: ModuleType = nvml
    return module


def fault_of(code: int) -> GpuFault:
    return GpuFault.LOST if code in LOST else GpuFault.FAILED


def pointer(handle: Handle) -> int:
    """What tells two handles apart; 0 for none."""
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def ask(nvml: ModuleType, name: str, *args: Any) -> Any:
    """What that function gives; None where it gives nothing, for whatever reason."""
    try:
        return getattr(nvml, name)(*args)
    except (AttributeError, nvml.NVMLError, nvml.NVMLLibraryMismatchError):
        return None


class Device:
    """One GPU's handle; remembers which of its sensors are not there, so that each is asked for once."""

    def __init__(self, nvml: ModuleType, handle: Handle) -> None:
        self.nvml = nvml
        self.handle = handle
        self.odd_error: str | None = None
        """The last error that concerned one sensor only, as far as one can tell."""
        self._missing: set[tuple[str, tuple[int, ...]]] = set()

    def ask(self, name: str, *args: int) -> Any:
        """What that function gives of this GPU; None: nothing. Raises the errors that concern all of the GPU."""
        if (name, args) in self._missing:
            return None
        try:
            return getattr(self.nvml, name)(self.handle, *args)
        except self.nvml.NVMLError as error:
            if error.value in FATAL:
                raise
            if error.value in NEVER:
                self._missing.add((name, args))
            else:
                self.odd_error = str(error).rstrip(".")
        except (AttributeError, self.nvml.NVMLLibraryMismatchError):
            # a binding older than the function; a driver older than it, which is not a kind of NVMLError
            self._missing.add((name, args))
        return None

    def ask_first(self, *names: str) -> Any:
        """The first answer of several names of one function: newer drivers renamed some."""
        for name in names:
            answer = self.ask(name)
            if answer is not None:
                return answer
        return None

    def memory(self) -> Any:
        """Its memory figures: ``used`` without the driver's own share, where the driver can tell the two apart."""
        found = self.ask("nvmlDeviceGetMemoryInfo", self.nvml.nvmlMemory_v2)
        return self.ask("nvmlDeviceGetMemoryInfo") if found is None else found

    def relearn(self) -> None:
        """Ask for every sensor once more."""
        self._missing.clear()


def advice(nvml: ModuleType, code: int) -> str:
    """What is wrong with the driver, and what to do."""
    if code == VERSION_MISMATCH:
        return (
            "The NVIDIA kernel module and library are of different versions, as after an upgrade of the driver: "
            "reboot, or unload and load the nvidia modules."
        )
    if code == DRIVER_NOT_LOADED:
        return (
            "The NVIDIA library is installed, but its kernel module is not loaded: `modprobe nvidia`, look for it in "
            "dmesg, or in a container start that with the GPUs (`--gpus all`)."
        )
    if code == NO_PERMISSION:
        return "No permission to ask the NVIDIA driver: give this user access to /dev/nvidia* (often: group video)."
    said = str(nvml.NVMLError(code))
    return f"The NVIDIA driver cannot be asked ({said}, code {code}): see what `nvidia-smi` and dmesg say, then reboot."
