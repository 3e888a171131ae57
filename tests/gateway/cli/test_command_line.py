"""The frame of the command line: help, errors, colour, exit codes."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import resource
import subprocess
import sys

import pytest

from corral import __version__
from corral.gateway.cli.table import COMMANDS
from tests.gateway.cli.shell import CORRAL, corral, environment

HEAVY = ("aiohttp", "uvloop", "msgspec", "yaml", "prometheus_client", "asyncio", "pynvml")


async def test_help_names_every_command_and_how_to_begin() -> None:
    ended = await corral("--help")
    assert ended.code == 0
    assert "corral demo" in ended.out
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", ended.out, re.MULTILINE)


async def test_corral_alone_shows_the_help() -> None:
    assert (await corral()).out == (await corral("--help")).out


def test_help_imports_nothing_heavy() -> None:
    script = "import sys; from corral.gateway.cli.entry import run; run(['--help']); print(*sys.modules)"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    loaded = {name.partition(".")[0] for name in child.stdout.splitlines()[-1].split()}
    assert loaded.isdisjoint(HEAVY)


def test_help_takes_at_most_150_ms() -> None:
    def cpu_s() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*CORRAL, "--help"], capture_output=True, check=True, timeout=30)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cpu_s() for _ in range(5)) <= 0.150  # of the processor: a busy machine does not make Corral slow


@pytest.mark.parametrize("name", COMMANDS)
async def test_every_command_has_a_help_with_an_example_and_debug(name: str) -> None:
    ended = await corral(name, "--help")
    assert ended.code == 0
    assert ended.err == ""
    assert "Example" in ended.out
    assert f"corral {name}" in ended.out.partition("Example")[2]
    assert "--debug" in ended.out


async def test_version() -> None:
    assert (await corral("--version")).out == f"corral {__version__}\n"


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (["serv"], "error: no command 'serv'; did you mean 'serve'?\n  see: corral --help\n"),
        (["qqq"], "error: no command 'qqq'; known: serve, demo"),
        (["serve", "--confg", "x"], "error: no such option '--confg'. Did you mean '--config'?\n  see: corral serve"),
        (["drain"], "error: missing argument 'ID'.\n  see: corral drain --help\n"),
        (["demo", "--speed", "fast"], "error: invalid value for '--speed': 'fast' is not a valid float"),
        (["demo", "--listen", "11434"], "error: invalid value for --listen: has no port"),
    ],
)
async def test_a_mistyped_line_is_answered_with_what_was_meant(args: list[str], wanted: str) -> None:
    ended = await corral(*args)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(wanted)


async def test_an_error_is_one_line_and_a_traceback_only_with_debug_before_or_after_the_command() -> None:
    plain = await corral("check-config", "/nowhere/corral.yaml")
    assert plain.code == 78
    assert plain.err.startswith("error: /nowhere/corral.yaml: no such file")
    assert plain.err.count("\n") == 1
    for args in (["--debug", "check-config", "/nowhere"], ["check-config", "/nowhere", "--debug"]):
        assert "Traceback" in (await corral(*args)).err


async def test_a_reader_that_goes_away_is_no_error() -> None:
    child = subprocess.Popen([*CORRAL, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    error = await asyncio.to_thread(child.stderr.read)
    child.stderr.close()
    assert child.wait(30) in (0, 1)
    assert error == b""


def on_a_terminal(*args: str, **env: str) -> str:
    """What a person sees whose terminal both outputs are."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen([*CORRAL, *args], stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**env))
    os.close(theirs)
    seen = b""
    try:
        while part := os.read(ours, 65_536):
            seen += part
    except OSError:  # the last writer closed its end
        pass
    child.wait(30)
    os.close(ours)
    return seen.decode()


def test_colour_is_for_terminals_and_not_for_those_who_want_none() -> None:
    assert "\x1b[" in on_a_terminal("qqq")
    assert "\x1b[" not in on_a_terminal("qqq", NO_COLOR="1")


async def test_pipes_get_no_colour() -> None:
    assert "\x1b[" not in (await corral("qqq")).err
