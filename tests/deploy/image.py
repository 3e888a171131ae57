"""Carries out the steps of a Dockerfile without an engine, below a folder that stands for the image's root.

With a whole root file system there, each step runs in it by chroot. Without one the absolute paths of a step are led
below the folder, and what concerns users is left out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.deploy.dockerfile import ROOT, Instruction, Stage, in_context

_STEP_S = 300
_LEFT_OUT = re.compile(r"^(groupadd|useradd|install --directory) ")
"""What needs a root of its own."""


class Image:
    """What a stage makes, at ``root``."""

    def __init__(self, root: Path, *, is_chroot: bool = False) -> None:
        self.root = root
        self.is_chroot = is_chroot
        self.env: dict[str, str] = {}
        self.cwd = "/"

    def at(self, path: str) -> Path:
        """Where a path of the image is here."""
        return self.root / (path if path.startswith("/") else f"{self.cwd}/{path}").lstrip("/")

    def build(self, stage: Stage, others: Mapping[str, Image]) -> None:
        for instruction in stage.instructions:
            if instruction.name == "ENV":
                self.env |= instruction.pairs
            elif instruction.name == "WORKDIR":
                self.cwd = instruction.text
                self.at(self.cwd).mkdir(parents=True, exist_ok=True)
            elif instruction.name == "COPY":
                self.copy(instruction, others)
            elif instruction.name == "RUN":
                self.run(instruction.text)

    def copy(self, instruction: Instruction, others: Mapping[str, Image]) -> None:
        *sources, target = instruction.words
        origin = instruction.flags.get("from")
        for source in sources:
            path = ROOT / source if origin is None else others[origin].at(source)
            into = self.at(target) if target != "./" else self.at(".") / path.name
            if into == path:
                continue  # both images have one root
            into.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                ignored = _outside_of_the_context if origin is None else None
                shutil.copytree(path, into, symlinks=True, dirs_exist_ok=True, ignore=ignored)
            else:
                shutil.copy2(path, into)

    def run(self, command: str) -> None:
        if not self.is_chroot and _LEFT_OUT.match(command):
            return
        done = subprocess.run(
            self._shell(command),
            cwd=self.at(self.cwd),
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=_STEP_S,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

    def _shell(self, command: str) -> list[str]:
        if self.is_chroot:
            return ["chroot", str(self.root), "/bin/sh", "-c", f"cd {self.cwd} && {command}"]
        led = re.sub(r"(?<![\w./])/(build|src|wheels|opt/corral)\b", lambda match: f"{self.root}{match[0]}", command)
        return ["/bin/sh", "-c", led]

    def _environment(self) -> dict[str, str]:
        """What the machine needs to reach a package registry, and the image's own."""
        kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or "proxy" in name.lower()}
        path = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" if self.is_chroot else os.environ["PATH"]
        return {"PATH": path, "HOME": "/root"} | kept | self.env


def _outside_of_the_context(folder: str, names: list[str]) -> set[str]:
    inside = Path(folder).relative_to(ROOT)
    return {name for name in names if "__pycache__" in name or not in_context(str(inside / name))}
