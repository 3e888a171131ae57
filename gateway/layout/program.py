"""Finds the ``ollama`` program and asks for its version."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from typing import Final

from corral.gateway.layout.plan import OllamaProgram

LIMIT_S: Final = 5.0
NOWHERE: Final = "127.0.0.1:1"
"""No Ollama listens there: the program then says its own version, not that of a server that happens to run."""


def find_program(name: str, environ: Mapping[str, str], limit_s: float = LIMIT_S) -> OllamaProgram | None:
    """The program of that name or path; None: there is none that may be run."""
    path = shutil.which(name, path=environ.get("PATH", os.defpath))
    if path is None:
        return None
    return OllamaProgram(os.path.abspath(path), _version(_ask(path, environ, limit_s)))


def _ask(path: str, environ: Mapping[str, str], limit_s: float) -> str:
    """What ``--version`` prints, on both outputs; empty where it does not end in time."""
    env = {name: value for name, value in environ.items() if not name.upper().startswith("OLLAMA_")}
    env = {name: value for name, value in env.items() if not name.upper().endswith("_PROXY")}
    env |= {"OLLAMA_HOST": NOWHERE, "HOME": environ.get("HOME", "/")}
    try:
        child = subprocess.Popen(
            [path, "--version"],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError:
        return ""
    with child:
        try:
            return child.communicate(timeout=limit_s)[0][:4096].decode(errors="replace")
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # its own session: nobody else is in the group
            return ""


def _version(said: str) -> str | None:
    """``ollama version is 0.32.15``; with a warning before it where no server answers."""
    number = r"version is v?(\d+\.\d+[0-9A-Za-z.+-]*)"
    found = re.search(rf"client {number}", said) or re.search(number, said)
    return found.group(1) if found else None
