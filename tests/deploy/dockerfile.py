"""Reads a Dockerfile, as far as ours goes, and what of the repository an image is built from."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy/docker/Dockerfile"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of it, continuations joined."""

    name: str
    text: str

    @property
    def flags(self) -> dict[str, str]:
        """``--name=value`` in front of what it is about."""
        return dict(re.findall(r"--([a-z-]+)=(\S+)", self.text.split(" CMD ")[0]))

    @property
    def words(self) -> list[str]:
        """Its words without flags, or the list of its exec form."""
        text = re.sub(r"^(--[a-z-]+=\S+\s+)*(CMD\s+)?", "", self.text)
        if text.startswith("["):
            return [str(word) for word in json.loads(text)]
        return shlex.split(text)

    @property
    def pairs(self) -> dict[str, str]:
        """Of ENV, LABEL and ARG."""
        return dict(word.partition("=")[::2] for word in self.words)


@dataclass(slots=True)
class Stage:
    """From one FROM to the next."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        return [each for each in self.instructions if each.name == name]

    def last(self, name: str) -> Instruction:
        return self.all(name)[-1]

    @property
    def env(self) -> dict[str, str]:
        return {key: value for each in self.all("ENV") for key, value in each.pairs.items()}


def stages(text: str) -> tuple[dict[str, str], list[Stage]]:
    """The arguments in front of the first FROM, and the stages."""
    arguments: dict[str, str] = {}
    found: list[Stage] = []
    for each in instructions(text):
        if each.name == "FROM":
            base, *rest = each.words
            base = arguments.get(base.strip("${}"), base)
            found.append(Stage(base, rest[1] if rest else ""))
        elif found:
            found[-1].instructions.append(each)
        else:
            arguments |= each.pairs
    return arguments, found


def instructions(text: str) -> list[Instruction]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines()]


def in_context(path: str) -> bool:
    """Whether ``.dockerignore`` lets this file of the repository into a build: the last rule that fits decides."""
    is_in = True
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = rule.removeprefix("!")
        if pattern.strip() and not pattern.startswith("#") and _fits(path, pattern):
            is_in = rule.startswith("!")
    return is_in


def _fits(path: str, pattern: str) -> bool:
    """A rule fits a file, and everything below a folder."""
    parts = path.split("/")
    heads = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    if pattern.startswith("**/"):
        return any(fnmatch(part, pattern[3:]) for part in parts)
    return any(head.count("/") == pattern.count("/") and fnmatch(head, pattern) for head in heads)
