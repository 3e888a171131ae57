"""``corral plan``."""

from __future__ import annotations

import json
from pathlib import Path

from corral.emulator.nvml.build import build
from corral.emulator.nvml.machines import nvlink_pairs
from corral.emulator.nvml.state import update, write_machine
from corral.gateway.cli.plan import read_facts
from corral.gateway.config import Config
from corral.gateway.layout.choose import make_plan
from corral.gateway.layout.render import plan_json, plan_text
from tests.gateway.cli.shell import corral
from tests.gateway.layout import machines


def saved(folder: Path) -> str:
    """What ``corral plan --json`` printed on a machine with four GPUs."""
    found = machines.four_in_pairs()
    path = folder / "box.json"
    path.write_text(json.dumps(plan_json(make_plan(Config(), found), found)))
    return str(path)


async def test_a_saved_machine_is_planned_for(tmp_path: Path) -> None:
    ended = await corral("plan", "--facts", saved(tmp_path), cwd=tmp_path)
    found = machines.four_in_pairs()
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == plan_text(make_plan(Config(), found), found) + "\n"


async def test_json_says_everything_and_can_be_planned_from_again(tmp_path: Path) -> None:
    (tmp_path / "corral.yaml").write_text("large_models: [deepseek-r1:70b]\ngpus: auto\n")
    ended = await corral("plan", "--json", "--facts", saved(tmp_path), cwd=tmp_path)
    page = json.loads(ended.out)
    assert page["schema"] == 1
    assert [(one["id"], one["models"]) for one in page["replicas"]] == [
        ("gpu0-1", ["deepseek-r1:70b"]),
        ("gpu2", None),
        ("gpu3", None),
    ]
    assert page["replicas"][0]["env"]["OLLAMA_SCHED_SPREAD"] == "1"
    again = tmp_path / "again.json"
    again.write_text(ended.out)
    assert read_facts(again) == machines.four_in_pairs()


async def test_the_values_of_the_operators_own_variables_are_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("ollama: {env: {HF_TOKEN: secret-token, OLLAMA_FLASH_ATTENTION: 1}}\n")
    for form in ((), ("--json",)):
        ended = await corral("plan", *form, "--config", str(path), "--facts", saved(tmp_path))
        assert "secret-token" not in ended.out
        assert "HF_TOKEN" in ended.out
        assert "OLLAMA_FLASH_ATTENTION" in ended.out


async def test_a_gpu_that_is_not_there_exits_78(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("gpus: [0, 9]\n")
    ended = await corral("plan", "--config", str(path), "--facts", saved(tmp_path))
    assert (ended.code, ended.out) == (78, "")
    assert ended.err.startswith(f"error: {path}: gpus[1]: there is no GPU 9 on this machine; known: 0 GPU-")


async def test_a_file_that_is_no_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"replicas": []}')
    ended = await corral("plan", "--facts", str(path), cwd=tmp_path)
    assert ended.code == 1
    assert "is not what `corral plan --json` prints" in ended.err
    gone = await corral("plan", "--facts", str(tmp_path / "gone"), cwd=tmp_path)
    assert (gone.code, "cannot be read: No such file" in gone.err) == (1, True)


async def test_the_gpus_of_this_machine_are_found_through_their_driver(tmp_path: Path) -> None:
    library = build(tmp_path / "library")
    write_machine(tmp_path / "gpus", *nvlink_pairs(2, "RTX A6000 48GB"))
    (tmp_path / "corral.yaml").write_text("large_models: [deepseek-r1:70b]\n")
    env = {"CORRAL_NVML_LIBRARY": str(library), "CORRAL_STANDIN_NVML": str(tmp_path / "gpus")}
    ended = await corral("plan", "--json", cwd=tmp_path, HOME=str(tmp_path), **env)
    page = json.loads(ended.out)
    assert [one["id"] for one in page["replicas"]] == ["gpu0-1", "gpu2", "gpu3"]
    assert page["replicas"][0]["gpus"] == [gpu["uuid"] for gpu in page["facts"]["survey"]["gpus"][:2]]
    assert "GPUs 0 and 1 are joined by NVLink x4" in page["replicas"][0]["reasons"]


async def test_what_other_programs_hold_of_a_gpu_is_not_planned_with(tmp_path: Path) -> None:
    """As `corral serve` measures it, which decides by the same code."""
    library = build(tmp_path / "library")
    gpus, links = nvlink_pairs(1)
    write_machine(tmp_path / "gpus", gpus, links)
    update(tmp_path / "gpus", "gpu0", memory_used=4 << 30)
    (tmp_path / "corral.yaml").write_text("gpus: [{gpus: [0, 1], split: row}]\n")
    env = {"CORRAL_NVML_LIBRARY": str(library), "CORRAL_STANDIN_NVML": str(tmp_path / "gpus")}
    ended = await corral("plan", "--json", cwd=tmp_path, HOME=str(tmp_path), **env)
    page = json.loads(ended.out)
    first, second = (int(share) for share in page["replicas"][0]["env"]["LLAMA_ARG_TENSOR_SPLIT"].split(","))
    assert second - first == 4096
