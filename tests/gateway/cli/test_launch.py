"""``corral connect`` and ``corral launch``: what is said is what programs obey, and no file of theirs is spoiled."""

from __future__ import annotations

import io
import json
import os
import shlex
import stat
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from corral.errors import OperatorError
from corral.gateway.cli.clients import CLIENTS
from corral.gateway.cli.entry import run
from corral.gateway.cli.settings_file import carry_out, merged
from tests.gateway.cli.shell import Ended, corral

URL = "http://127.0.0.1:9"
"""Nothing answers there."""


Connect = Callable[..., Ended]


@pytest.fixture
def connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Connect:
    """``connect("claude", "--write")`` in this process, for a person whose home is ``tmp_path``."""

    def run_here(client: str, *more: str) -> Ended:
        monkeypatch.setenv("HOME", str(tmp_path))
        code = run(["connect", client, "--url", URL, "--model", "m:1", *more])
        return Ended(code, *capsys.readouterr())

    return run_here


@pytest.mark.parametrize("client", CLIENTS)
def test_each_client_is_told_the_address_and_where_that_is_from(client: str, tmp_path: Path, connect: Connect) -> None:
    ended = connect(client)
    assert (ended.code, ended.err) == (0, "")
    assert "127.0.0.1:9" in ended.out
    source = CLIENTS[client].source
    assert (f"As {source} describes it; not tried with the program itself." in ended.out) == bool(source)
    page = json.loads((connect(client, "--json")).out)
    assert (page["schema"], page["client"], page["url"], page["model"]) == (1, client, URL, "m:1")
    assert page["env"] or page["command"] or page["file"] or page["text"]
    assert not list(tmp_path.iterdir())


SEEN = {
    "openai": ("import openai; c = openai.OpenAI(); print(c.base_url, c.api_key)", f"{URL}/v1/ corral"),
    "anthropic": ("import anthropic; c = anthropic.Anthropic(); print(c.base_url, c.api_key)", f"{URL} corral"),
    "python": ("import ollama; print(ollama.Client()._client.base_url)", URL),
}


@pytest.mark.parametrize("client", SEEN)
async def test_the_libraries_do_what_the_variables_say(client: str) -> None:
    script, seen = SEEN[client]
    line = ("launch", client, "--url", URL, "--model", "m:1", "--", sys.executable, "-W", "ignore", "-c", script)
    ended = await corral(*line)
    assert ended.out.strip() == seen, ended.err


async def test_launch_runs_the_program_with_its_arguments_and_ends_as_it_does(tmp_path: Path) -> None:
    program = tmp_path / "claude"
    program.write_text('#!/bin/sh\necho "$ANTHROPIC_BASE_URL|$ANTHROPIC_API_KEY|$*"\nexit 7\n')
    program.chmod(0o755)
    line = ("launch", "claude", "--url", URL, "--model", "m:1", "--", "-p", "two words")
    ended = await corral(*line, PATH=f"{tmp_path}:{os.environ['PATH']}", ANTHROPIC_API_KEY="sk-secret")
    assert (ended.code, ended.out) == (7, f"{URL}||--model m:1 -p two words\n")


async def test_a_program_that_is_missing_is_said_with_what_to_do() -> None:
    ended = await corral("launch", "aider", "--url", URL, "--model", "m:1", PATH="/nowhere")
    assert ended.code == 1
    assert ended.err == "error: no program 'aider' was found; `corral connect aider` says what to set by hand\n"


def test_exported_lines_are_read_by_a_shell_and_are_all_that_is_printed(tmp_path: Path, connect: Connect) -> None:
    ended = connect("claude", "--export")
    words = [shlex.split(line) for line in ended.out.splitlines()]
    assert {word[0] for word in words} == {"export"}
    assert ["export", f"ANTHROPIC_BASE_URL={URL}"] in words


async def test_without_a_gateway_the_page_is_shown_all_the_same_and_that_is_said(tmp_path: Path) -> None:
    ended = await corral("connect", "ollama", "--url", "127.0.0.1:1", HOME=str(tmp_path))
    assert ended.code == 0
    assert ended.err == "nothing answers on http://127.0.0.1:1 yet: `corral serve` (or --url URL)\n"
    assert "ollama run llama3.1:8b" in ended.out


@pytest.mark.parametrize("url", ["https://x", "http://", "http://a:99999", "http://a/b", "http://a'b", "http://$(id)"])
def test_what_is_no_address_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["connect", "curl", "--url", url]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "is not an address" in err


def test_a_name_that_would_break_out_of_a_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["connect", "curl", "--url", URL, "--model", "x'; rm -rf ~; '"]) == 1
    assert "cannot be the name of a model" in capsys.readouterr().err


def test_the_nearest_client_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["connect", "claud"]) == 2
    assert "'claude'" in capsys.readouterr().err


def test_a_container_gets_a_name_for_this_machine_and_no_other_for_another_one() -> None:
    here, there = (CLIENTS["openwebui"].make(url, "m:1") for url in ("http://127.0.0.1:11434", "http://gpu-box:11434"))
    assert "-e OLLAMA_BASE_URL=http://host.docker.internal:11434 " in here.text
    assert "--add-host=host.docker.internal:host-gateway" in here.text
    assert any("listen: 172.17.0.1:11434" in note for note in here.notes)
    assert "-e OLLAMA_BASE_URL=http://gpu-box:11434 " in there.text
    assert "host-gateway" not in there.text


