"""``ollama``'s commands: which requests they make, what they print, and their errors."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from corral.emulator.cli.modelfile import read_request
from corral.emulator.cli.words import go_duration, human_bytes, human_time, table
from corral.emulator.ollama import main
from tests.conformance.raw import ask
from tests.emulator.child import EmulatorProcess, emulator

MODEL, THINKING, EMBEDDING = "llama3.2:1b", "qwen3:8b", "all-minilm"
SHOWN = {"details": {"family": "llama", "quantization_level": "Q4"}, "capabilities": ["completion"], "model_info": {}}
NAMED = {"model": "", "system": "", "template": "", "verbose": False, "options": None, "name": "m"}
ASKED = NAMED | {"model": "m", "name": ""}
LOADED = {"model": "m", "prompt": "", "suffix": "", "system": "", "template": "", "options": None}


class Recorder(ThreadingHTTPServer):
    """Answers every request with what its path says, and remembers what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answers: dict[str, tuple[int, Any]] = {
            "POST /api/show": (200, SHOWN),
            "GET /api/tags": (200, {"models": []}),
        }

    @property
    def environment(self) -> dict[str, str]:
        return {"OLLAMA_HOST": f"http://127.0.0.1:{self.server_address[1]}"}


class _Handler(BaseHTTPRequestHandler):
    server: Recorder

    def _answer(self) -> None:
        content = self._content()
        what = f"{self.command} {self.path}"
        self.server.asked.append((what, json.loads(content) if content[:1] == b"{" else content or None))
        self.server.headers.append(dict(self.headers))
        status, body = self.server.answers.get(what, (200, {"status": "success"}))
        self.send_response(status)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(json.dumps(body).encode() + b"\n")

    do_GET = do_POST = do_HEAD = do_DELETE = _answer

    def _content(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        return content

    def log_message(self, *arguments: object) -> None:
        return


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with Recorder() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def child() -> Iterator[EmulatorProcess]:
    models = [option for name in (MODEL, THINKING, EMBEDDING) for option in ("--model", name)]
    with emulator(*models, "--speed", "50", "--context-length", "4096") as started:
        yield started


@pytest.fixture(autouse=True)
def no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())


