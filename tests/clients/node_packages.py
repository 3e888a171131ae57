"""The clients for Node, installed once into a folder that git ignores."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "node"
_CACHE = Path(__file__).parents[2] / ".cache"
_OLDEST_NODE = 20
_INSTALL_S = 100
_NO_NETWORK = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH", "EHOSTUNREACH")


def node() -> str:
    """The program ``node``, with the packages of ``package.json`` beside the session; skips where there is none."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is not installed")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    if int(version.strip().removeprefix("v").partition(".")[0]) < _OLDEST_NODE:
        pytest.skip(f"node {version.strip()} is older than {_OLDEST_NODE}")
    # one at a time: other test runs of this checkout may be installing too
    _CACHE.mkdir(exist_ok=True)
    with (_CACHE / "node.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _installed():
            _install()
    assert _installed()
    return program


def _installed() -> bool:
    wanted = json.loads((FOLDER / "package.json").read_text())["dependencies"]
    return all(_version_of(name) == version for name, version in wanted.items())


def _version_of(package: str) -> str | None:
    described = FOLDER / "node_modules" / package / "package.json"
    return json.loads(described.read_text())["version"] if described.exists() else None


def _install() -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed, and the packages for Node are not either")
    try:
        run = subprocess.run([npm, "install"], cwd=FOLDER, capture_output=True, text=True, timeout=_INSTALL_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm install did not end in {_INSTALL_S} s")
    signs = [sign for sign in _NO_NETWORK if sign in run.stderr]
    if run.returncode and signs:
        pytest.skip(f"npm install found no network ({signs[0]})")
    assert run.returncode == 0, run.stderr
