"""Reads the Compose files, as Compose would: merge keys, ``extends`` and the folder that paths are relative to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.dockerfile import DOCKERFILE, ROOT, Stage, stages

FOLDER = ROOT / "deploy/compose"
FILES = {path.name: path for path in sorted(FOLDER.glob("compose.*.yaml"))}
STAGES = {stage.name: stage for stage in stages(DOCKERFILE.read_text())[1]}
OURS = ("corral:local", "corral-ollama:local")


@dataclass(frozen=True, slots=True)
class Service:
    """One service of one file."""

    file: str
    name: str
    keys: dict[str, Any]

    @property
    def is_corral(self) -> bool:
        """Whether it runs the command ``corral``, of an image of ours."""
        return self.keys["image"] in OURS

    @property
    def stage(self) -> Stage:
        return STAGES[self.target]

    @property
    def target(self) -> str:
        return "with-ollama" if self.keys["image"] == "corral-ollama:local" else "corral"

    @property
    def arguments(self) -> list[str]:
        """The command line behind ``corral``."""
        return [str(word) for word in self.keys.get("command", STAGES["corral"].last("CMD").words)]

    @property
    def env(self) -> dict[str, str]:
        return {name: str(value) for name, value in self.keys.get("environment", {}).items()}

    def stage_env(self, name: str) -> str:
        """A variable as the container has it: the file's, else the image's."""
        return self.env.get(name) or (STAGES["corral"].env | self.stage.env)[name]

    @property
    def mounts(self) -> dict[str, tuple[str, str]]:
        """What is mounted where, and how: ``rw`` or ``ro``."""
        found = {}
        for text in self.keys.get("volumes", []):
            source, target, *how = text.split(":")
            found[target] = (source, how[0] if how else "rw")
        return found

    @property
    def config(self) -> Path | None:
        """Its configuration here, where it has one."""
        inside = self.env.get("CORRAL_CONFIG")
        if inside is None:
            return None
        folder, name = inside.rsplit("/", 1)
        return FOLDER / self.mounts[folder][0] / name


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    for name, keys in loaded["services"].items():
        if "extends" in keys:
            base = load(path.parent / keys["extends"]["file"])["services"][keys["extends"]["service"]]
            loaded["services"][name] = base | {key: value for key, value in keys.items() if key != "extends"}
    return loaded


def services() -> list[Service]:
    return [Service(file, name, keys) for file, path in FILES.items() for name, keys in load(path)["services"].items()]


def interpolated(text: str) -> str:
    """With each variable at the default that the file gives it."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
