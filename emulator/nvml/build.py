"""Compiles the stand-ins for NVIDIA's management library and for its driver."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Final

from corral.errors import OperatorError

LIBRARY: Final = "libnvidia-ml.so.1"
CUDA: Final = "libcuda.so.1"
_SOURCES: Final = {LIBRARY: "standin.c", CUDA: "cuda.c"}
_FLAGS: Final = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror")
_COMPILERS: Final = ("cc", "gcc", "clang")
_COMPILE_S: Final = 60.0


def build(folder: Path, without: Sequence[str] = (), name: str = LIBRARY) -> Path:
    """The library in ``folder``, compiled unless it is there; it lacks the functions ``without``, as an old driver's.
    ``name``: which of the two.

    Raises :class:`OperatorError` where there is no C compiler, or where it fails.
    """
    source = resources.files("corral.emulator.nvml").joinpath(_SOURCES[name]).read_bytes()
    library, stamp = folder / name, folder / f".{name}.made-of"
    made_of = hashlib.sha256(source + repr(sorted(without)).encode()).hexdigest()
    if library.exists() and stamp.exists() and stamp.read_text() == made_of:
        return library
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f"{name}.{os.getpid()}.new"
    _compile(source, new, without, name)
    new.replace(library)
    stamp.write_text(made_of)
    return library


def _compile(source: bytes, output: Path, without: Sequence[str], name: str) -> None:
    # under another name a function is as good as absent
    renamed = [f"-D{function}=absent_{function}" for function in without]
    line = [_compiler(), *_FLAGS, f"-Wl,-soname,{name}", *renamed, "-x", "c", "-", "-o", str(output)]
    done = subprocess.run(line, input=source, capture_output=True, timeout=_COMPILE_S, check=False)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise OperatorError(f"cannot compile the stand-in for {name} with {line[0]}:\n{said}")


def _compiler() -> str:
    for name in _COMPILERS:
        if (found := shutil.which(name)) is not None:
            return found
    raise OperatorError(
        "no C compiler found (cc, gcc or clang), which the emulated GPUs need; "
        "install one, for example with: apt-get install gcc libc6-dev"
    )
