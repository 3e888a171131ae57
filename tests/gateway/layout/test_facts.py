"""What is gathered of the host: program, memory, proxies."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from corral.gateway.config import parse_config
from corral.gateway.layout.facts import gather, no_proxy, ram_bytes
from corral.gateway.layout.free import free_bytes
from corral.gateway.layout.plan import OllamaProgram
from corral.gateway.layout.program import find_program
from corral.model import GpuSample, GpuSurvey
from tests.gateway.layout.gguf_file import LLAMA, header, write_store


def program(folder: Path, script: str) -> dict[str, str]:
    """An ``ollama`` in ``folder``, and the environment that finds it."""
    folder.mkdir(exist_ok=True)
    path = folder / "ollama"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(folder)}


@pytest.mark.parametrize(
    ("script", "version"),
    [
        ("echo ollama version is 0.32.15", "0.32.15"),
        (
            "echo Warning: could not connect to a running Ollama instance; echo Warning: client version is 0.24.0",
            "0.24.0",
        ),
        ("echo ollama version is 0.24.0; echo Warning: client version is 0.33.0-rc2 >&2", "0.33.0-rc2"),
        ("exit 1", None),
        ("yes nonsense | head -c 100000", None),
    ],
)
def test_the_programs_own_version_is_read(tmp_path: Path, script: str, version: str | None) -> None:
    assert find_program("ollama", program(tmp_path, script)) == OllamaProgram(str(tmp_path / "ollama"), version)


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    environ = program(tmp_path, f"sleep 1000 & echo $! > {tmp_path}/child; wait")
    began = time.monotonic()
    assert find_program("ollama", environ, limit_s=0.5) == OllamaProgram(str(tmp_path / "ollama"), None)
    assert time.monotonic() - began < 10
    pid = int((tmp_path / "child").read_text())
    while _runs(pid):
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_the_program_meets_no_server_and_no_proxy(tmp_path: Path) -> None:
    environ = program(tmp_path, f"env > {tmp_path}/seen") | {
        "OLLAMA_HOST": "10.0.0.1",
        "OLLAMA_DEBUG": "1",
        "https_proxy": "http://proxy",
    }
    find_program("ollama", environ)
    seen = (tmp_path / "seen").read_text()
    assert "OLLAMA_HOST=127.0.0.1:1\n" in seen
    assert "OLLAMA_DEBUG" not in seen
    assert "proxy" not in seen


def test_no_program_is_none(tmp_path: Path) -> None:
    assert find_program("ollama", {"PATH": str(tmp_path)}) is None
    assert find_program("/not/there", {}) is None


def memory(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:       1000 kB\nMemFree: 1 kB\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (MEMINFO, 1_024_000),
        ({**MEMINFO, "proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}, 1_024_000),
        ({**MEMINFO, "proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "5000\n"}, 5000),
        ({**MEMINFO, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "6000\n"}, 6000),
        ({**MEMINFO, "proc/self/cgroup": "0::/../x\n", "sys/fs/cgroup/x/memory.max": "7000\n"}, 7000),
        (
            {
                **MEMINFO,
                "proc/self/cgroup": "3:cpu,memory:/x\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "8000\n",
            },
            8000,
        ),
    ],
)
def test_memory_is_the_hosts_or_the_control_groups_if_less(
    tmp_path: Path, files: dict[str, str], expected: int | None
) -> None:
    assert ram_bytes(memory(tmp_path, files)) == expected


def test_loopback_stays_out_of_the_proxies() -> None:
    assert no_proxy({}) is None
    assert no_proxy({"NO_PROXY": "a"}) is None
    assert no_proxy({"https_proxy": "http://p"}) == "127.0.0.1,localhost,::1"
    assert no_proxy({"HTTP_PROXY": "http://p", "no_proxy": "a, localhost"}) == "a,localhost,127.0.0.1,::1"


def test_free_memory_that_is_not_told_is_left_out() -> None:
    samples = [GpuSample("a", 0.0, memory_used_bytes=3, memory_total_bytes=10), GpuSample("b", 0.0)]
    assert free_bytes(samples, ()) == {"a": 7}


def test_gathered_facts_are_of_this_machine(tmp_path: Path) -> None:
    environ = program(tmp_path, "echo ollama version is 0.32.15") | {"CUDA_VISIBLE_DEVICES": "0", "http_proxy": "x"}
    write_store(tmp_path / "store", {"registry.ollama.ai/library/m/latest": (header(LLAMA), 10)})
    config = parse_config(f"ollama: {{models: {tmp_path}/store}}", "corral.yaml")
    found = gather(config, GpuSurvey(), environ)
    assert found.program == OllamaProgram(str(tmp_path / "ollama"), "0.32.15")
    assert (found.store, [model.name for model in found.models]) == (f"{tmp_path}/store", ["m:latest"])
    assert found.cpus == tuple(sorted(os.sched_getaffinity(0)))
    assert found.visible == {"CUDA_VISIBLE_DEVICES": "0"}
    assert found.no_proxy == "127.0.0.1,localhost,::1"
    assert found.ram_bytes is not None or sys.platform != "linux"