class Said:
    """What one command printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


class Terminal:
    """Runs commands against one server."""

    def __init__(self, capsys: pytest.CaptureFixture[str], environment: dict[str, str]) -> None:
        self._capsys = capsys
        self._environment = environment

    def run(self, *words: str) -> Said:
        self._capsys.readouterr()
        code = main(words, self._environment)
        return Said(code, *self._capsys.readouterr())


@pytest.fixture
def shell(child: EmulatorProcess, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capsys, {"OLLAMA_HOST": child.url})


@pytest.fixture
def recorded(recorder: Recorder, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capsys, recorder.environment)


# -- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("list", [("GET /api/tags", None)]),
        ("ps", [("GET /api/ps", None)]),
        ("show m", [("POST /api/show", NAMED)]),
        ("pull m", [("POST /api/pull", {"model": "", "username": "", "password": "", "name": "m"})]),
        ("push m", [("POST /api/push", {"model": "", "username": "", "password": "", "name": "m"})]),
        ("cp m n", [("POST /api/copy", {"source": "m", "destination": "n"})]),
        ("stop m", [("POST /api/show", ASKED), ("POST /api/generate", LOADED | {"keep_alive": "0s"})]),
        (
            "rm m",
            [
                ("POST /api/show", ASKED),
                ("POST /api/generate", LOADED | {"keep_alive": "0s"}),
                ("DELETE /api/delete", {"model": "", "name": "m"}),
            ],
        ),
        (
            "run m hello there --keepalive 5m --format json --think=false",
            [
                ("POST /api/show", ASKED),
                (
                    "POST /api/generate",
                    LOADED
                    | {"prompt": "hello there", "options": {}, "keep_alive": "5m", "think": False, "format": "json"},
                ),
            ],
        ),
    ],
)
def test_a_command_makes_ollamas_requests_in_its_order(
    recorded: Terminal, recorder: Recorder, words: str, asked: list[tuple[str, Any]]
) -> None:
    recorder.answers["GET /api/ps"] = (200, {"models": []})
    assert recorded.run(*words.split()).code == 0
    assert recorder.asked == [("HEAD /", None), *asked]
    assert {headers["User-Agent"] for headers in recorder.headers} == {"ollama/0.32.15 (amd64 linux) Go/go1.24.1"}


def test_a_model_that_is_not_there_is_pulled_before_it_runs(recorded: Terminal, recorder: Recorder) -> None:
    recorder.answers["POST /api/show"] = (404, {"error": "model 'm' not found"})
    said = recorded.run("run", "m", "hi")
    assert [what for what, _ in recorder.asked] == ["HEAD /", "POST /api/show", "POST /api/pull", "POST /api/show"]
    assert (said.code, said.err.splitlines()[-1]) == (1, "Error: model 'm' not found")


def test_a_model_of_the_cloud_is_neither_loaded_nor_let_go_of(recorded: Terminal, recorder: Recorder) -> None:
    assert recorded.run("stop", "m:cloud").code == 0
    assert [what for what, _ in recorder.asked] == ["HEAD /", "POST /api/show", "POST /api/me"]
    recorder.answers["POST /api/me"] = (401, {"error": "unauthorized", "signin_url": "https://ollama.com/connect?x"})
    said = recorded.run("stop", "m:cloud")
    assert said.code == 0
    assert "https://ollama.com/connect?x" in said.out


def test_a_model_is_created_of_a_file_that_is_sent_once(recorded: Terminal, recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    modelfile = tmp_path / "Modelfile"
    modelfile.write_text(
        'FROM ./m.gguf\nPARAMETER stop "a"\nPARAMETER stop b\nPARAMETER num_ctx 2048\nSYSTEM """One\nTwo"""\n'
    )
    digest = f"sha256:{hashlib.sha256(b'GGUF').hexdigest()}"
    recorder.answers[f"HEAD /api/blobs/{digest}"] = (404, None)
    assert recorded.run("create", "m", "-f", str(modelfile)).code == 0
    body = {
        "model": "m",
        "files": {"m.gguf": digest},
        "system": "One\nTwo",
        "parameters": {"stop": ["a", "b"], "num_ctx": 2048},
    }
    blob = f"/api/blobs/{digest}"
    assert recorder.asked[1:] == [(f"HEAD {blob}", None), (f"POST {blob}", b"GGUF"), ("POST /api/create", body)]
    recorder.answers[f"HEAD {blob}"] = (200, None)
    del recorder.asked[:]
    recorded.run("create", "m", "--file", str(modelfile))
    assert [what for what, _ in recorder.asked] == ["HEAD /", f"HEAD {blob}", "POST /api/create"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("PARAMETER num_ctx 1", "no FROM line"),
        ("FORM m", 'command must be one of "from"'),
        ("FROM m\nPARAMETER speed 1", "unknown parameter 'speed'"),
        ("FROM m\nPARAMETER num_ctx much", "invalid int value [much]"),
    ],
)
def test_a_modelfile_that_cannot_be_read_is_refused_before_anything_is_sent(
    recorded: Terminal, recorder: Recorder, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "Modelfile").write_text(text)
    found = recorded.run("create", "m", "-f", str(tmp_path / "Modelfile"))
    assert found.code == 1
    assert found.err.startswith(f"Error: {said}")
    assert len(recorder.asked) == 1


def test_a_modelfile_may_hold_everything_in_any_case_with_comments(tmp_path: Path) -> None:
    path = tmp_path / "Modelfile"
    path.write_text('# about\nfrom m\n\nTemplate "{{ .Prompt }}"\nLICENSE one\nLICENSE two\nMESSAGE user Hi there\n')
    assert read_request(path, "x").body == {
        "model": "x",
        "from": "m",
        "template": "{{ .Prompt }}",
        "license": ["one", "two"],
        "messages": [{"role": "user", "content": "Hi there"}],
    }


# -- what is printed --------------------------------------------------------------------------------------------------


def test_models_are_listed_in_columns(shell: Terminal, child: EmulatorProcess) -> None:
    lines = shell.run("ls").out.splitlines()
    assert lines[0].split() == ["NAME", "ID", "SIZE", "MODIFIED"]
    digests = {model["name"]: model["digest"] for model in ask(child.url, "GET", "/api/tags").json()["models"]}
    row = next(line for line in lines if line.startswith(MODEL))
    assert row.split()[:4] == [MODEL, digests[MODEL][:12], "810", "MB"]
    assert row.rstrip().endswith(" ago")
    assert [line.index("ID") for line in lines[:1]] == [row.index(digests[MODEL][:12])]
    assert len(shell.run("list", "llama").out.splitlines()) == 2


def test_what_is_in_memory_is_listed_in_columns(shell: Terminal) -> None:
    shell.run("run", MODEL, "hi", "--keepalive", "1h")
    header, row = shell.run("ps", MODEL).out.splitlines()
    assert header.split() == ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"]
    assert row.split()[:1] + row.split()[4:7] == [MODEL, "100%", "GPU", "4096"]
    assert row.rstrip().endswith(" from now")
    assert shell.run("stop", MODEL).code == 0
    assert len(shell.run("ps", MODEL).out.splitlines()) == 1


def test_an_answer_is_printed_as_it_comes_and_summed_up(shell: Terminal, child: EmulatorProcess) -> None:
    whole = ask(child.url, "POST", "/api/generate", {"model": MODEL, "prompt": "hi", "stream": False}).json()
    said = shell.run("run", MODEL, "hi", "--verbose")
    assert said.out == whole["response"] + "\n\n"
    labels = [line.partition(":")[0] for line in said.err.splitlines()]
    assert labels == [
        "total duration",
        "load duration",
        "prompt eval count",
        "prompt eval duration",
        "prompt eval rate",
        "eval count",
        "eval duration",
        "eval rate",
    ]


def test_standard_input_comes_before_the_prompt(
    shell: Terminal, child: EmulatorProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("read this"))
    whole = ask(child.url, "POST", "/api/generate", {"model": MODEL, "prompt": "read this now", "stream": False}).json()
    assert shell.run("run", MODEL, "now").out == whole["response"] + "\n\n"


def test_thinking_stands_between_its_marks_or_is_hidden(shell: Terminal) -> None:
    shown = shell.run("run", THINKING, "hi").out
    assert shown.startswith("Thinking...\n")
    answer = shown.partition("\n...done thinking.\n\n")[2]
    assert answer
    assert shell.run("run", THINKING, "hi", "--hidethinking").out == answer


def test_an_embedding_is_one_line_of_numbers(shell: Terminal) -> None:
    assert len(json.loads(shell.run("run", EMBEDDING, "hi").out)) == 384
    assert len(json.loads(shell.run("run", EMBEDDING, "hi", "--dimensions", "5").out)) == 5
    assert shell.run("run", EMBEDDING).err.startswith("Error: embedding models require input text.")


def test_a_model_is_shown_in_sections_or_one_aspect_of_it(shell: Terminal, child: EmulatorProcess) -> None:
    shown = shell.run("show", MODEL).out
    assert [line for line in shown.splitlines() if line[:3].strip()] == [
        "  Model",
        "  Capabilities",
        "  Parameters",
        "  License",
    ]
    assert "    context length      131072    \n" in shown
    found = ask(child.url, "POST", "/api/show", {"model": MODEL}).json()
    assert shell.run("show", MODEL, "--modelfile").out == found["modelfile"] + "\n"
    assert shell.run("show", MODEL, "--template").out == found["template"]
    assert shell.run("show", "--license", MODEL).out == found["license"] + "\n"
    assert "general.architecture" in shell.run("show", MODEL, "-v").out


def test_a_model_is_made_run_and_removed(shell: Terminal, tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text(f"FROM {MODEL}\nPARAMETER num_ctx 1024\nSYSTEM Be brief.\n")
    assert shell.run("create", "brief", "-f", str(tmp_path / "Modelfile")).err.splitlines()[-1] == "success"
    assert shell.run("show", "brief", "--system").out == "Be brief."
    assert shell.run("cp", "brief", "short").out == "copied 'brief' to 'short'\n"
    assert shell.run("run", "short", "hi").code == 0
    assert shell.run("ps", "short").out.splitlines()[1].split()[6] == "1024"
    assert shell.run("rm", "brief", "short").out == "deleted 'brief'\ndeleted 'short'\n"
    assert shell.run("ps", "short").out.count("\n") == 1


def test_a_pull_tells_its_steps_on_standard_error(shell: Terminal) -> None:
    said = shell.run("pull", "smollm2:135m")
    assert (said.code, said.out) == (0, "")
    assert said.err.splitlines()[0] == "pulling manifest"
    assert said.err.splitlines()[-1] == "success"
    assert shell.run("push", "smollm2:135m").out.endswith("https://ollama.com/smollm2:135m\n")
    assert shell.run("rm", "smollm2:135m").code == 0


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("pull nope", "pull model manifest: file does not exist"),
        ("run nope hi", "pull model manifest: file does not exist"),
        ("show nope", "model 'nope' not found"),
        ("rm nope", "model 'nope' not found"),
        ("cp nope new", 'model "nope" not found'),
        ("stop nope", 'couldn\'t find model "nope" to stop'),
        ("create new -f nowhere", "specified Modelfile wasn't found"),
        ("create ?? -f nowhere", "invalid model name: ??"),
        ("push nope", "couldn't retrieve manifest for nope"),
        (f"run {MODEL} hi --think", f'400 Bad Request: "{MODEL}" does not support thinking'),
        (f"run {MODEL} hi --keepalive soon", 'time: invalid duration "soon"'),
        (f"run {MODEL} hi --think=perhaps", 'invalid value for --think: "perhaps" (must be true, false, high,'),
        (f"show {MODEL} --license --system", "only one of '--license', '--modelfile', '--parameters', '--system', or"),
        ("run", "requires at least 1 arg(s), only received 0"),
        ("cp one", "accepts 2 arg(s), received 1"),
        ("list one two", "accepts at most 1 arg(s), received 2"),
        (f"run {MODEL} hi --gpus all", "unknown flag: --gpus"),
        (f"run {MODEL} hi -x", "unknown shorthand flag: 'x' in -x"),
        (f"run {MODEL} --format", "flag needs an argument: --format"),
        ("--gpus", "unknown flag: --gpus"),
    ],
)
def test_an_error_is_the_last_line_and_exit_code_one(shell: Terminal, words: str, error: str) -> None:
    said = shell.run(*words.split())
    assert said.code == 1
    assert said.err.splitlines()[-1].startswith(f"Error: {error}")
    assert said.out == ""


def test_without_a_server_it_says_how_to_start_one(capsys: pytest.CaptureFixture[str]) -> None:
    said = Terminal(capsys, {"OLLAMA_HOST": "127.0.0.1:1"}).run("list")
    hint = "could not connect to ollama server, run 'ollama serve' to start it"
    assert (said.code, said.err) == (1, f"Error: ollama server not responding - {hint}\n")


@contextmanager
def at_terminal(child: EmulatorProcess, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The command as a person at a terminal has it."""
    own, other = pty.openpty()
    command = [sys.executable, "-m", "corral.emulator.ollama", *words]
    environment = {**os.environ, "OLLAMA_HOST": child.url}
    with subprocess.Popen(command, stdin=other, stdout=other, stderr=other, env=environment) as process:
        os.close(other)
        try:
            yield process, own
        finally:
            process.kill()
            os.close(own)


