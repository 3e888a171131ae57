"""``corral up``: what a fresh clone does."""

from __future__ import annotations

import asyncio
import signal
import sys
import urllib.request
from pathlib import Path

import pytest

from corral.gateway.cli.up import Machine, advice, config_file, look_around
from corral.gateway.config import Config, ReplicaUrl, parse_config
from tests.gateway.cli.shell import Running, corral, environment
from tests.probes.fake_ollama import fake_ollama


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
        (Machine(None, "/usr/bin/ollama", None), "Ollama is installed (/usr/bin/ollama), but none answers"),
        (Machine(None, None, "/dev/nvidia0"), "A GPU is here (/dev/nvidia0), but no Ollama"),
    ],
)
def test_what_is_found_is_said_and_the_configuration_to_copy_is_valid(machine: Machine, wanted: str) -> None:
    text = advice(machine)
    assert text.startswith(wanted)
    assert "Corral does not start Ollamas itself" in text
    config = shown(text)
    assert str(config.replicas[0].url) == "http://127.0.0.1:21001"


def shown(text: str) -> Config:
    """The configuration to copy, which must be valid."""
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("listen:"))
    return parse_config("\n".join(lines[first : lines.index("", first)]), "corral.yaml")


AS_ON_THIS_PORT = """
import sys
from corral.gateway.cli import up
from corral.gateway.cli.entry import main
from corral.gateway.config import ReplicaUrl
up.OLLAMA, up.FRONT_PORT, up.ADMIN_PORT = ReplicaUrl("127.0.0.1", int(sys.argv.pop())), 0, 0
main()
"""


async def test_a_running_ollama_is_served_in_front_of_and_said_how_to_change_places(tmp_path: Path) -> None:
    async with fake_ollama() as ollama:
        port = ollama.replica().port
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", AS_ON_THIS_PORT, "up", str(port)),
            cwd=tmp_path,
            env=environment(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        up = Running(child)
        try:
            await up.until(f"An Ollama (version 0.32.15) answers on 127.0.0.1:{port}: Corral goes in front of it.")
            url = (await up.until("  clients ")).split()[1]
            await up.until("Run the same command again.")
            said = "\n".join(up.said)
            assert f"who asks {url} comes through Corral" in said
            assert "restart the Ollama on another port: OLLAMA_HOST=127.0.0.1:21001 ollama serve" in said
            assert str(shown(said).listen) == f"127.0.0.1:{port}"
            with await asyncio.to_thread(urllib.request.urlopen, f"{url}/api/version", timeout=10) as answer:
                assert answer.status == 200
            child.send_signal(signal.SIGTERM)
            assert await up.ended() == 0
        finally:
            if child.returncode is None:
                child.kill()
            await child.wait()


def test_a_gpu_is_known_by_its_device_file(tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    found = look_around([str(tmp_path / "none"), str(tmp_path / "nvidia0")], ReplicaUrl("127.0.0.1", 1))
    assert found.gpu == str(tmp_path / "nvidia0")
