"""Compiles the stand-in for NVIDIA's management library."""

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
_FLAGS: Final = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", f"-Wl,-soname,{LIBRARY}")
_COMPILERS: Final = ("cc", "gcc", "clang")
_COMPILE_S: Final = 60.0


def build(folder: Path, without: Sequence[str] = ()) -> Path:
    """The library in ``folder``, compiled unless it is there; it lacks the functions ``without``, as an old driver's.

    Raises :class:`OperatorError` where there is no C compiler, or where it fails.
    """
    source = resources.files("corral.emulator.nvml").joinpath("standin.c").read_bytes()
    library, stamp = folder / LIBRARY, folder / f".{LIBRARY}.made-of"
    made_of = hashlib.sha256(source + repr(sorted(without)).encode()).hexdigest()
    if library.exists() and stamp.exists() and stamp.read_text() == made_of:
        return library
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f"{LIBRARY}.{os.getpid()}.new"
    _compile(source, new, without)
    new.replace(library)
    stamp.write_text(made_of)
    return library


def _compile(source: bytes, output: Path, without: Sequence[str]) -> None:
    # under another name a function is as good as absent
    renamed = [f"-D{name}=absent_{name}" for name in without]
    line = [_compiler(), *_FLAGS, *renamed, "-x", "c", "-", "-o", str(output)]
    done = subprocess.run(line, input=source, capture_output=True, timeout=_COMPILE_S, check=False)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise OperatorError(f"cannot compile the stand-in for {LIBRARY} with {line[0]}:\n{said}")


def _compiler() -> str:
    for name in _COMPILERS:
        if (found := shutil.which(name)) is not None:
            return found
    raise OperatorError(
        "no C compiler found (cc, gcc or clang), which the emulated GPUs need; "
        "install one, for example with: apt-get install gcc libc6-dev"
    )
