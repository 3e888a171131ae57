"""The executable that behaves as ``ollama``: what it says, what it reads from its environment, and its GPUs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from corral.emulator.catalog import GIB
from corral.emulator.cloud import account_at
from corral.emulator.environment import started_with
from corral.emulator.nvml import machines, state
from corral.emulator.runner import FOREVER_S
from corral.emulator.variables import address
from corral.emulator.visible import together, visible_gpus
from corral.errors import OperatorError
from tests.conformance.raw import ask
from tests.emulator.ollama_binary import make_ollama

MODEL = "llama3.1:8b"


@dataclass(frozen=True)
class Served:
    """A running one."""

    process: subprocess.Popen[str]
    url: str

    def models(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = ask(self.url, "GET", "/api/ps").json()["models"]
        return found

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = ask(self.url, "GET", "/emulator/stats").json()
        return found

    def load(self, model: str = MODEL, **fields: object) -> dict[str, Any]:
        """What ``/api/ps`` then says of it."""
        assert ask(self.url, "POST", "/api/generate", {"model": model} | fields).status == 200
        return next(found for found in self.models() if found["name"] == model)


@pytest.fixture(scope="module")
def ollama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ollama(tmp_path_factory.mktemp("bin"))


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    folder = tmp_path / "machine"
    state.write_machine(folder, *machines.four_unequal())
    return folder


def plain_environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "PYTHONPATH")}
    return kept | {"EMULATED_MODELS": MODEL, "EMULATED_SPEED": "50"} | variables


@contextmanager
def serving(ollama: Path, **variables: str) -> Iterator[Served]:
    """``ollama serve`` on a free port until the end of the block."""
    environment = {"OLLAMA_HOST": "127.0.0.1:0"} | plain_environment(**variables)
    with subprocess.Popen([ollama, "serve"], env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield Served(process, f"http://{_listening(process)}")
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=10)


def _listening(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        _, found, rest = line.partition('msg="Listening on ')
        if found:
            return rest.partition(" ")[0]
    raise AssertionError("it ended without listening")


def run(ollama: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = plain_environment(**variables)
    return subprocess.run([ollama, *arguments], env=environment, capture_output=True, text=True, timeout=30)


def until_read(path: Path, key: str, least: int) -> dict[str, str]:
    end = time.monotonic() + 10
    while int((said := state.read_file(path)).get(key, "0")) < least:
        assert time.monotonic() < end, said
        time.sleep(0.02)
    return said


# -- the command ------------------------------------------------------------------------------------------------------


def test_it_says_its_version_with_and_without_a_server(ollama: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        unused = f"127.0.0.1:{nobody.getsockname()[1]}"
    alone = run(ollama, "--version", OLLAMA_HOST=unused)
    warning = "Warning: could not connect to a running Ollama instance\nWarning: client version is 0.32.15\n"
    assert (alone.returncode, alone.stdout) == (0, warning)
    with serving(ollama, EMULATED_OLLAMA_VERSION="0.24.0") as served:
        same = run(ollama, "-v", OLLAMA_HOST=served.url, EMULATED_OLLAMA_VERSION="0.24.0")
        assert same.stdout == "ollama version is 0.24.0\n"
        other = run(ollama, "-v", OLLAMA_HOST=served.url)
        assert other.stdout == "ollama version is 0.24.0\nWarning: client version is 0.32.15\n"


def test_a_port_that_is_taken_ends_it_as_gos_error_does(ollama: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run(ollama, "serve", OLLAMA_HOST=f"127.0.0.1:{port}")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == f"Error: listen tcp 127.0.0.1:{port}: bind: address already in use"


def test_what_it_cannot_serve_is_one_line_of_error(ollama: Path) -> None:
    ended = run(ollama, "serve", EMULATED_MODELS="nosuchmodel")
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert ended.stderr.startswith("Error: --model nosuchmodel: unknown model")
    assert run(ollama, "dance").stderr == 'Error: unknown command "dance" for "ollama"\n'
    assert run(ollama).stdout.startswith("Large language model runner")


def test_sigterm_ends_it_with_its_runners(ollama: Path, machine: Path) -> None:
    with serving(ollama, CORRAL_STANDIN_NVML=str(machine), CUDA_VISIBLE_DEVICES="0") as served:
        served.load()
        held = until_read(machine / "gpu0.live", "memory_used", 1)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(10) == 0
    pid = held["processes"].partition(":")[0]
    assert not Path(f"/proc/{pid}").exists()
    assert state.read_file(machine / "gpu0.live")["memory_used"] == "0"


# -- its environment --------------------------------------------------------------------------------------------------


def settings(**variables: str) -> Any:
    return started_with({"EMULATED_MODELS": MODEL} | variables).settings


def test_the_variables_of_ollama_mean_what_they_mean_to_ollama(tmp_path: Path) -> None:
    found = settings(
        OLLAMA_HOST="http://127.0.0.1:21001",
        OLLAMA_MODELS=str(tmp_path / "store"),
        OLLAMA_NUM_PARALLEL="4",
        OLLAMA_CONTEXT_LENGTH=' "8192" ',
        OLLAMA_KEEP_ALIVE="-1",
        OLLAMA_MAX_QUEUE="7",
        OLLAMA_NOPRUNE="1",
        OLLAMA_NO_CLOUD="true",
        HOME="/home/anna",
        EMULATED_SPEED="3",
        EMULATED_OPTIONS="--id 'gpu zero' --stall-ps",
    )
    assert (found.host, found.port, found.store) == ("127.0.0.1", 21001, tmp_path / "store")
    assert (found.parallel, found.context_length, found.max_queue, found.speed) == (4, 8192, 7, 3.0)
    assert (found.noprune, found.no_cloud, found.account) == (True, True, account_at(Path("/home/anna")))
    assert (found.keep_alive_s, found.id, found.stall_ps, found.runner_process) == (FOREVER_S, "gpu zero", True, True)


def test_without_variables_it_has_the_defaults_of_ollama() -> None:
    found = settings(OLLAMA_NUM_PARALLEL="0", OLLAMA_CONTEXT_LENGTH="many", OLLAMA_HOST="", OLLAMA_NOPRUNE="false")
    assert (found.host, found.port, found.version) == ("127.0.0.1", 11434, "0.32.15")
    assert (found.parallel, found.context_length, found.max_queue, found.keep_alive_s) == (1, None, 512, 300.0)
    assert (found.noprune, found.no_cloud) == (False, False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.0.0.0", ("0.0.0.0", 11434)),
        (":21001", ("127.0.0.1", 21001)),
        ("https://example.org:80/path", ("example.org", 80)),
        ("http://example.org", ("example.org", 80)),
        ("[::1]:5", ("::1", 5)),
        ("[::1]", ("::1", 11434)),
        ("127.0.0.1:999999", ("127.0.0.1", 11434)),
    ],
)
def test_the_address_is_read_as_ollama_reads_it(text: str, expected: tuple[str, int]) -> None:
    assert address({"OLLAMA_HOST": text}) == expected


def test_a_size_given_with_a_model_is_its_size_and_the_store_keeps_it(ollama: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    with serving(ollama, EMULATED_MODELS="big=40,llama3.2:1b", OLLAMA_MODELS=store) as served:
        sizes = {model["name"]: model["size"] for model in ask(served.url, "GET", "/api/tags").json()["models"]}
    assert set(sizes) == {"big:latest", "llama3.2:1b"}
    assert 40e9 < sizes["big:latest"] < 40e9 + 4096  # with its small layers, as Ollama counts
    with serving(ollama, EMULATED_MODELS="", OLLAMA_MODELS=store) as again:
        assert len(ask(again.url, "GET", "/api/tags").json()["models"]) == 2


def test_options_that_the_emulator_does_not_have_are_refused() -> None:
    with pytest.raises(Exception, match="No such option"):
        settings(EMULATED_OPTIONS="--nonsense")
    with pytest.raises(OperatorError, match="not a duration"):
        settings(OLLAMA_KEEP_ALIVE="soon")


# -- its GPUs ---------------------------------------------------------------------------------------------------------


def test_it_runs_on_the_gpu_it_may_see_and_shows_there(ollama: Path, machine: Path) -> None:
    uuid = state.uuid_of(machine, "gpu1")
    with serving(ollama, CORRAL_STANDIN_NVML=str(machine), CUDA_VISIBLE_DEVICES=uuid) as served:
        model = served.load()
        assert model["size_vram"] == model["size"]
        live = until_read(machine / "gpu1.live", "memory_used", 1)
        assert int(live["memory_used"]) == model["size"]
        pid, _, size = live["processes"].partition(":")
        assert int(size) == model["size"]
        assert Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"llama-server\0")
        assert served.stats()["gpu"] == "RTX 3060 12GB"
    assert not (machine / "gpu0.live").exists()


@pytest.mark.parametrize("fault", [{"error": 15}, {"cuda_broken": 1}])
def test_on_a_gpu_it_cannot_use_it_runs_on_the_cpu_without_a_word(
    fault: Mapping[str, int], ollama: Path, machine: Path
) -> None:
    state.update(machine, "gpu0", **fault)
    uuid = state.uuid_of(machine, "gpu0")
    with serving(ollama, CORRAL_STANDIN_NVML=str(machine), CUDA_VISIBLE_DEVICES=uuid) as served:
        model = served.load()
        assert (model["size_vram"], model["size"] > 5e9) == (0, True)
    assert not (machine / "gpu0.live").exists()


def test_a_model_too_big_for_its_gpu_spills(ollama: Path, machine: Path) -> None:
    variables = {"EMULATED_MODELS": "big=20", "EMULATED_OPTIONS": "--load-seconds 0.1"}
    with serving(ollama, CORRAL_STANDIN_NVML=str(machine), CUDA_VISIBLE_DEVICES="1", **variables) as served:
        model = served.load("big:latest")
        assert 0 < model["size_vram"] < model["size"]


def test_a_group_has_the_memory_of_its_gpus_and_each_shows_its_share(ollama: Path, machine: Path) -> None:
    pair = ",".join(state.uuid_of(machine, name) for name in ("gpu0", "gpu1"))
    variables = {"EMULATED_MODELS": "big=26", "EMULATED_OPTIONS": "--load-seconds 0.1", "OLLAMA_SCHED_SPREAD": "1"}
    with serving(ollama, CORRAL_STANDIN_NVML=str(machine), CUDA_VISIBLE_DEVICES=pair, **variables) as served:
        model = served.load("big:latest")
        assert model["size_vram"] == model["size"]
        used = [int(until_read(machine / f"gpu{number}.live", "memory_used", 1)["memory_used"]) for number in (0, 1)]
    assert used[0] == pytest.approx(2 * used[1], rel=0.01)
    assert sum(used) == pytest.approx(model["size"], rel=0.01)


def test_a_runner_that_outlives_its_server_keeps_its_memory_until_it_dies(ollama: Path, machine: Path) -> None:
    variables = {"CORRAL_STANDIN_NVML": str(machine), "CUDA_VISIBLE_DEVICES": "0"}
    with serving(ollama, **variables) as served:
        size = served.load()["size"]
        pid = int(until_read(machine / "gpu0.live", "memory_used", 1)["processes"].partition(":")[0])
        served.process.kill()
        served.process.wait()
    try:
        with serving(ollama, **variables) as served:
            served.load()
            until_read(machine / "gpu0.live", "memory_used", 2 * size)
            os.kill(pid, signal.SIGKILL)
            end = time.monotonic() + 10
            while str(pid) in state.read_file(machine / "gpu0.live")["processes"]:
                assert time.monotonic() < end
                time.sleep(0.02)
    finally:
        if Path(f"/proc/{pid}/stat").exists():
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (None, ["gpu0", "gpu1", "gpu2", "gpu3"]),
        ("", []),
        ("-1", []),
        ("2,0", ["gpu2", "gpu0"]),
        ("1,9,0", ["gpu1"]),
        ("0,0", ["gpu0"]),
        ("GPU-none", []),
    ],
)
def test_visible_devices_are_those_before_the_first_unknown(
    wanted: str | None, found: list[str], machine: Path
) -> None:
    assert [gpu.name for gpu in visible_gpus(machine, wanted)] == found


def test_a_gpu_is_found_by_the_beginning_of_its_uuid_and_a_mig_device_by_its_own(tmp_path: Path) -> None:
    state.write_machine(tmp_path, *machines.split_by_mig())
    start = state.uuid_of(tmp_path, "gpu1")[:12]
    part = state.uuid_of(tmp_path, "gpu0.mig0")
    (whole,), (mig,) = visible_gpus(tmp_path, start), visible_gpus(tmp_path, part)
    assert (whole.name, mig.name, mig.spec.vram_bytes) == ("gpu1", "gpu0.mig0", 40 * GIB)
    assert visible_gpus(tmp_path, "0") == []


def test_what_strangers_hold_is_not_there_for_it_and_a_broken_driver_leaves_nothing(machine: Path) -> None:
    state.update(machine, "gpu0", memory_used=4 * GIB)
    assert visible_gpus(machine, "0")[0].spec.vram_bytes == 20 * GIB
    state.update(machine, "machine", init_error=18)
    assert visible_gpus(machine, None) == []


def test_a_group_is_as_slow_as_its_gpus_in_turn(machine: Path) -> None:
    fast, slow = visible_gpus(machine, "0,1")
    both = together([fast, slow])
    assert both.vram_bytes == 36 * GIB
    assert slow.spec.bandwidth_bytes_s < both.bandwidth_bytes_s < fast.spec.bandwidth_bytes_s
    assert fast.spec.step_s_per_gb < both.step_s_per_gb < slow.spec.step_s_per_gb
    assert together([]).vram_bytes == 0


def test_one_command_writes_a_machine_and_says_how_to_see_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "corral.emulator.standin", str(tmp_path), "--gpu", "L4 24GB", "--gpu", "T4"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    variables = dict(line.split("=", 1) for line in said.splitlines())
    assert Path(variables["CORRAL_NVML_LIBRARY"]).is_file()
    assert [gpu.description for gpu in visible_gpus(Path(variables[state.VARIABLE]), None)] == ["NVIDIA L4", "Tesla T4"]
    assert shutil.which("ollama", path=variables["PATH"]) == str(tmp_path / "bin" / "ollama")
    command[-1] = "Q4"
    assert "unknown GPU" in subprocess.run(command, capture_output=True, text=True, timeout=30).stderr
