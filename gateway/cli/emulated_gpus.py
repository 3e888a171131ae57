"""The GPUs of emulated replicas: a stand-in for NVIDIA's library, made by the emulator in a process of its own.

The gateway knows nothing of the emulator; it reads these GPUs as it reads real ones, through the library that
``CORRAL_NVML_LIBRARY`` names.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from corral.probes.gpu import NVML_LIBRARY

STANDIN: Final = (sys.executable, "-m", "corral.emulator.standin")
BUILD_S: Final = 30.0
_VARIABLES: Final = (NVML_LIBRARY, "CORRAL_STANDIN_NVML")


class EmulatedGpus:
    """Being made from the start on; :meth:`ready` waits for it."""

    def __init__(self, folder: Path, gpus: Sequence[str], command: Sequence[str] = STANDIN) -> None:
        self.files = tuple(folder / "machine" / f"gpu{number}.live" for number in range(len(gpus)))
        """Where the emulator of each GPU writes its readings."""
        (folder / "machine").mkdir()
        options = [word for gpu in gpus for word in ("--gpu", gpu)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([*command, str(folder), *options], stdout=pipe, stderr=pipe, text=True)

    def ready(self) -> str | None:
        """Let this process see the GPUs from now on. None: it does; else why they cannot be shown."""
        try:
            said, error = self._process.communicate(timeout=BUILD_S)
        except subprocess.TimeoutExpired:
            return "the compiler does not end"
        if self._process.returncode != 0:
            return error.strip().splitlines()[-1].removeprefix("Error: ") if error.strip() else "no reason was given"
        pairs = (line.partition("=") for line in said.splitlines())
        os.environ.update({name: value for name, _, value in pairs if name in _VARIABLES})
        return None

    def end(self) -> None:
        """Leave no process behind."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def emulated_gpus(gpus: Sequence[str]) -> Iterator[EmulatedGpus]:
    """The GPUs and their files, which live as long as the context does."""
    with tempfile.TemporaryDirectory(prefix="corral-demo-", ignore_cleanup_errors=True) as folder:
        made = EmulatedGpus(Path(folder), gpus)
        try:
            yield made
        finally:
            made.end()