def read_until(terminal: int, mark: bytes, times: int) -> bytes:
    seen, end = b"", time.monotonic() + 20
    while seen.count(mark) < times:
        assert time.monotonic() < end, seen
        seen += os.read(terminal, 4096)
    return seen


def test_at_a_terminal_it_loads_the_model_and_converses(child: EmulatorProcess) -> None:
    with at_terminal(child, "run", MODEL) as (process, terminal):
        read_until(terminal, b">>> ", 1)
        assert MODEL in [model["name"] for model in ask(child.url, "GET", "/api/ps").json()["models"]]
        os.write(terminal, b"hi\n")
        said = read_until(terminal, b">>> ", 1)
        messages = [{"role": "user", "content": "hi"}]
        whole = ask(child.url, "POST", "/api/chat", {"model": MODEL, "messages": messages, "stream": False}).json()
        assert whole["message"]["content"].encode() in said
        os.write(terminal, b"/bye\n")
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "0 B"),
        (384, "384 B"),
        (1000, "1 KB"),
        (45_960_996, "45 MB"),
        (1_321_098_329, "1.3 GB"),
        (42_520_413_916, "42 GB"),
    ],
)
def test_sizes_are_told_as_ollama_tells_them(size: int, said: str) -> None:
    assert human_bytes(size) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.5, "Less than a second ago"),
        (1.2, "1 second ago"),
        (59, "59 seconds ago"),
        (100, "About a minute ago"),
        (1800, "30 minutes ago"),
        (3700, "About an hour ago"),
        (86_400, "24 hours ago"),
        (86_400 * 3, "3 days ago"),
        (86_400 * 30, "4 weeks ago"),
        (86_400 * 100, "3 months ago"),
        (86_400 * 365 * 3, "3 years ago"),
        (-290, "4 minutes from now"),
        (-86_400 * 365 * 100, "Forever"),
    ],
)
def test_times_are_told_as_ollama_tells_them(seconds: float, said: str) -> None:
    now = datetime(2026, 8, 21, 12, tzinfo=UTC)
    assert human_time((now - timedelta(seconds=seconds)).isoformat(), now) == said
    assert human_time("0001-01-01T00:00:00Z", now) == "Never"
    assert human_time("2026-08-21T12:00:00.123456789+00:00", now) == "Less than a second from now"


@pytest.mark.parametrize(
    ("nanoseconds", "said"),
    [
        (0, "0ns"),
        (1500, "1.5µs"),
        (70_998_167, "70.998167ms"),
        (1_000_000_000, "1s"),
        (61_500_000_000, "1m1.5s"),
        (3_600_000_000_000, "1h0m0s"),
    ],
)
def test_durations_are_told_as_go_tells_them(nanoseconds: int, said: str) -> None:
    assert go_duration(nanoseconds) == said


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert table(("A", "B"), [("long", "x")]) == "A       B    \nlong    x    \n"
