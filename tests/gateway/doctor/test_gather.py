"""Gathering the doctor's facts: on this machine, and on invented ones made of files."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from corral.gateway.config import Address, Config, ReplicaConfig, ReplicaUrl
from corral.gateway.config.owned import OllamaConfig
from corral.gateway.doctor import addresses, disks, host, running
from corral.gateway.doctor.checks import examine
from corral.gateway.doctor.drivers import Drivers
from corral.gateway.doctor.facts import OLLAMA_PORT, REPLICA_PORTS, OtherOllama, PciGpus
from corral.gateway.doctor.gather import gather
from corral.gateway.doctor.parts import Part
from corral.model import GpuFault, GpuMiss, GpuProcess, GpuSample, GpuSurvey, GpuVendor
from corral.probes.gpu import GpuReadError
from tests.gateway.doctor.machines import gpu, sample


def write(root: Path, **texts: str) -> Path:
    """Files below ``root``; ``__`` in a name stands for ``/``."""
    for name, text in texts.items():
        put(root / name.replace("__", "/"), text)
    return root


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_this_machine_is_looked_at_quickly_and_whatever_it_is_there_is_a_page(tmp_path: Path) -> None:
    environ = {"PATH": os.defpath, "HOME": str(tmp_path), "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "SECRET": "s3cret"}
    begun_s = time.monotonic()
    facts = gather(None, environ)
    assert time.monotonic() - begun_s < 20
    assert facts.environ == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert "s3cret" not in repr(facts)
    assert facts.software is not None
    assert facts.memory is not None
    assert facts.store is not None
    assert facts.store.path == str(tmp_path / ".ollama/models")
    assert facts.ports is not None
    assert examine(facts).checks


def test_a_machine_without_any_of_the_files_leaves_everything_unknown_and_says_so(tmp_path: Path) -> None:
    facts = gather(None, {"PATH": "", "HOME": str(tmp_path)}, root=tmp_path / "nothing")
    assert (facts.pci, facts.memory, facts.wsl, facts.other_ollamas) == (None, None, None, None)
    assert any("processes" in text for text in facts.missing)
    names = {check.name: check for check in examine(facts).checks}
    assert "memory" in names["not looked at"].found


def test_a_configuration_that_cannot_be_used_is_a_finding_and_the_rest_is_still_looked_at(tmp_path: Path) -> None:
    put(tmp_path / "corral.yaml", "queue: {max_request: 1}\nbananas: 2\n")
    facts = gather(tmp_path / "corral.yaml", {"PATH": "", "HOME": str(tmp_path)})
    assert facts.wanted.fault is not None
    assert "max_request" in facts.wanted.fault
    assert facts.ports is not None
    absent = gather(tmp_path / "none.yaml", {"PATH": "", "HOME": str(tmp_path)})
    assert absent.wanted.fault is not None
    assert "no such file" in absent.wanted.fault


def test_folders_that_are_files_or_loops_lose_only_themselves(tmp_path: Path) -> None:
    put(tmp_path / "file", "")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for bad in (tmp_path / "file", tmp_path / "loop", tmp_path / "file" / "below"):
        environ = {"PATH": "", "HOME": str(tmp_path), "OLLAMA_MODELS": str(bad)}
        facts = gather(None, environ)
        assert facts.store is None or not facts.store.exists
        assert facts.ports is not None


def test_a_part_that_hangs_is_given_up_and_one_that_fails_says_why() -> None:
    gate = threading.Event()
    late = Part("a disk", gate.wait, 0.05)
    broken = Part("a file", lambda: open("/nowhere/at/all").close(), 5)
    fine = Part("a number", lambda: 7, 5)
    assert (late.result(), late.fault, late.is_late) == (None, "a disk: no answer within 0.05 s", True)
    assert (broken.result(), broken.fault, broken.is_late) == (None, "a file: No such file or directory", False)
    assert (fine.result(), fine.fault) == (7, None)
    gate.set()


class Source:
    """A driver of which one GPU hangs, one is lost and one answers."""

    vendor = GpuVendor.NVIDIA

    def __init__(self, gate: threading.Event) -> None:
        self._gate = gate

    def survey(self) -> GpuSurvey:
        return GpuSurvey((gpu(0), gpu(1), gpu(2)))

    def read(self, uuid: str, at_s: float) -> GpuSample:
        if uuid == "GPU-0":
            self._gate.wait()
        if uuid == "GPU-1":
            raise GpuReadError(GpuFault.LOST, "GPU is lost")
        return GpuSample(uuid, at_s)

    def xids(self) -> tuple[tuple[str, int], ...]:
        return ()

    def close(self) -> None: ...


def test_a_gpu_that_hangs_and_one_that_is_lost_hide_nothing_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corral.gateway.doctor.drivers.READ_S", 0.1)
    gate = threading.Event()
    source = Source(gate)
    hung, lost, fine = Drivers((source,), source.survey()).read()
    gate.set()
    assert isinstance(hung, GpuMiss)
    assert hung.fault is GpuFault.HUNG
    assert isinstance(lost, GpuMiss)
    assert (lost.fault, lost.reason) == (GpuFault.LOST, "GPU is lost")
    assert isinstance(fine, GpuSample)


def test_gpus_on_the_pci_bus_are_counted_without_a_driver(tmp_path: Path) -> None:
    devices = tmp_path / "sys/bus/pci/devices"
    for number, (vendor, kind) in enumerate(
        [("0x10de", "0x030000"), ("0x10de", "0x030200"), ("0x10de", "0x040300"), ("0x1002", "0x120000")]
    ):
        put(devices / f"0000:0{number}:00.0" / "vendor", f"{vendor}\n")
        put(devices / f"0000:0{number}:00.0" / "class", f"{kind}\n")
    assert host.pci_gpus(tmp_path) == PciGpus(nvidia=2, amd=1)
    (tmp_path / "bare/sys/bus/usb").mkdir(parents=True)
    assert host.pci_gpus(tmp_path / "bare") == PciGpus(0, 0)


@pytest.mark.parametrize(
    "text",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23\nGCC version: 13\n",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n",
    ],
)
def test_the_kernel_module_tells_its_version_to_containers_too(tmp_path: Path, text: str) -> None:
    assert host.nvidia_module(tmp_path) is None
    assert host.nvidia_module(write(tmp_path, proc__driver__nvidia__version=text)) == "570.86.15"


def test_device_files_are_those_of_the_gpus(tmp_path: Path) -> None:
    write(tmp_path, dev__nvidia0="", dev__nvidia1="", dev__nvidiactl="", dev__kfd="", dev__dri__renderD128="")
    write(tmp_path, dev__dri__renderD129="", sys__class__drm__renderD129__device__vendor="0x1002\n")
    assert [each.path for each in host.nvidia_devices(tmp_path)] == ["/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl"]
    assert [each.path for each in host.amd_devices(tmp_path)] == ["/dev/kfd", "/dev/dri/renderD129"]


def test_containers_are_told_by_what_each_kind_leaves_behind(tmp_path: Path) -> None:
    assert host.container(tmp_path, {}) == ""
    assert host.container(tmp_path, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) == "Kubernetes"
    assert host.container(tmp_path, {"container": "lxc"}) == "lxc"
    put(tmp_path / "a/.dockerenv", "")
    put(tmp_path / "b/run/.containerenv", "")
    put(tmp_path / "c/proc/1/cgroup", "0::/system.slice/containerd.service/kubepods-pod1\n")
    assert [host.container(tmp_path / name, {}) for name in "abc"] == ["Docker", "Podman", "kubepods"]


def test_memory_is_what_the_control_group_allows(tmp_path: Path) -> None:
    write(
        tmp_path,
        proc__meminfo="MemTotal: 64000 kB\nMemAvailable: 60000 kB\nSwapTotal: 0 kB\n",
        proc__self__cgroup="0::/box/inner\n",
        sys__fs__cgroup__box__inner__placeholder="",
    )
    assert host.memory(tmp_path).total_bytes == 64_000 * 1024
    put(tmp_path / "sys/fs/cgroup/box/memory.max", "1048576\n")
    put(tmp_path / "sys/fs/cgroup/box/pids.max", "100\n")
    put(tmp_path / "sys/fs/cgroup/box/pids.current", "90\n")
    put(tmp_path / "sys/fs/cgroup/box/inner/pids.max", "max\n")
    memory = host.memory(tmp_path)
    assert (memory.total_bytes, memory.available_bytes, memory.swap_bytes) == (1 << 20, 1 << 20, 0)
    assert host.limits(tmp_path, is_root=True).tasks == 10


def process(root: Path, pid: int, *arguments: str, parent: int = 1, **more: str) -> None:
    """A process as ``/proc`` shows it."""
    folder = root / "proc" / str(pid)
    put(folder / "cmdline", "".join(f"{word}\0" for word in arguments))
    put(folder / "comm", Path(arguments[0]).name + "\n")
    put(folder / "stat", f"{pid} (a b) c) S {parent} 1 1")
    put(folder / "environ", "".join(f"{name}={value}\0" for name, value in more.items()))


def test_other_ollamas_are_those_that_no_corral_started(tmp_path: Path) -> None:
    process(tmp_path, 10, "/usr/bin/python3", "-m", "corral", "serve")
    process(tmp_path, 11, "/usr/local/bin/ollama", "serve", parent=10)
    process(tmp_path, 12, "/usr/local/bin/ollama", "serve", CORRAL_REPLICA="t:gpu0")
    process(tmp_path, 13, "/usr/local/bin/ollama", "run", "llama3")
    process(tmp_path, 14, "ollama", "serve", HOME="/home/bob", OLLAMA_NOPRUNE="1")
    process(tmp_path, 15, "ollama", "serve", OLLAMA_MODELS="/srv/m", OLLAMA_HOST="0.0.0.0:21001")
    put(tmp_path / "proc/14/cgroup", "0::/system.slice/ollama.service\n")
    process(tmp_path, 16, "ollama", "serve")
    (tmp_path / "proc/16/environ").unlink()
    me = running.user_name(os.getuid())
    found = {other.pid: other for other in running.other_ollamas(tmp_path, frozenset())}
    assert found == {
        14: OtherOllama(14, me, "ollama.service", "/home/bob/.ollama/models", True),
        15: OtherOllama(15, me, None, "/srv/m", False),
        16: OtherOllama(16, me, None, None, None),
    }
    assert 15 not in {other.pid for other in running.other_ollamas(tmp_path, {21001})}


def test_programs_on_the_gpus_are_named_and_those_of_corral_are_known(tmp_path: Path) -> None:
    process(tmp_path, 10, "/opt/venv/bin/python", "/opt/venv/bin/corral", "serve")
    process(tmp_path, 11, "ollama", "serve", parent=10)
    process(tmp_path, 12, "llama-server", parent=11)
    process(tmp_path, 20, "python3", "train.py")
    users = (GpuProcess(12, 5), GpuProcess(20, None), GpuProcess(99, 7))
    told = running.gpu_users(tmp_path, [sample(processes=users)])
    assert told is not None
    assert [(each.program, each.is_corrals) for each in told] == [
        ("llama-server", True),
        ("python3", False),
        (None, False),
    ]
    assert running.gpu_users(tmp_path, [sample()]) is None


def test_a_store_is_looked_through_for_partial_downloads(tmp_path: Path) -> None:
    put(tmp_path / "blobs/sha256-1", "x" * 10_000)
    put(tmp_path / "blobs/sha256-2-partial", "x" * 10_000)
    put(tmp_path / "blobs/sha256-2-partial-0", "{}")
    put(tmp_path / "manifests/registry.ollama.ai/library/m/latest", "{}")
    put(tmp_path / "history", "not a model")
    os.utime(tmp_path / "blobs/sha256-2-partial", (1e9, 1e9))
    files = disks.store_files(tmp_path)
    assert (files.files, files.unreadable, files.example, files.partial_files) == (4, 0, None, 2)
    assert 10_000 <= files.partial_bytes < 100_000
    assert files.newest_partial_age_s is not None
    assert files.newest_partial_age_s < 60


def test_a_store_that_everybody_may_write_to_is_seen(tmp_path: Path) -> None:
    put(tmp_path / "blobs/x", "")
    plain = disks.folder(tmp_path, disks.STORE_PARTS)
    assert (plain.exists, plain.readable, plain.writable, plain.is_mine, plain.open_to_all) == (
        True,
        True,
        True,
        True,
        False,
    )
    (tmp_path / "blobs").chmod(0o777)
    assert disks.folder(tmp_path, disks.STORE_PARTS).open_to_all


def test_a_folder_that_is_not_there_may_be_made_where_its_parent_may_be_written(tmp_path: Path) -> None:
    found = disks.folder(tmp_path / "a/b/c")
    assert (found.exists, found.writable) == (False, True)
    assert found.free_bytes is not None
    put(tmp_path / "file", "")
    assert disks.folder(tmp_path / "file/below").writable is False
    assert disks.folder(tmp_path / "file").exists is False


NOBODY = """
import sys
from pathlib import Path
from corral.gateway.doctor import disks
import os
os.setgid(65534); os.setgroups([]); os.setuid(65534)
folder = disks.folder(Path(sys.argv[1]), disks.STORE_PARTS)
files = disks.store_files(Path(sys.argv[1]))
print(folder.readable, folder.writable, folder.is_mine, files.files, files.unreadable, files.example)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_files_of_another_user_that_cannot_be_read_are_counted() -> None:
    with tempfile.TemporaryDirectory() as name:  # below /tmp: pytest's own folders are closed to others
        store = Path(name)
        store.chmod(0o755)
        put(store / "blobs/sha256-1", "x")
        put(store / "blobs/sha256-2", "x")
        (store / "blobs/sha256-2").chmod(0o600)
        child = subprocess.run(
            [sys.executable, "-c", NOBODY, name], capture_output=True, text=True, timeout=30, check=True
        )
        assert child.stdout.split() == ["True", "False", "False", "2", "1", f"{name}/blobs/sha256-2"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("below", ["", "/models"])
def test_a_store_that_this_user_may_not_enter_is_not_readable(below: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # closed to others, as the home of Ollama's service user may be
        put(Path(f"{name}{below}/blobs/sha256-1"), "x")
        child = subprocess.run(
            [sys.executable, "-c", NOBODY, f"{name}{below}"], capture_output=True, text=True, timeout=30, check=True
        )
        assert child.stdout.split()[:2] == ["False", "False"]


def test_the_file_system_is_that_of_the_innermost_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    (tmp_path / "my disk").mkdir()
    inside = str(tmp_path / "my disk").replace(" ", "\\040")
    mounts.write_text(
        "1 0 0:1 / / rw - ext4 /dev/a rw\n"
        f"2 1 0:2 / {inside} rw shared:1 - nfs4 srv:/x rw\n"
        "3 1 0:3 / /proc rw - proc p rw\n"
    )
    assert disks.file_system(tmp_path / "my disk", mounts) == "nfs4"
    assert disks.file_system(tmp_path, mounts) == "ext4"
    assert disks.file_system(tmp_path, tmp_path / "none") is None


@contextmanager
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_ports_that_are_taken_are_told_from_free_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corral.gateway.serve.listening.ASK_S", 0.1)
    with listening() as taken, listening() as free:
        pass
    with socket.create_server(("127.0.0.1", taken)):
        config = Config(
            listen=Address("127.0.0.1", taken),
            admin_listen=Address("127.0.0.1", free),
            ollama=OllamaConfig(first_port=free),
            replicas=(),
        )
        found = {port.purpose: port for port in addresses.ports(config)}
    assert (found["listen"].is_free, found["listen"].holder) == (False, "another program")
    assert found["admin_listen"].is_free is True
    assert found[REPLICA_PORTS].where == f"127.0.0.1:{free}"
    assert OLLAMA_PORT in found


def test_an_address_of_another_machine_and_any_free_port(tmp_path: Path) -> None:
    config = Config(
        listen=Address("192.0.2.1", 21_999),
        admin_listen=Address("127.0.0.1", 0),
        replicas=(ReplicaConfig(id="a", url=ReplicaUrl("localhost", 11434)),),
    )
    (only,) = addresses.ports(config)
    assert (only.is_free, only.fault) == (None, "Cannot assign requested address")
    assert addresses.local_ports(config) == {11434}
