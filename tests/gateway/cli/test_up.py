"""``corral up``: what a fresh clone does."""

from __future__ import annotations

from pathlib import Path

import pytest

from corral.gateway.cli.up import Machine, advice, config_file, look_around
from corral.gateway.config import parse_config
from tests.gateway.cli.shell import corral


def test_a_named_configuration_goes_before_the_one_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "corral.yaml").touch()
    assert config_file({"CORRAL_CONFIG": "/etc/c.yaml"}, tmp_path) == Path("/etc/c.yaml")
    assert config_file({}, tmp_path) == tmp_path / "corral.yaml"
    assert config_file({}, tmp_path / "elsewhere") is None


async def test_the_configuration_of_the_folder_is_served(tmp_path: Path) -> None:
    (tmp_path / "corral.yaml").write_text("replicas: []\n")
    ended = await corral("up", cwd=tmp_path)
    assert ended.code == 78
    assert ended.err.startswith("error: corral.yaml:1:11: replicas: is empty")


async def test_a_named_configuration_that_is_missing_is_an_error_and_not_a_demo(tmp_path: Path) -> None:
    ended = await corral("up", cwd=tmp_path, CORRAL_CONFIG="gone.yaml")
    assert ended.code == 78
    assert ended.err.startswith("error: gone.yaml: no such file")


@pytest.mark.parametrize(
    ("machine", "wanted"),
    [
        (Machine("0.32.15", "/usr/bin/ollama", None), "An Ollama (version 0.32.15) answers on 127.0.0.1:11434."),
        (Machine(None, "/usr/bin/ollama", None), "Ollama is installed (/usr/bin/ollama), but none answers"),
        (Machine(None, None, "/dev/nvidia0"), "A GPU is here (/dev/nvidia0), but no Ollama"),
    ],
)
def test_what_is_found_is_said_and_the_configuration_to_copy_is_valid(machine: Machine, wanted: str) -> None:
    text = advice(machine)
    assert text.startswith(wanted)
    assert "Corral does not start Ollamas itself" in text
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("listen:"))
    last = lines.index("", first)
    config = parse_config("\n".join(lines[first:last]), "corral.yaml")
    port = 11434 if machine.ollama_version else 21001
    assert (config.replicas[0].url.host, config.replicas[0].url.port) == ("127.0.0.1", port)


def test_a_gpu_is_known_by_its_device_file(tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    found = look_around([str(tmp_path / "none"), str(tmp_path / "nvidia0")])
    assert found.gpu == str(tmp_path / "nvidia0")
