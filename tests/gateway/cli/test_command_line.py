"""The frame of the command line: help, errors, colour, exit codes."""

from __future__ import annotations

import asyncio
import gc
import os
import pty
import re
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import click
import pytest

from corral import __version__
from corral.gateway.cli import table
from corral.gateway.cli.options import no_garbage
from corral.gateway.cli.table import COMMANDS
from tests.gateway.cli.shell import CORRAL, corral, environment

HEAVY = (
    *("aiohttp", "uvloop", "msgspec", "yaml", "prometheus_client", "asyncio", "pynvml"),
    *("rich", "textual", "opentelemetry", "dns", "http", "ssl"),
)


async def test_help_names_every_command_and_how_to_begin() -> None:
    ended = await corral("--help")
    assert ended.code == 0
    assert "corral demo" in ended.out
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", ended.out, re.MULTILINE)


async def test_corral_alone_does_what_fits_as_up_does_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "corral.yaml").write_text("replicas: []\n")
    alone, up = await corral(cwd=tmp_path), await corral("up", cwd=tmp_path)
    assert (alone.code, alone.err) == (up.code, up.err) == (78, up.err)
    assert alone.out == f"`corral` alone does what `corral up` does; `corral --help` shows all commands.\n\n{up.out}"


def test_help_imports_nothing_heavy() -> None:
    script = "import sys; from corral.gateway.cli.entry import run; run(['--help']); print(*sys.modules)"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    loaded = {name.partition(".")[0] for name in child.stdout.splitlines()[-1].split()}
    assert loaded.isdisjoint(HEAVY)


def test_a_gateway_can_listen_before_what_is_heavy_is_imported() -> None:
    """Who connects meanwhile waits, instead of being refused."""
    script = """
import os, sys
from corral.gateway.cli.serve import serve
from corral.gateway.config import Address, Config
from corral.gateway.sockets import both_listening
with both_listening(Config(listen=Address("127.0.0.1", 0), admin_listen=Address("127.0.0.1", 0)), os.environ):
    print(*sys.modules)
"""
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    loaded = {name.partition(".")[0] for name in child.stdout.split()}
    assert loaded.isdisjoint({"aiohttp", "uvloop", "asyncio", "prometheus_client", "rich", "http", "ssl"})


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


@pytest.mark.parametrize(
    "words",
    [
        *("check-config", "config show", "policy list", "policy show", "plan", "doctor", "status", "explain", "top"),
        *("requests", "logs", "info", "models list", "models place", "connect"),
    ],
)
def test_every_command_that_reads_can_print_json(words: str) -> None:
    command: click.Command | None = table.corral
    for word in words.split():
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), word)
    assert command is not None
    assert any("--json" in param.opts for param in command.params)


@pytest.mark.parametrize("was_looked_for", [True, False])
def test_garbage_is_looked_for_again_after_an_import_as_it_was_before(was_looked_for: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if was_looked_for else gc.disable)()
        with suppress(ImportError), no_garbage():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() is was_looked_for
    finally:
        (gc.enable if before else gc.disable)()


async def test_version() -> None:
    assert (await corral("--version")).out == f"corral {__version__}\n"


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (["serv"], "error: no command 'serv'; did you mean 'serve'?\n  see: corral --help\n"),
        (["qqq"], "error: no command 'qqq'; known: serve, demo"),
        (["undrain", "a"], "error: no command 'undrain'; did you mean 'resume'?"),
        (["pull", "m"], "error: no command 'pull'; did you mean 'models pull'?"),
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
