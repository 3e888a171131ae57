"""Completion in the shells themselves: what a person gets who presses Tab."""

from __future__ import annotations

import asyncio
import os
import pty
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from select import select

import pytest
import pytest_asyncio
from aiohttp import web

from corral.gateway.cli.completion import behind_break, line_before_cursor
from tests.gateway.cli.shell import Ended, corral, environment

MODELS = ("llama3.2:1b", "llama3.2:3b", "all-minilm:22m", "it's $(odd)")
LIMIT_S = 20.0


@pytest_asyncio.fixture
async def admin() -> AsyncIterator[str]:
    """An admin port that has models and replicas."""

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"schema": 1, "models": [{"name": name, "digest": "x"} for name in MODELS]})

    async def snapshot(request: web.Request) -> web.Response:
        return web.json_response({"schema": 1, "replicas": [{"id": "gpu0"}, {"id": "gpu1"}]})

    app = web.Application()
    app.add_routes([web.get("/models", models), web.get("/snapshot", snapshot)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
def around(tmp_path: Path, admin: str) -> dict[str, str]:
    """An environment in which ``corral`` is a command."""
    program = tmp_path / "corral"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m corral "$@"\n')
    program.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    return environment(PATH=path, HOME=str(tmp_path), TERM="dumb", PS1="> ", CORRAL_ADMIN=admin)


class Terminal:
    """A shell that a person types into."""

    def __init__(self, line: list[str], around: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            line, stdin=theirs, stdout=theirs, stderr=theirs, env=around, start_new_session=True
        )
        os.close(theirs)

    def type(self, text: str, until: str) -> str:
        """What is seen from here on until ``until`` is."""
        os.write(self._ours, text.encode())
        seen, deadline = "", time.monotonic() + LIMIT_S
        while until not in seen and time.monotonic() < deadline:
            if select([self._ours], [], [], 0.1)[0]:
                seen += os.read(self._ours, 65_536).decode(errors="replace")
        assert until in seen, seen
        return seen

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


BEGIN = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(corral completion bash)"; echo rea""dy\n'),
    "zsh": (
        ["zsh", "-f", "-i"],
        'autoload -U compinit; compinit -u -D; eval "$(corral completion zsh)"; echo rea""dy\n',
    ),
}
TYPED = [
    ("corral dra\t", "corral drain"),
    ("corral drain gpu1\t", "corral drain gpu1"),
    ("corral models rm llama3.2:3\t", "corral models rm llama3.2:3b"),
    ("corral models rm llama3.2:1b al\t", "corral models rm llama3.2:1b all-minilm:22m"),
]


@pytest.mark.parametrize("shell", BEGIN)
async def test_tab_completes_commands_replicas_and_models_with_their_colons(shell: str, around: dict[str, str]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs the Debian package {shell}")
    line, begin = BEGIN[shell]
    terminal = Terminal(line, around)
    try:
        await asyncio.to_thread(terminal.type, begin, "\nready")
        for typed, completed in TYPED:
            # the rest of the line turns what was typed into the words of an `echo`, so that nothing is run
            await asyncio.to_thread(terminal.type, f"{typed}\x01echo 'said' \n", f"said {completed}\r\n")
    finally:
        terminal.close()


async def test_fish_completes_the_same_and_shows_what_commands_do(around: dict[str, str]) -> None:
    if shutil.which("fish") is None:
        pytest.skip("needs the Debian package fish")
    script = (
        "corral completion fish | source; complete -C 'corral models rm llama3.2:'; complete -C 'corral drain gpu';"
        "complete -C 'corral dra'"
    )
    child = await asyncio.create_subprocess_exec(
        "fish", "-c", script, env=around, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(child.communicate(), LIMIT_S)
    assert out.decode().splitlines() == [
        *("llama3.2:1b", "llama3.2:3b", "gpu0", "gpu1"),
        "drain\tSend no new requests to one replica.",
    ]


async def completed(line: str, admin: str, **more: str) -> Ended:
    """As bash asks with the cursor at the end of the line."""
    asked = {"_CORRAL_COMPLETE": "bash_complete", "COMP_LINE": line, "COMP_POINT": str(len(line.encode()))}
    return await corral(**asked, **more, CORRAL_ADMIN=admin)


async def test_a_name_that_a_shell_would_read_otherwise_is_not_offered(admin: str) -> None:
    assert (await completed("corral models rm ", admin)).out.split() == [f"plain,{name}" for name in MODELS[:3]]


async def test_without_a_gateway_nothing_is_completed_and_nothing_said() -> None:
    ended = await completed("corral models rm l", "http://127.0.0.1:1")
    assert (ended.code, ended.out.strip(), ended.err) == (0, "", "")


async def test_a_gateway_that_does_not_answer_is_not_waited_for() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        ended = await completed("corral drain ", f"http://127.0.0.1:{port}")
    assert (ended.code, ended.out.strip(), ended.err) == (0, "", "")


async def test_options_of_a_command_and_files_are_completed(admin: str) -> None:
    assert (await completed("corral models pull --de", admin)).out.split() == ["plain,--detach", "plain,--debug"]
    assert (await completed("corral serve --config x", admin)).out.split() == ["file,x"]
    assert (await completed("corral man corral.", admin)).out.split() == ["plain,corral.yaml"]
    assert (await completed("corral completion ", admin)).out.split() == ["plain,bash", "plain,zsh", "plain,fish"]


def test_the_line_is_read_up_to_the_cursor_which_counts_bytes() -> None:
    line = "corral models rm ü llama3.2:1 tail"
    at = len("corral models rm ü llama3.2:1".encode())
    assert line_before_cursor({"COMP_LINE": line, "COMP_POINT": str(at)}) == (["models", "rm", "ü"], "llama3.2:1")
    assert line_before_cursor({"COMP_LINE": "corral ", "COMP_POINT": "7"}) == ([], "")


@pytest.mark.parametrize(
    ("value", "incomplete", "breaks", "wanted"),
    [
        ("llama3.2:1b", "llama", ":=", "llama3.2:1b"),
        ("llama3.2:1b", "llama3.2:", ":=", "1b"),
        ("hf.co/a/b:Q4:x", "hf.co/a/b:Q4:", ":=", "x"),
        ("llama3.2:1b", "llama3.2:", " ", "llama3.2:1b"),
        ("random", "--policy=ra", ":=", "random"),
        ("random", "--policy=ra", ":", "--policy=random"),
        ("a:b", "--policy=a:", ":=", "b"),
    ],
)
def test_bash_gets_what_belongs_behind_its_last_break(value: str, incomplete: str, breaks: str, wanted: str) -> None:
    assert behind_break(value, incomplete, breaks) == wanted


async def test_a_shell_that_is_not_known_is_said(tmp_path: Path) -> None:
    ended = await corral("completion", SHELL="/bin/tcsh")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: which shell? known: bash, zsh, fish")
    assert (await corral("completion", SHELL="/usr/bin/zsh")).out.startswith("#compdef corral")
