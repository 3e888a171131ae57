"""One session of ``ollama``'s commands: a person sees the same of one Ollama and of the gateway in front of three.

``OLLAMA_BIN=/path/to/ollama`` has a real binary make the session with the gateway, too.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from corral.emulator.ollama import main
from tests.clients.conftest import CHAT, EMBEDDING, MODELS, SPEED, THINKING
from tests.clients.processes import Stack, stack
from tests.emulator.child import emulator

SLOTS = 2
SMALL = "smollm2:135m"
MODELFILES = {"Modelfile": "FROM mine\nSYSTEM Be brief.\n", "Narrow": "FROM mine\nPARAMETER num_ctx 2048\n"}
ALIASES = ("mine:latest", "brief:latest", "narrow:latest")
_SOME_TIME_S = 120

SESSION = (
    "list",
    "ps",
    f"show {CHAT}",
    f"pull {SMALL}",
    "list",
    f"show {SMALL}",
    f"run {SMALL} hello",
    "ps",
    f"cp {SMALL} mine",
    "create brief",
    "create narrow -f Narrow",
    "show brief --system",
    "show narrow --parameters",
    "list",
    "run mine hello --keepalive 10m",
    "ps",
    "stop mine",
    "ps",
    "run brief hello",
    "ps",
    "stop brief",
    "ps",
    "run narrow hello",
    "ps",
    "stop narrow",
    "ps",
    f"run {EMBEDDING} hello",
    f"run {THINKING} hello",
    "ps",
    f"stop {EMBEDDING}",
    f"stop {THINKING}",
    "ps",
    f"run {CHAT} hello --format json",
    f"rm {SMALL}",
    "list",
    f"run {SMALL} again",
    f"rm brief mine narrow {SMALL}",
    "list",
    f"stop {CHAT}",
    "ps",
    # what goes wrong
    "pull no-such-model",
    "run no-such-model hello",
    "show no-such-model",
    "cp no-such-model other",
    "rm no-such-model",
    "stop no-such-model",
    f"run {CHAT} hello --think",
    "run mine hello",
    f"stop {CHAT}",
    "list",
)

_TIMES = re.compile(
    r"((Less than a second|\d+ \w+|About an? \w+)( ago| from now)|Forever|Stopping\.\.\.)$", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Step:
    """One command, and what it said but for times, the name that a runner goes by, and copies of it."""

    words: str
    code: int
    out: str
    err: tuple[str, ...]

    @property
    def rows(self) -> list[list[str]]:
        """The words of its lines."""
        return [line.split() for line in self.out.splitlines() if line.strip()]

    @property
    def error(self) -> str:
        return self.err[-1] if self.code and self.err else ""


Command = Callable[[Sequence[str], Mapping[str, str]], tuple[int, str, str]]
"""Carries out the words of one command, in this environment: exit code, standard output and error."""


def emulated(words: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
    """The emulator's command, in this process: a new one for each would take most of the time."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(words, environment)
    return code, out.getvalue(), err.getvalue()


def of_binary(binary: str) -> Command:
    def carry_out(words: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
        run = subprocess.run(
            [binary, *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SOME_TIME_S,
            check=False,
        )
        return run.returncode, run.stdout, run.stderr

    return carry_out


def session(command: Command, host: str, folder: Path) -> list[Step]:
    """All of it, in a folder of its own and without anything on standard input."""
    folder.mkdir()
    for name, text in MODELFILES.items():
        (folder / name).write_text(text)
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OLLAMA", "EMULATED"))}
    environment = plain | {"OLLAMA_HOST": host, "HOME": str(folder)}
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO())
        return [step(words, *command(words.split(), environment)) for words in SESSION]


def step(words: str, code: int, out: str, err: str) -> Step:
    return Step(words, code, _unnamed(_plain(out)) if words == "ps" else _plain(out), _statuses(err))


def _plain(text: str) -> str:
    """Without times, which also decide how wide their column is."""
    return _TIMES.sub("TIME", re.sub(r" +$", "", text, flags=re.MULTILINE))


def _unnamed(text: str) -> str:
    """Names that share weights share a runner, which Ollama lists under the name that it was first loaded by; and
    three Ollamas may hold more copies than one does."""
    lines = [re.split(r"  +", line) for line in text.splitlines()]
    lines = [[SMALL, *line[2:]] if line[0] in (SMALL, *ALIASES) else line for line in lines]
    return "\n".join(dict.fromkeys("  ".join(line) for line in lines))


def _statuses(text: str) -> tuple[str, ...]:
    """Each line once, without how much there was of it at that moment."""
    return tuple(dict.fromkeys(re.sub(r": \d+%$", "", line) for line in text.splitlines()))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Step]:
    """The session with one emulated Ollama."""
    folder = tmp_path_factory.mktemp("alone")
    with emulator(*MODELS, *SPEED, "--store", str(folder / "models"), "--parallel", str(SLOTS)) as child:
        return session(emulated, child.url, folder / "home")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Three with one store behind a gateway."""
    folder = tmp_path_factory.mktemp("gateway")
    with stack(folder, (*MODELS, *SPEED, "--store", str(folder / "models")), slots=SLOTS) as started:
        yield started
        assert started.at_rest()
        assert started.total("races") == 0


def test_one_ollama_does_what_the_session_asks(alone: list[Step]) -> None:
    by_words = {found.words: found for found in alone}
    wrong = SESSION.index("pull no-such-model")
    assert [found.words for found in alone[:wrong] if found.code] == []
    assert [found.words for found in alone[wrong:-2] if not found.code] == []
    assert by_words["show narrow --parameters"].rows[-1] == ["num_ctx", "2048"]
    assert by_words["pull no-such-model"].error == "Error: pull model manifest: file does not exist"
    assert len(by_words[f"run {SMALL} hello"].out) > 20
    assert alone[-1].out == alone[0].out
    last_ps = max(index for index, found in enumerate(alone) if found.words == "ps")
    assert len(alone[last_ps].rows) == 1


def test_the_gateway_is_one_ollama_to_its_commands(alone: list[Step], gateway: Stack, tmp_path: Path) -> None:
    found = session(emulated, gateway.url, tmp_path / "home")
    for number, (expected, got) in enumerate(zip(alone, found, strict=True)):
        assert got == expected, f"step {number}: ollama {expected.words}"


def test_a_real_ollamas_commands_work_with_the_gateway(alone: list[Step], gateway: Stack, tmp_path: Path) -> None:
    binary = os.environ.get("OLLAMA_BIN")
    if not binary:
        pytest.skip("no real Ollama: set OLLAMA_BIN=/path/to/ollama")
    for expected, got in zip(alone, session(of_binary(binary), gateway.url, tmp_path / "home"), strict=True):
        assert got.code == expected.code, (got, expected)
        assert got.error == expected.error
        if expected.words.startswith(("list", "ps", "rm", "cp", "show")):
            assert got.rows == expected.rows, expected.words
        elif not expected.words.startswith("create"):
            assert got.out.split() == expected.out.split(), expected.words
