"""Every check of the doctor, in each of its outcomes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from corral.gateway.doctor import checks_gpu, checks_machine, checks_ollama, checks_use
from corral.gateway.doctor.checks import CHECKS, Rule, examine
from corral.gateway.doctor.facts import (
    OLLAMA_PORT,
    REPLICA_PORTS,
    DeviceFile,
    DoctorFacts,
    Folder,
    GpuUser,
    Limits,
    Memory,
    OtherOllama,
    PciGpus,
    Port,
    Program,
    Software,
    StoreFiles,
    Wanted,
)
from corral.gateway.doctor.verdict import Level
from corral.gateway.layout.plan import StoredModel
from corral.model import GpuFault, GpuMiss, Throttle
from tests.gateway.doctor.machines import GIB, STORE, amd, gpu, machine, mig_device, nvlink, sample

OK, WARNING, PROBLEM = Level.OK, Level.WARNING, Level.PROBLEM
CLOSED = (DeviceFile("/dev/nvidia0", False),)
LOST = GpuMiss("GPU-0", 1.0, GpuFault.LOST, "GPU is lost")
SERVICE = OtherOllama(77, "ollama", "ollama.service", "/usr/share/ollama/.ollama/models", False)
BY_HAND = OtherOllama(78, "bob")
NO_MODULE = "The NVIDIA library is installed, but its kernel module is not loaded: `modprobe nvidia`."
MISMATCH = "The NVIDIA kernel module and library are of different versions: reboot."
NOT_OURS = Wanted("corral.yaml", owns_replicas=False)


class Row(NamedTuple):
    """One outcome."""

    rule: Rule
    facts: DoctorFacts
    level: Level | None
    """None: the check does not concern the machine."""
    found: str = ""
    """A part of what it says it found."""
    advice: str | None = None
    """A part of its advice; None: it gives none."""


def gpu_rows() -> Iterator[Row]:
    one, two = machine(gpu()), machine(gpu(0), gpu(1))
    bare = machine(pci=PciGpus(1, 0), nvidia_devices=())
    rule: Rule = checks_gpu.gpus
    yield Row(rule, two, OK, "2 x NVIDIA L4")
    yield Row(rule, machine(), OK, "none in this machine")
    yield Row(rule, machine(pci=None), WARNING, "whether one is built in is not known")
    yield Row(rule, machine(problems=["It cannot be loaded."]), WARNING, "It cannot be loaded")
    yield Row(rule, machine(problems=["It does not answer."]), PROBLEM, "does not answer", "reboot")
    yield Row(rule, machine(pci=PciGpus(2, 0)), PROBLEM, "lists 2 of NVIDIA", "the checks below say why")
    yield Row(rule, machine(nvidia_module="570.86.15"), PROBLEM, "driver is here", "below")
    yield Row(rule, machine(pci=PciGpus(0, 1)), WARNING, "lists 1 of AMD", "ROCm")
    yield Row(rule, machine(gpu(0), gpu(1), misses=(LOST,)), PROBLEM, "GPU 0 cannot be read: GPU is lost", "reboot")
    yield Row(rule, machine(gpu(), problems=["GPU 1 is left out."]), PROBLEM, "GPU 1 is left out")
    yield Row(rule, machine(drivers_hang=True, gpus_known=False), PROBLEM, "hangs", "reboot")
    yield Row(rule, machine(gpus_known=False), WARNING, "not known")

    rule = checks_gpu.nvml
    yield Row(rule, one, OK, "reachable")
    yield Row(rule, machine(), None)
    yield Row(rule, machine(pci=PciGpus(1, 0), gpus_known=False), None)
    yield Row(rule, replace(bare, container="Docker"), PROBLEM, "lists no NVIDIA GPU", "see the container check")
    mismatch = machine(pci=PciGpus(1, 0), problems=[MISMATCH], nvidia_module="570.86.15")
    yield Row(rule, mismatch, PROBLEM, "different versions", "reboot")
    closed = machine(pci=PciGpus(1, 0), nvidia_devices=CLOSED, nvidia_module="570.86.15")
    yield Row(rule, closed, PROBLEM, "lists no NVIDIA GPU", "video")
    hung = machine(nvidia_module="570.86.15", problems=["The nvidia driver does not answer: it is not used."])
    yield Row(rule, hung, PROBLEM, "does not answer", "dmesg")
    denied = machine(problems=["No permission to ask."], nvidia_module="570.86.15")
    yield Row(rule, denied, PROBLEM, "No permission", "video")
    yield Row(rule, machine(pci=PciGpus(1, 0), problems=[NO_MODULE]), PROBLEM, "not loaded", "modprobe nvidia")
    without = machine(nvidia_module="570.86.15", problems=["The NVIDIA library cannot be loaded: no such file."])
    yield Row(rule, without, PROBLEM, "cannot be loaded", "libnvidia-ml.so.1")
    odd = machine(nvidia_module="570.86.15", problems=["The NVIDIA driver cannot be asked (Unknown Error)."])
    yield Row(rule, odd, PROBLEM, "Unknown Error", "nvidia-smi")

    rule = checks_gpu.driver
    yield Row(rule, one, OK, "570.86.15, CUDA 12.8")
    yield Row(rule, machine(), None)
    yield Row(rule, machine(gpu(), driver=None), WARNING, "not known")
    yield Row(rule, machine(gpu(), driver="470.256.02"), PROBLEM, "without CUDA 12", "update the NVIDIA driver")
    yield Row(rule, machine(gpu(), driver="535.230.02"), WARNING, "550 or newer", "update")
    pascal = gpu(1, "GTX 1080", compute_capability=(6, 1))
    yield Row(rule, machine(gpu(), pascal), OK, "570")
    yield Row(rule, machine(gpu(), pascal, driver="560.35.03"), PROBLEM, "for GPU 1", "update")
    yield Row(rule, machine(pascal, driver="560.35.03", version=None), WARNING, "570 or newer", "update")
    yield Row(rule, machine(pascal, driver="560.35.03", version="0.24.0"), WARNING, "570 or newer", "update")

    rule = checks_gpu.capability
    yield Row(rule, one, OK, "8.9")
    yield Row(rule, machine(), None)
    yield Row(rule, machine(gpu(compute_capability=None)), OK, "not known of GPU 0")
    kepler = gpu(1, "Tesla K80", compute_capability=(3, 7))
    yield Row(rule, machine(gpu(), kepler), PROBLEM, "GPU 1 below 5.0", "leave it out")

    rule = checks_gpu.persistence
    yield Row(rule, one, OK, "on")
    yield Row(rule, machine(), None)
    yield Row(rule, machine(gpu(persistence_mode=None)), OK, "not known")
    yield Row(rule, machine(gpu(persistence_mode=None), wsl=True), None)
    off = machine(gpu(0), gpu(1, persistence_mode=False), gpu(2, persistence_mode=False))
    yield Row(rule, off, WARNING, "1 and 2: after each pause", "nvidia-smi -pm 1")

    rule = checks_gpu.mig
    yield Row(rule, one, OK, "no GPU is split")
    yield Row(rule, machine(), None)
    split = gpu(is_split=True)
    yield Row(rule, machine(split, mig_device(), mig_device(0, 1)), OK, "2 MIG devices on GPU 0")
    yield Row(rule, machine(split), PROBLEM, "nothing can run there", "nvidia-smi mig -cgi")
    half = machine(split, mig_device(), gpu(1, is_split=True))
    yield Row(rule, half, PROBLEM, "GPU 1 split", "-mig 0")

    rule = checks_gpu.links
    four = [gpu(0), gpu(1), gpu(2), gpu(3)]
    yield Row(rule, one, None)
    yield Row(rule, two, OK, "none between")
    yield Row(rule, machine(*four, links=[nvlink(0, 1), nvlink(2, 3)]), OK, "2 pairs: 0-1, 2-3")
    cube = [nvlink(0, 1, 2), nvlink(2, 3, 2), nvlink(0, 2, 1), nvlink(1, 3, 1)]
    yield Row(rule, machine(*four, links=cube), OK, "4 pairs")
    down = machine(*four, links=[nvlink(0, 1, 4), nvlink(2, 3, 3)])
    yield Row(rule, down, WARNING, "(GPU 2: 3, GPU 3: 3; others: 4)", "nvlink --status")
    yield Row(rule, machine(*four, links=[nvlink(0, 1, 4), nvlink(2, 3, None)]), OK, "2 pairs")
    unlike = machine(gpu(0), gpu(1), gpu(2, "H100"), gpu(3, "H100"), links=[nvlink(0, 1, 4), nvlink(2, 3, 18)])
    yield Row(rule, unlike, OK, "2 pairs")
    refused = machine(gpu(0), gpu(1), links=[nvlink(0, 1, 4, peer_to_peer=False)])
    yield Row(rule, refused, WARNING, "between GPU 0 and GPU 1 is there", "topo -p2p")

    rule = checks_gpu.amd_access
    nodes = (DeviceFile("/dev/kfd", True), DeviceFile("/dev/dri/renderD128", True))
    yield Row(rule, machine(), None)
    yield Row(rule, machine(amd(), amd_devices=None), None)
    yield Row(rule, machine(amd(), amd_devices=nodes), OK, "may use /dev/kfd")
    yield Row(rule, machine(amd(), amd_devices=nodes[1:]), PROBLEM, "/dev/kfd is missing", "ROCm")
    shut = (nodes[0], DeviceFile("/dev/dri/renderD128", False))
    yield Row(rule, machine(amd(), amd_devices=shut), PROBLEM, "may not use /dev/dri/renderD128", "render,video")


def use_rows() -> Iterator[Row]:
    one, unequal = machine(gpu()), machine(gpu(0), gpu(1, "RTX 3060"))

    def hot(**more: Any) -> DoctorFacts:
        return machine(gpu(), samples=(sample(**more),))

    rule: Rule = checks_use.ecc
    yield Row(rule, machine(), None)
    yield Row(rule, one, OK, "on on GPU 0, no uncorrected errors")
    yield Row(rule, machine(gpu(ecc=None)), OK, "have none, or do not tell")
    yield Row(rule, machine(gpu(ecc=False)), OK, "off on GPU 0")
    yield Row(rule, hot(uncorrected_ecc_errors=None), OK, "not known")
    yield Row(rule, hot(uncorrected_ecc_errors=3), PROBLEM, "3 uncorrected memory errors", "--gpu-reset")

    rule = checks_use.order
    yield Row(rule, one, None)
    yield Row(rule, machine(gpu(0), gpu(1)), OK, "equal GPUs")
    yield Row(rule, unequal, OK, "CUDA puts the fastest first")
    yield Row(rule, replace(unequal, environ={"CUDA_VISIBLE_DEVICES": "GPU-1"}), OK, "Corral uses UUIDs")
    numbered = replace(unequal, environ={"CUDA_VISIBLE_DEVICES": "0,1"})
    yield Row(rule, numbered, WARNING, "CUDA_VISIBLE_DEVICES=0,1 on unequal GPUs", "CUDA_DEVICE_ORDER=PCI_BUS_ID")
    yield Row(rule, replace(unequal, environ={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}), OK, "as nvidia-smi does")

    rule = checks_use.hidden
    yield Row(rule, machine(environ={"CUDA_VISIBLE_DEVICES": "0"}), None)
    yield Row(rule, machine(gpu(), environ={"CUDA_VISIBLE_DEVICES": "7"}, wanted=NOT_OURS), None)
    yield Row(rule, unequal, OK, "no variable hides any")
    yield Row(rule, replace(unequal, environ={"CUDA_VISIBLE_DEVICES": "0,GPU-1"}), OK, "no variable")
    seen = replace(unequal, environ={"CUDA_VISIBLE_DEVICES": "1"})
    yield Row(rule, seen, WARNING, "CUDA_VISIBLE_DEVICES=1 hides GPU 0", "`gpus`")
    nothing = replace(unequal, environ={"CUDA_VISIBLE_DEVICES": ""})
    yield Row(rule, nothing, WARNING, "CUDA_VISIBLE_DEVICES= hides GPUs 0 and 1", "`gpus`")
    yield Row(rule, replace(unequal, environ={"ROCR_VISIBLE_DEVICES": "1"}), OK, "no variable")
    yield Row(rule, machine(amd(), environ={"ROCR_VISIBLE_DEVICES": "7"}), WARNING, "hides GPU 0", "`gpus`")

    rule = checks_use.slowed
    yield Row(rule, machine(), None)
    yield Row(rule, machine(gpu(), samples=()), None)
    yield Row(rule, one, OK, "60 C at most, none slowed")
    yield Row(rule, hot(throttles=frozenset({Throttle.POWER_CAP})), OK, "none slowed")
    yield Row(rule, hot(throttles=None, temperature_celsius=None), OK, "is not known")
    part = replace(sample(), uuid="MIG-0-0", throttles=None)
    split = machine(gpu(is_split=True), mig_device(), samples=(sample(), part))
    yield Row(rule, split, OK, "60 C at most, none slowed")
    yield Row(rule, hot(temperature_celsius=86.0), WARNING, "86 C and slows down at 90 C", "airflow")
    yield Row(rule, hot(throttles=frozenset({Throttle.HARDWARE_THERMAL})), WARNING, "because it is hot", "fans")
    yield Row(rule, hot(throttles=frozenset({Throttle.THERMAL})), WARNING, "because it is hot", "fans")
    yield Row(rule, hot(throttles=frozenset({Throttle.HARDWARE})), WARNING, "by its hardware", "cables")
    yield Row(rule, hot(throttles=frozenset({Throttle.POWER_BRAKE})), WARNING, "power brake", "power supply")
    yield Row(rule, machine(gpu(), samples=(), misses=(LOST,)), OK, "temperature not known")

    def used(*users: GpuUser) -> DoctorFacts:
        return machine(gpu(), gpu_users=users)

    rule = checks_use.foreign
    yield Row(rule, machine(), None)
    yield Row(rule, one, OK, "no other program")
    yield Row(rule, machine(gpu(), gpu_users=None), OK, "not known")
    yield Row(rule, used(GpuUser(5, "GPU-0", 20 * GIB, "llama-server", is_corrals=True)), OK, "no other program")
    yield Row(rule, used(GpuUser(5, "GPU-0", GIB // 8, "Xorg")), OK, "128 MiB held by Xorg (pid 5)")
    yield Row(rule, used(GpuUser(5, "GPU-0", None, None)), OK, "an unknown amount held by not visible from here")
    yield Row(rule, used(GpuUser(5, "GPU-0", 2 * GIB, "python3")), WARNING, "GPU 0: 2 GiB held by python3", "`gpus`")
    many = [GpuUser(number, "GPU-0", GIB, "python3") for number in range(5)]
    yield Row(rule, used(*many), WARNING, "and 2 more", "end it")


def ollama_rows() -> Iterator[Row]:
    fit = machine(gpu())
    rule: Rule = checks_ollama.program
    yield Row(rule, fit, OK, "/usr/bin/ollama")
    yield Row(rule, machine(program=None), WARNING, "not known")
    absent = machine(program=Program("ollama", None, executable=False))
    yield Row(rule, absent, PROBLEM, "no program 'ollama' in PATH", "ollama.binary")
    yield Row(rule, machine(program=Program("/opt/o", None)), PROBLEM, "no program '/opt/o'", "download")
    yield Row(rule, machine(program=Program("/opt/o", "/opt/o", False)), PROBLEM, "may not be run", "chmod +x")
    yield Row(rule, replace(absent, wanted=NOT_OURS), OK, "not needed")

    rule = checks_ollama.version
    yield Row(rule, absent, None)
    yield Row(rule, fit, OK, "0.32.15")
    yield Row(rule, machine(version="0.33.0-rc2"), OK, "0.33.0-rc2")
    yield Row(rule, machine(version=None), WARNING, "did not say", "--version")
    yield Row(rule, machine(version="0.0.0"), WARNING, "'0.0.0'", "--version")
    yield Row(rule, machine(version="0.24.0"), OK, "before 0.30")
    yield Row(rule, machine(version="0.1.28"), PROBLEM, "CVE-2024-28224", "0.17.1 or newer")
    yield Row(rule, machine(version="0.1.33"), PROBLEM, "CVE-2024-37032", "0.17.1 or newer")
    yield Row(rule, machine(version="0.1.46"), PROBLEM, "CVE-2024-45436", "or newer")
    yield Row(rule, machine(version="0.5.7"), WARNING, "OLLAMA_CONTEXT_LENGTH", "or newer")
    yield Row(rule, machine(version="0.17.0"), WARNING, "CVE-2026-7482", "0.17.1 or newer")
    yield Row(rule, machine(version="0.17.1"), OK, "0.17.1")
    yield Row(rule, machine(version="0.20.9"), OK, "0.20.9")
    yield Row(rule, machine(version="0.20.9", other_ollamas=(BY_HAND,)), WARNING, "#8891", "0.21.0 or newer")
    yield Row(rule, machine(gpu(), version="0.15.2"), WARNING, "CVE-2026-7482", "0.17.1")
    split = machine(gpu(is_split=True), mig_device(), version="0.15.2")
    yield Row(rule, split, PROBLEM, "#14031", "0.17.1 or newer")
    yield Row(rule, machine(gpu(), version="0.30.6"), OK, "0.30.6")
    grouped = machine(gpu(0), gpu(1), version="0.30.6", wanted=Wanted(groups=True))
    yield Row(rule, grouped, WARNING, "#16599", "0.30.7 or newer")

    rule = checks_ollama.others
    yield Row(rule, fit, OK, "none runs")
    yield Row(rule, machine(other_ollamas=None), OK, "not known")
    yield Row(
        rule, machine(other_ollamas=(SERVICE,)), WARNING, "ollama.service (pid 77", "disable --now ollama.service"
    )
    yield Row(rule, machine(other_ollamas=(BY_HAND,)), WARNING, "of bob", "`kill 78`")
    yield Row(rule, machine(other_ollamas=(SERVICE,), wanted=NOT_OURS), OK, "pid 77")

    def at(purpose: str, is_free: bool | None, **more: Any) -> DoctorFacts:
        return machine(ports=(Port(purpose, "127.0.0.1:11434", is_free, **more),))

    rule = checks_ollama.ports
    yield Row(rule, fit, OK, "127.0.0.1:11434, 127.0.0.1:11435 free")
    yield Row(rule, machine(ports=None), WARNING, "not known")
    yield Row(rule, at("listen", None), WARNING, "is not known")
    yield Row(rule, at("listen", None, fault="no such address"), PROBLEM, "no such address", "`listen`")
    yield Row(rule, at("listen", False, holder="corral"), OK, "a Corral runs there")
    yield Row(rule, at("listen", False, holder="ollama 0.32.15"), PROBLEM, "taken by ollama 0.32.15", "sport = :11434")
    yield Row(rule, at("admin_listen", False), PROBLEM, "not known", "`admin_listen`")
    yield Row(rule, at(OLLAMA_PORT, False, holder="ollama 0.5.7"), WARNING, "instead of Corral", "`replicas`")
    yield Row(rule, at(REPLICA_PORTS, False, holder="another program"), OK, "next free ones")
    running = (
        Port("listen", "127.0.0.1:1", False, "corral"),
        Port(REPLICA_PORTS, "127.0.0.1:2", False, "ollama 0.30.0"),
    )
    yield Row(rule, machine(ports=running), OK, "127.0.0.1:1 (listen): a Corral runs there")


def store_rows() -> Iterator[Row]:
    fit = machine(gpu())
    assert fit.store is not None
    gone = Folder("/srv/new", False, writable=True, free_bytes=100 * GIB)
    foreign = replace(fit.store, owner="ollama", is_mine=False)

    rule: Rule = checks_ollama.store
    yield Row(rule, fit, OK, f"{STORE}, 12 files")
    yield Row(rule, machine(store=None), WARNING, "not known")
    yield Row(rule, machine(store=gone), OK, "made with the first pull")
    yield Row(rule, machine(store=replace(gone, writable=False)), PROBLEM, "may not be made", "ollama.models")
    yield Row(rule, machine(store=replace(gone, writable=False), wanted=NOT_OURS), OK, "not needed")
    yield Row(rule, machine(store=replace(foreign, readable=False)), PROBLEM, "may not be read", "ollama.models")
    yield Row(rule, machine(store=replace(foreign, writable=False)), WARNING, "belongs to ollama: no pull", "user")
    yield Row(rule, machine(store_files=None), WARNING, "not known")
    closed = machine(store_files=StoreFiles(12, 2, f"{STORE}/blobs/sha256-1"))
    yield Row(rule, closed, PROBLEM, "2 of 12 files may not be read", "chmod -R a+rX")
    yield Row(rule, machine(store=replace(fit.store, file_system="nfs4")), WARNING, "(nfs4)", "local disk")

    rule = checks_ollama.sharing
    yield Row(rule, fit, OK, "belongs to ann; Corral's Ollamas share it")
    yield Row(rule, machine(store=gone), None)
    yield Row(rule, machine(wanted=NOT_OURS), None)
    yield Row(rule, machine(other_ollamas=(SERVICE,)), OK, "share it")
    yield Row(rule, machine(other_ollamas=(replace(SERVICE, store=STORE, keeps_blobs=True),)), OK, "share it")
    same = machine(other_ollamas=(replace(SERVICE, store=STORE),))
    yield Row(rule, same, WARNING, "uses the same store", "OLLAMA_NOPRUNE=1")
    yield Row(rule, machine(other_ollamas=(BY_HAND,)), WARNING, "may use the same store", "OLLAMA_NOPRUNE=1")
    yield Row(rule, machine(store=replace(fit.store, open_to_all=True)), WARNING, "may replace models", "chmod o-w")

    def left(count_bytes: int, age_s: float | None) -> DoctorFacts:
        return machine(store_files=StoreFiles(12, 0, None, 2, count_bytes, age_s))

    rule = checks_ollama.disk
    yield Row(rule, fit, OK, "500 GiB free")
    yield Row(rule, machine(store=None), None)
    yield Row(rule, machine(store=gone, wanted=NOT_OURS), None)
    yield Row(rule, machine(store=replace(fit.store, free_bytes=None)), WARNING, "not known")
    yield Row(rule, machine(store=replace(fit.store, free_bytes=10 * GIB)), WARNING, "10 GiB free", "ollama rm")
    yield Row(rule, machine(store=replace(fit.store, free_bytes=GIB // 2)), PROBLEM, "512 MiB free", "ollama rm")
    yield Row(rule, left(GIB // 4, 9e4), OK, "256 MiB of unfinished pulls")
    yield Row(rule, left(9 * GIB, 60.0), OK, "one of which runs")
    yield Row(rule, left(9 * GIB, 9e4), WARNING, "9 GiB of unfinished pulls", "-partial*' -mmin +60 -delete")


def machine_rows() -> Iterator[Row]:
    fit = machine(gpu())
    rule: Rule = checks_machine.configuration
    yield Row(rule, fit, OK, "defaults (no file)")
    yield Row(rule, machine(wanted=Wanted("corral.yaml")), OK, "corral.yaml")
    yield Row(rule, machine(wanted=NOT_OURS), OK, "runs no Ollama of its own")
    broken = machine(wanted=Wanted("corral.yaml", fault="corral.yaml:1:1: unknown key"))
    yield Row(rule, broken, PROBLEM, "unknown key; what follows", "corral check-config corral.yaml")
    unlike = machine(wanted=Wanted("corral.yaml", layout_fault="gpus: there is no GPU 7"))
    yield Row(rule, unlike, PROBLEM, "there is no GPU 7", "corral plan")

    rule = checks_machine.container
    yield Row(rule, fit, OK, "none")
    yield Row(rule, machine(container=None), OK, "not known")
    yield Row(rule, machine(gpu(), container="Docker"), OK, "with GPUs of its host")
    yield Row(rule, machine(container="Podman"), OK, "Podman")
    bare = machine(container="Docker", nvidia_module="570.86.15")
    yield Row(rule, bare, PROBLEM, "without the NVIDIA runtime", "--gpus all")
    yield Row(rule, replace(bare, nvidia_devices=None), OK, "Docker")

    rule = checks_machine.wsl
    yield Row(rule, fit, None)
    yield Row(rule, machine(wsl=True), OK, "Windows owns the GPUs")

    def caches(count_bytes: int | None) -> DoctorFacts:
        return machine(wanted=Wanted(replicas=4, host_cache_bytes=count_bytes))

    rule = checks_machine.prompt_caches
    yield Row(rule, fit, OK, "up to 8 GiB of 64 GiB")
    yield Row(rule, machine(wanted=NOT_OURS), None)
    yield Row(rule, machine(version="0.24.0"), None)
    yield Row(rule, caches(None), WARNING, "not known")
    yield Row(rule, machine(wanted=Wanted(layout_fault="gpus[0]: …")), OK, "before the configuration is corrected")
    yield Row(rule, replace(caches(GIB), memory=None), WARNING, "not known")
    yield Row(rule, caches(40 * GIB), WARNING, "40 GiB of 64 GiB", "ollama.host_cache_bytes")
    yield Row(rule, caches(80 * GIB), PROBLEM, "80 GiB of 64 GiB", "ollama.host_cache_bytes")

    big = (StoredModel("deepseek-r1:671b", 400 * GIB, None, None),)
    rule = checks_machine.model_memory
    yield Row(rule, fit, OK, "64 GiB, 50 GiB available, no swap")
    yield Row(rule, machine(wanted=NOT_OURS), None)
    yield Row(rule, machine(memory=None), OK, "not known")
    yield Row(rule, machine(memory=Memory(64 * GIB, None, 8 * GIB)), OK, "64 GiB, 8 GiB swap")
    yield Row(rule, machine(models=big), WARNING, "less than deepseek-r1:671b has weights (400 GiB)", "add memory")

    rule = checks_machine.limits
    yield Row(rule, fit, OK, "65536 open files (about 32704 streams at once)")
    yield Row(rule, machine(limits=None), OK, "not known")
    yield Row(rule, machine(limits=Limits(known=False)), OK, "not known")
    yield Row(rule, machine(limits=Limits(known=True)), OK, "no limit on open files")
    yield Row(rule, machine(limits=Limits(True, 1024)), WARNING, "about 448 streams", "LimitNOFILE")
    yield Row(rule, machine(limits=Limits(True, None, 100)), WARNING, "100 processes and threads", "LimitNPROC")
    yield Row(rule, machine(limits=Limits(True, None, None, 20)), WARNING, "20 threads left", "TasksMax")

    rule = checks_machine.state
    assert fit.state is not None
    yield Row(rule, fit, OK, "/var/lib/corral")
    yield Row(rule, machine(state=None), WARNING, "not known")
    yield Row(rule, machine(state=replace(fit.state, writable=False)), PROBLEM, "may not be written", "state_dir")
    yield Row(rule, machine(state=Folder("/x", False, writable=False)), PROBLEM, "may not be made", "state_dir")
    yield Row(rule, machine(state=Folder("/x", False)), WARNING, "not known")
    yield Row(rule, machine(state=replace(fit.state, free_bytes=1 << 20)), WARNING, "only 1 MiB free", "state_dir")
    yield Row(rule, machine(state=Folder("/x", False, writable=False), wanted=NOT_OURS), OK, "not needed")

    rule = checks_machine.software
    yield Row(rule, fit, OK, "3.12.1, uvloop 0.21.0")
    yield Row(rule, machine(software=None), WARNING, "not known")
    yield Row(rule, machine(software=Software((3, 10, 1), "0.21.0")), PROBLEM, "needs 3.11", "newer one")
    yield Row(rule, machine(software=Software((3, 12, 1), None)), PROBLEM, "cannot be imported", "again")
    yield Row(rule, machine(software=Software((3, 12, 1), "0.19.0")), PROBLEM, "needs 0.21", "again")

    rule = checks_machine.numa
    yield Row(rule, fit, None)
    yield Row(rule, machine(numa_nodes=None), None)
    yield Row(rule, machine(numa_nodes=2), OK, "2 nodes")
    yield Row(rule, machine(numa_nodes=2, numa_balancing=True), OK, "numa_balancing=1")

    rule = checks_machine.gathering
    yield Row(rule, fit, None)
    yield Row(rule, machine(missing=("store: no answer within 5 s",)), WARNING, "no answer", "--debug")


ROWS = [*gpu_rows(), *use_rows(), *ollama_rows(), *store_rows(), *machine_rows()]


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.rule.__name__}-{row.found or 'none'}" for row in ROWS])
def test_each_outcome_says_how_bad_it_is_what_was_found_and_what_to_do(row: Row) -> None:
    check = row.rule(row.facts)
    if row.level is None:
        assert check is None
        return
    assert check is not None
    assert check.level is row.level, check
    assert row.found in check.found
    if row.advice is None:
        assert check.advice is None
    else:
        assert check.advice is not None
        assert row.advice in check.advice


def test_every_check_of_the_page_has_its_outcomes_here() -> None:
    assert {rule for area in CHECKS for rule in area.rules} == {row.rule for row in ROWS}


@pytest.mark.parametrize("rule", [rule for area in CHECKS for rule in area.rules], ids=lambda rule: rule.__name__)
def test_every_check_says_in_a_sentence_what_is_as_it_should_be(rule: Rule) -> None:
    assert rule.__doc__
    assert rule.__doc__.endswith(".")


def test_nothing_known_is_neither_a_problem_nor_an_error() -> None:
    report = examine(DoctorFacts(gpus_known=False))
    assert report.checks
    assert report.worst is WARNING
    assert all("not known" in check.found for check in report.checks if check.level is not OK)


def test_a_healthy_machine_has_no_warnings() -> None:
    for facts in (machine(), machine(gpu()), machine(gpu(0), gpu(1), links=[nvlink(0, 1)])):
        assert [check for check in examine(facts).checks if check.level is not OK] == []


def test_every_problem_comes_with_advice_unless_it_says_it_itself() -> None:
    checks = [row.rule(row.facts) for row in ROWS]
    silent = [check.found for check in checks if check and check.level is PROBLEM and not check.advice]
    assert silent == ["GPU 1 is left out"]
