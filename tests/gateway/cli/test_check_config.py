"""``corral check-config``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.gateway.cli.shell import corral

GOOD = """
replicas:
  - {id: a, url: "http://127.0.0.1:21001"}
  - {id: bb, url: "http://gpu-box:11434", weight: 2.5, slots: 4}
policy: {name: prefer-loaded}
"""


def write(folder: Path, text: str) -> str:
    path = folder / "corral.yaml"
    path.write_text(text)
    return str(path)


async def test_a_good_file_shows_what_would_run(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    ended = await corral("check-config", path)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == (
        f"{path}: can be used\n"
        "  listen    127.0.0.1:11434\n"
        "  admin     127.0.0.1:11435\n"
        "  policy    prefer-loaded\n"
        "  queue     512 requests, 300 s each\n"
        "  replica   a   http://127.0.0.1:21001  weight 1  slots not known yet\n"
        "  replica   bb  http://gpu-box:11434  weight 2.5  slots 4\n"
    )


async def test_json_is_the_whole_configuration_with_its_defaults(tmp_path: Path) -> None:
    ended = await corral("check-config", write(tmp_path, GOOD), "--json")
    page = json.loads(ended.out)
    url = "http://127.0.0.1:21001"
    own = {"id": "a", "url": url, "weight": 1.0, "slots": None, "max_loaded": None, "store": "shared", "admin": None}
    assert page["replicas"][0] == {**own, "models": [], "gpus": [], "pin": [], "keep_off": []}
    assert page["ollama"]["first_port"] == 21001
    assert page["timeouts"]["stall_s"] == 30
    assert page["policy"] == {"name": "prefer-loaded", "path": None, "options": {}}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("gpus: auto\n", "gpus      one Ollama per GPU (corral plan shows which)"),
        ("large_models: [big]\n", "gpus      one Ollama per GPU, groups for big (corral plan shows which)"),
        ("gpus: [0, [1, 2]]\n", "gpus      0  1+2 (corral plan shows what that makes)"),
        ("gpus: [{gpus: [3]}]\nollama: {env: {SECRET: x}}\n", "gpus      3 (corral plan"),
    ],
)
async def test_what_corral_would_run_itself_is_summed_up(tmp_path: Path, text: str, wanted: str) -> None:
    ended = await corral("check-config", write(tmp_path, text))
    assert ended.code == 0
    assert wanted in ended.out
    page = json.loads((await corral("check-config", write(tmp_path, text), "--json")).out)
    assert page["replicas"] == []


async def test_a_bad_file_exits_78_and_says_where_and_what(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "queue: {max_request: 1}\n")
    ended = await corral("check-config", path)
    assert (ended.code, ended.out) == (78, "")
    assert ended.err.startswith(f"error: {path}:6:9: queue.max_request: unknown key; did you mean 'max_requests'?")


async def test_a_policy_that_cannot_be_built_is_found_before_anything_runs(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("prefer-loaded", "prefer-loade"))
    for command in (["check-config", path], ["serve", "--config", path]):
        ended = await corral(*command)
        assert ended.code == 78
        assert ended.err.startswith(f"error: {path}:5:16: policy.name: there is no policy 'prefer-loade'")
        assert "prefer-loaded" in ended.err
