"""``corral init``: what it finds, what it asks, and that what it writes can be used."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from corral.emulator.nvml.build import build
from corral.emulator.nvml.machines import nvlink_pairs
from corral.emulator.nvml.state import write_machine
from corral.errors import OperatorError
from corral.gateway.cli.init import Found, answered, large_models
from corral.gateway.cli.init_file import Answers, file_text
from corral.gateway.config import Config, parse_config
from corral.gateway.layout.plan import StoredModel
from tests.emulator.ollama_binary import make_ollama
from tests.gateway.cli.shell import CORRAL, corral, environment
from tests.gateway.layout import machines

BOX = Found(gpus=("GPU 0: RTX 4090, 24 GiB", "GPU 1: RTX 4090, 24 GiB"), program="/usr/bin/ollama (version 0.32.15)")
OLLAMA = ("http://127.0.0.1:11434", "0.32.15")


def asked(found: Found, *said: str) -> tuple[Answers, str]:
    """What is made of these answers, and what was asked; an answer too many or too few is an error."""
    with CliRunner().isolation(input="".join(f"{line}\n" for line in said)) as (_, err, _):
        answers = answered(found, ask=True)
        with pytest.raises(EOFError):
            input()  # nothing is left
        return answers, err.getvalue().decode()


def test_where_all_is_found_only_who_may_connect_is_asked() -> None:
    answers, questions = asked(BOX, "")
    assert (answers.host, answers.urls, answers.gpus) == ("127.0.0.1", (), BOX.gpus)
    assert questions.count("?") == 1
    assert asked(BOX, "y")[0].host == "0.0.0.0"


def test_an_ollama_that_runs_may_stay_behind_corral_or_give_way_to_one_per_gpu() -> None:
    found = replace(BOX, running=(OLLAMA,))
    assert asked(found, "", "")[0].urls == ()
    answers, questions = asked(found, "", "y")
    assert "Stand in front of what runs already (http://127.0.0.1:11434)?" in questions
    assert (answers.urls, answers.port, answers.admin_port) == (("http://127.0.0.1:11434",), 11444, 11445)
    one_each = replace(found, running=(("http://127.0.0.1:21001", "1"), ("http://127.0.0.1:21002", "1")))
    both = asked(one_each, "", "")[0]
    assert (both.urls, both.port) == (("http://127.0.0.1:21001", "http://127.0.0.1:21002"), 11434)


def test_where_there_is_no_ollama_others_are_asked_for_and_then_the_program() -> None:
    answers, questions = asked(Found(), "", "gpu-box:11434 http://10.0.0.2:21001")
    assert answers.urls == ("http://gpu-box:11434", "http://10.0.0.2:21001")
    assert "URLs of Ollamas elsewhere" in questions
    assert asked(Found(), "", "", "/opt/ollama")[0].program == "/opt/ollama"
    assert asked(Found(), "", "", "")[0].program is None
    with pytest.raises(OperatorError, match="'https://x' is not the URL of an Ollama"):
        asked(Found(), "", "https://x")


def test_models_too_big_for_one_gpu_get_a_group_if_the_person_agrees() -> None:
    found = replace(BOX, large_models=("llama3.1:70b",))
    answers, questions = asked(found, "", "")
    assert "Too big for one GPU: llama3.1:70b" in questions
    assert answers.large_models == ("llama3.1:70b",)
    assert asked(found, "", "n")[0].large_models == ()


def test_a_model_is_large_where_no_gpu_holds_it_and_all_together_do() -> None:
    facts = machines.four_in_pairs()
    sizes = {"small:1": 4 << 30, "large:1": 40 << 30, "giant:1": 900 << 30}
    facts = replace(facts, models=tuple(StoredModel(name, size, 1, None) for name, size in sizes.items()))
    assert list(large_models(facts)) == ["large:1"]
    one = replace(facts, survey=replace(facts.survey, gpus=facts.survey.gpus[:1]))
    assert list(large_models(one)) == []


@pytest.mark.parametrize(
    "answers",
    [
        Answers(),
        Answers(host="0.0.0.0", gpus=BOX.gpus, large_models=("llama3.1:70b", 'a"\\b:x')),
        Answers(urls=tuple(f"http://10.0.0.{number}:11434" for number in range(1, 31))),
        Answers(program='/opt/a "b"/ollama: # x'),
    ],
)
def test_what_is_written_says_what_was_answered_and_is_accepted(answers: Answers) -> None:
    config = parse_config(file_text(answers), "corral.yaml")
    assert (config.listen.host, config.listen.port) == (answers.host, 11434)
    assert config.admin_listen == Config().admin_listen
    assert tuple(str(replica.url) for replica in config.replicas) == answers.urls
    assert config.owns_replicas == (not answers.urls)
    assert config.large_models == answers.large_models
    assert config.ollama.binary == (answers.program or "ollama")


def test_the_lines_are_no_longer_than_a_person_reads() -> None:
    text = file_text(Answers(gpus=BOX.gpus, large_models=("llama3.1:70b",)))
    assert max(map(len, text.splitlines())) <= 100
    assert "#   GPU 0: RTX 4090, 24 GiB" in text


async def test_on_a_box_with_gpus_it_is_written_without_a_question_and_check_config_accepts_it(tmp_path: Path) -> None:
    library = build(tmp_path / "library")
    write_machine(tmp_path / "gpus", *nvlink_pairs(1, "RTX A6000 48GB"))
    path = f"{make_ollama(tmp_path / 'bin').parent}:{os.environ['PATH']}"
    env = {"CORRAL_NVML_LIBRARY": str(library), "CORRAL_STANDIN_NVML": str(tmp_path / "gpus"), "PATH": path}
    ended = await corral("init", "--yes", cwd=tmp_path, HOME=str(tmp_path), **env)
    assert ended.code == 0, ended.err
    assert "GPU 1: NVIDIA RTX A6000, 48 GiB" in ended.err
    assert f"ollama: {tmp_path / 'bin' / 'ollama'} (version" in ended.err
    text = (tmp_path / "corral.yaml").read_text()
    assert "\ngpus: auto\n" in text
    checked = await corral("check-config", "corral.yaml", "--json", cwd=tmp_path)
    assert (checked.code, json.loads(checked.out)["listen"]) == (0, "127.0.0.1:11434")


async def test_a_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "corral.yaml"
    path.write_text("replicas: []\n")
    ended = await corral("init", "--yes", cwd=tmp_path, HOME=str(tmp_path))
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("error: corral.yaml: is there already; --force replaces it")
    assert path.read_text() == "replicas: []\n"
    assert (await corral("init", "--yes", "--force", cwd=tmp_path, HOME=str(tmp_path))).code == 0
    parse_config(path.read_text(), "corral.yaml")


async def test_questions_go_to_stderr_so_that_the_file_can_be_piped(tmp_path: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        *(*CORRAL, "init", "--output", "-"),
        cwd=tmp_path,
        env=environment(HOME=str(tmp_path), PATH="/nowhere", CORRAL_NVML_LIBRARY="/nowhere.so"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(child.communicate(b"n\nhttp://10.0.0.2:11434\n\n"), 30)
    if b"runs on http" in err:
        pytest.skip("an Ollama runs on this machine")
    assert child.returncode == 0, err
    assert str(parse_config(out.decode(), "corral.yaml").replicas[0].url) == "http://10.0.0.2:11434"
    assert not list(tmp_path.glob("*.yaml"))
