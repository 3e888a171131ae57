"""``corral doctor``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corral.emulator.nvml.build import build
from corral.emulator.nvml.machines import alike, four_unequal, nvlink_pairs
from corral.emulator.nvml.state import LOST, hang, update, write_machine
from tests.gateway.cli.shell import corral

CONFIG = """
listen: 127.0.0.1:0
admin_listen: 127.0.0.1:0
ollama: {{binary: {binary}, models: {folder}/models}}
state_dir: {folder}/state
"""


def ollama(folder: Path, version: str) -> Path:
    path = folder / "ollama"
    path.write_text(f"#!/bin/sh\necho ollama version is {version}\n")
    path.chmod(0o755)
    return path


def write(folder: Path, binary: Path) -> str:
    path = folder / "corral.yaml"
    path.write_text(CONFIG.format(binary=binary, folder=folder))
    return str(path)


async def test_the_page_has_every_area_and_a_count_at_its_end(tmp_path: Path) -> None:
    path = write(tmp_path, ollama(tmp_path, "0.32.15"))
    ended = await corral("doctor", "--config", path, HOME=str(tmp_path))
    assert ended.err == ""
    lines = ended.out.splitlines()
    assert [line for line in lines if line and not line.startswith(" ")][:3] == ["GPUs", "Ollama", "Corral"]
    assert f"  ok       ollama  {' ' * 7}" in ended.out
    assert any("version" in line and "0.32.15" in line for line in lines)
    assert f"{path}" in ended.out
    assert " ok, " in lines[-1]
    assert "\x1b[" not in ended.out
    counts = [int(part.split()[0]) for part in lines[-1].split(", ")]
    assert ended.code == (2 if counts[2] else 1 if counts[1] else 0)


async def test_json_says_the_same_and_problems_exit_2(tmp_path: Path) -> None:
    path = write(tmp_path, tmp_path / "nowhere" / "ollama")
    ended = await corral("doctor", "--config", path, "--json", HOME=str(tmp_path))
    assert (ended.code, ended.err) == (2, "")
    page = json.loads(ended.out)
    assert (page["schema"], page["worst"]) == (1, "problem")
    assert all(set(check) == {"name", "level", "found", "advice"} for check in page["checks"])
    (program,) = (check for check in page["checks"] if check["name"] == "ollama")
    assert program["level"] == "problem"
    assert "ollama.binary" in program["advice"]


async def test_an_ollama_with_a_known_hole_is_a_problem_and_says_which(tmp_path: Path) -> None:
    path = write(tmp_path, ollama(tmp_path, "0.1.30"))
    ended = await corral("doctor", "--config", path, HOME=str(tmp_path))
    assert ended.code == 2
    assert "CVE-2024-37032" in ended.out


async def test_a_bad_configuration_is_shown_among_the_rest(tmp_path: Path) -> None:
    (tmp_path / "corral.yaml").write_text("bananas: 1\n")
    ended = await corral("doctor", cwd=tmp_path, HOME=str(tmp_path))
    assert ended.code == 2
    assert "bananas" in ended.out
    assert "corral check-config corral.yaml" in ended.out
    assert "Python" in ended.out


async def test_an_ollama_that_never_says_its_version_keeps_nobody_waiting_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "ollama"
    path.write_text("#!/bin/sh\nsleep 60\n")
    path.chmod(0o755)
    ended = await corral("doctor", "--config", write(tmp_path, path), HOME=str(tmp_path))
    assert ended.code in (1, 2)
    assert "did not say" in ended.out


async def examined(folder: Path, library: Path, **env: str) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit code, and the checks by name, on the machine that ``folder`` describes."""
    path = write(folder, ollama(folder, "0.32.15"))
    env |= {"HOME": str(folder), "CORRAL_NVML_LIBRARY": str(library), "CORRAL_STANDIN_NVML": str(folder / "gpus")}
    ended = await corral("doctor", "--config", path, "--json", **env)
    assert ended.err == ""
    return ended.code, {check["name"]: check for check in json.loads(ended.out)["checks"]}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("library"))


async def test_healthy_gpus_are_seen_through_their_driver(tmp_path: Path, library: Path) -> None:
    write_machine(tmp_path / "gpus", *nvlink_pairs(2))
    _, checks = await examined(tmp_path, library)
    gpu_checks = ("GPUs", "driver", "NVML", "capability", "persistence", "NVLink", "ECC", "GPU order", "heat, power")
    assert {name: checks[name]["level"] for name in gpu_checks} == dict.fromkeys(gpu_checks, "ok")
    assert checks["driver"]["found"] == "570.86.15, CUDA 12.8"
    assert checks["GPUs"]["found"] == "4 x NVIDIA GeForce RTX 3090"
    assert checks["NVLink"]["found"] == "2 pairs: 0-1, 2-3"


async def test_what_is_wrong_with_gpus_is_seen_through_their_driver(tmp_path: Path, library: Path) -> None:
    gpus = tmp_path / "gpus"
    write_machine(gpus, *four_unequal(), driver="535.183.01")
    update(gpus, "gpu0", persistence=0, temperature=82, throttle=0x40)
    update(gpus, "gpu1", error=LOST)
    update(gpus, "gpu2", processes=f"1:{4 << 30}")
    code, checks = await examined(tmp_path, library, CUDA_VISIBLE_DEVICES="0")
    assert code == 2
    assert (checks["GPUs"]["level"], "GPU 1" in checks["GPUs"]["found"]) == ("problem", True)
    for name in ("driver", "persistence", "GPU order", "visible GPUs", "heat, power", "other users"):
        assert checks[name]["level"] == "warning", name
    assert "4 GiB held by" in checks["other users"]["found"]


async def test_a_driver_of_another_version_than_its_module_is_named(tmp_path: Path, library: Path) -> None:
    write_machine(tmp_path / "gpus", *alike(1))
    update(tmp_path / "gpus", "machine", init_error=18)
    _, checks = await examined(tmp_path, library)
    assert checks["GPUs"]["level"] == "warning"  # no GPU on this machine's own bus, and none that answers
    assert "different versions" in checks["GPUs"]["found"]


async def test_a_driver_that_hangs_does_not_hang_the_doctor(tmp_path: Path, library: Path) -> None:
    write_machine(tmp_path / "gpus", *alike(2))
    hang(tmp_path / "gpus", 1)
    code, checks = await examined(tmp_path, library)
    assert code == 2
    assert checks["GPUs"]["level"] == "problem"
    assert "does not answer" in checks["GPUs"]["found"]
    assert checks["Python"]["level"] == "ok"