def test_the_file_of_codex_is_toml() -> None:
    file = CLIENTS["codex"].make(URL, "m:1").file
    assert file is not None
    assert tomllib.loads(file.by_hand)["model_providers"]["corral"]["base_url"] == f"{URL}/v1"


# -- files ------------------------------------------------------------------------------------------------------------


def settings(folder: Path, text: str) -> Path:
    path = folder / ".claude" / "settings.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_write_shows_the_change_keeps_the_rest_and_a_copy_of_the_old_file(tmp_path: Path, connect: Connect) -> None:
    old = '{\n    "theme": "dark",\n    "env": {\n        "OTHER": "ü",\n        "ANTHROPIC_MODEL": "x"\n    }\n}\n'
    path = settings(tmp_path, old)
    path.chmod(0o640)
    ended = connect("claude", "--write", "--yes")
    assert (ended.code, ended.err) == (0, "")
    assert '-        "ANTHROPIC_MODEL": "x"' in ended.out
    assert f'+        "ANTHROPIC_BASE_URL": "{URL}",' in ended.out
    now = json.loads(path.read_text())
    assert (now["theme"], now["env"]["OTHER"], now["env"]["ANTHROPIC_MODEL"]) == ("dark", "ü", "m:1")
    assert '\n    "theme"' in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    copy = path.with_name("settings.json.before-corral")
    assert copy.read_text() == old
    assert sorted(each.name for each in path.parent.iterdir()) == ["settings.json", copy.name]
    again = connect("claude", "--write", "--yes")
    assert again.out == f"{path} says so already\n"


def test_write_asks_and_no_answer_is_no(tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    path = settings(tmp_path, "{}\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    ended = connect("claude", "--write")
    assert path.read_text() == "{}\n"
    assert ended.code != 0


def test_a_file_that_cannot_be_read_is_left_alone_and_what_to_add_is_said(tmp_path: Path, connect: Connect) -> None:
    text = '{\n  // my comment\n  "theme": "dark"\n}\n'
    path = settings(tmp_path, text)
    ended = connect("claude", "--write", "--yes")
    assert ended.code == 1
    assert path.read_text() == text
    assert "is not touched, since it cannot be read as plain JSON" in ended.err
    assert f'"ANTHROPIC_BASE_URL": "{URL}"' in ended.err


def test_continue_gets_its_model_beside_those_it_has(tmp_path: Path, connect: Connect) -> None:
    path = tmp_path / ".continue" / "config.yaml"
    first = connect("continue", "--write", "--yes")
    assert first.code == 0, first.err
    assert yaml.safe_load(path.read_text())["models"][0]["apiBase"] == URL
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("name: Mine\nmodels:\n- name: other\n  provider: x\n- name: m:1 (Corral)\n  apiBase: old\n")
    assert (connect("continue", "--write", "--yes")).code == 0
    now = yaml.safe_load(path.read_text())
    assert now["name"] == "Mine"
    assert [(each["name"], each.get("apiBase")) for each in now["models"]] == [("other", None), ("m:1 (Corral)", URL)]


def test_comments_in_yaml_would_be_lost_so_the_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("name: x  # mine\n")
    with pytest.raises(OperatorError, match="it has comments, which would be lost"):
        merged(path, "yaml", {"models": []})


def test_a_link_stays_a_link_and_a_second_copy_gets_another_name(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("{}")
    link.symlink_to(real)
    for number in range(2):
        carry_out(merged(link, "json", {"a": number}))
    assert link.is_symlink()
    assert json.loads(real.read_text()) == {"a": 1}
    assert json.loads((tmp_path / "real.json.before-corral-2").read_text()) == {"a": 0}


def test_a_file_that_was_changed_meanwhile_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text("{}")
    change = merged(path, "json", {"a": 1})
    path.write_text('{"b": 2}')
    with pytest.raises(OperatorError, match="was changed meanwhile"):
        carry_out(change)
    assert json.loads(path.read_text()) == {"b": 2}


@pytest.mark.parametrize("text", ["[1]", '"x"', "nonsense"])
def test_what_holds_no_settings_by_name_is_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(OperatorError, match="is not touched"):
        merged(path, "json", {"a": 1})


@pytest.mark.parametrize(("there", "wanted"), [({"env": ["a"]}, {"env": {"A": "1"}}), ({"models": {}}, {"models": []})])
def test_where_something_else_stands_in_its_place_nothing_is_written(
    there: dict[str, object], wanted: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps(there))
    with pytest.raises(OperatorError, match="of another kind than expected"):
        merged(path, "json", wanted)


def test_a_confirmed_change_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert run(["connect", "zed", "--url", URL, "--model", "m:1", "--write"]) == 0
    written = json.loads((tmp_path / ".config/zed/settings.json").read_text())
    assert written == {"language_models": {"ollama": {"api_url": URL}}}
    assert capsys.readouterr().out.endswith("settings.json\n")
