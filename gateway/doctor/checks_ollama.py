"""Checks of the Ollama that is to be run, of those that run already, and of the model store."""

from __future__ import annotations

from typing import Final

from corral.gateway.doctor.facts import CORRAL, OLLAMA_PORT, REPLICA_PORTS, DoctorFacts, Folder, OtherOllama, StoreFiles
from corral.gateway.doctor.naming import GIB, nvidia_gpus, size
from corral.gateway.doctor.verdict import Check, Finding, Level, check_of, worst
from corral.gateway.doctor.versions import Concern, faults_of, shown
from corral.gateway.layout.version import parts, takes_llama_args

LITTLE_DISK_BYTES: Final = 20 * GIB
NO_DISK_BYTES: Final = GIB
PARTIALS_BYTES: Final = GIB
RUNNING_PULL_S: Final = 3600
"""A partial download written to within this time is taken for one that runs: Ollama does the same."""

NETWORK_FILE_SYSTEMS: Final = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "beegfs", "gpfs")
) | frozenset(("fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone", "fuse.ceph"))
INSTALL: Final = "https://ollama.com/download says how to get it; or set `ollama.binary` in the configuration"
UPDATE: Final = "update Ollama the way it was installed (https://ollama.com/download)"


def program(facts: DoctorFacts) -> Check:
    """The program to run is there."""
    found = facts.program
    if found is None:
        return Check("ollama", Level.WARNING, "whether the program is there is not known")
    if not facts.wanted.owns_replicas:
        return Check("ollama", Level.OK, "not needed here: Corral runs no Ollama of its own")
    if found.path is None:
        where = "" if "/" in found.wanted else " in PATH"
        return Check("ollama", Level.PROBLEM, f"no program {found.wanted!r}{where}", INSTALL)
    if not found.executable:
        return Check("ollama", Level.PROBLEM, f"{found.path} may not be run", f"`chmod +x {found.path}`")
    return Check("ollama", Level.OK, found.path)


def version(facts: DoctorFacts) -> Check | None:
    """Its version is known and has no known faults."""
    found = facts.program
    if found is None or found.path is None or not found.executable:
        return None
    said = facts.layout.program.version if facts.layout.program else None
    number = parts(said)
    if number is None:
        why = found.version_fault or (f"it says {said!r}" if said else "it did not say")
        return Check(
            "version", Level.WARNING, f"not known: {why}", f"`{found.path} --version` shows what is wrong with it"
        )
    faults = faults_of(number, _concerns(facts))
    findings = [Finding(fault.level, fault.why, f"{UPDATE}: {shown(fault.fixed)} or newer") for fault in faults]
    newest = max((fault.fixed for fault in faults), default=None)
    level = worst([finding.level for finding in findings])
    text = f"{said}: {'; '.join(finding.found for finding in findings)}" if findings else str(said)
    if not takes_llama_args(said):
        text += " (before 0.30: `split` is refused and `host_cache_bytes` does nothing)"
    return Check("version", level, text, f"{UPDATE}: {shown(newest)} or newer" if newest else None)


def _concerns(facts: DoctorFacts) -> frozenset[Concern]:
    concerns = {Concern.EVERYBODY}
    if any(gpu.is_split or gpu.parent_uuid for gpu in nvidia_gpus(facts)):
        concerns.add(Concern.MIG)
    if facts.wanted.groups:
        concerns.add(Concern.GROUPS)
    if facts.other_ollamas:
        concerns.add(Concern.OTHERS)
    return frozenset(concerns)


def others(facts: DoctorFacts) -> Check:
    """No Ollama runs beside Corral's."""
    if facts.other_ollamas is None:
        return Check("other Ollamas", Level.OK, "which run here is not known")
    if not facts.other_ollamas:
        return Check("other Ollamas", Level.OK, "none runs")
    if not facts.wanted.owns_replicas:
        return Check("other Ollamas", Level.OK, f"{', '.join(map(_title, facts.other_ollamas))}")
    findings = []
    for other in facts.other_ollamas:
        stop = f"`sudo systemctl disable --now {other.service}`" if other.service else f"end it (`kill {other.pid}`)"
        findings.append(
            Finding(
                Level.WARNING,
                f"{_title(other)} runs: it takes GPU memory that Corral's Ollamas do not know of",
                f"{stop}, or list it under `replicas`",
            )
        )
    return check_of("other Ollamas", findings, "none runs")


def _title(other: OtherOllama) -> str:
    of = f" of {other.user}" if other.user else ""
    return f"{other.service} (pid {other.pid}{of})" if other.service else f"`ollama serve` (pid {other.pid}{of})"


def ports(facts: DoctorFacts) -> Check:
    """The addresses that Corral wants are free, or its own."""
    if facts.ports is None:
        return Check("ports", Level.WARNING, "which are free is not known")
    findings = []
    ours = any(port.holder == CORRAL for port in facts.ports)
    for port in facts.ports:
        if ours and port.purpose == REPLICA_PORTS:
            continue  # that Corral's own Ollamas are there
        what = f"{port.where} ({port.purpose})"
        if port.fault:
            findings.append(Finding(Level.PROBLEM, f"{what}: {port.fault}", f"choose another `{port.purpose}`"))
        elif port.is_free is None:
            findings.append(Finding(Level.WARNING, f"whether {what} is free is not known"))
        elif not port.is_free:
            findings.append(_taken(what, port.purpose, port.where, port.holder))
    free = ", ".join(port.where for port in facts.ports if port.is_free)
    if free and worst([finding.level for finding in findings]) is Level.OK:
        findings.append(Finding(Level.OK, f"{free} free"))
    return check_of("ports", findings, "none is wanted")


def _taken(what: str, purpose: str, where: str, holder: str | None) -> Finding:
    who = holder or "a program that is not known"
    if who == CORRAL:
        return Finding(Level.OK, f"{what}: a Corral runs there")
    if purpose == REPLICA_PORTS:
        return Finding(Level.OK, f"{what}: taken by {who}; the next free ones are used")
    if purpose == OLLAMA_PORT:
        return Finding(
            Level.WARNING,
            f"{what}: {who} answers there, and clients that name no port reach it instead of Corral",
            "stop it, or move it to another port and list it under `replicas`",
        )
    number = where.rpartition(":")[2]
    return Finding(
        Level.PROBLEM,
        f"{what}: taken by {who}",
        f"stop it (`ss -ltnp 'sport = :{number}'` shows which program it is) or choose another `{purpose}`",
    )


def store(facts: DoctorFacts) -> Check:
    """The model store can be read and written."""
    folder = facts.store
    if folder is None:
        return Check("store", Level.WARNING, "not known")
    if not facts.wanted.owns_replicas and not folder.exists:
        return Check("store", Level.OK, "not needed here: Corral runs no Ollama of its own")
    if not folder.exists:
        if folder.writable is False:
            return Check("store", Level.PROBLEM, f"{folder.path} is not there and may not be made", _CHOOSE)
        return Check("store", Level.OK, f"{folder.path}: not there yet, it is made with the first pull")
    findings = _access(folder, facts.store_files)
    if folder.file_system in NETWORK_FILE_SYSTEMS:
        findings.append(
            Finding(
                Level.WARNING,
                f"it is on a network file system ({folder.file_system}): a model is read from there at each load",
                "keep the models on a local disk",
            )
        )
    files = "" if facts.store_files is None else f", {facts.store_files.files} files"
    return check_of("store", findings, f"{folder.path}{files}")


_CHOOSE: Final = "choose another with `ollama.models`, or run Corral as the user that owns it"


def _access(folder: Folder, files: StoreFiles | None) -> list[Finding]:
    if folder.readable is False:
        return [Finding(Level.PROBLEM, f"{folder.path} may not be read by this user", _CHOOSE)]
    findings = []
    owner = f", it belongs to {folder.owner}" if folder.owner and folder.is_mine is False else ""
    if files is None:
        findings.append(Finding(Level.WARNING, f"{folder.path}: what is in it is not known"))
    elif files.unreadable:
        findings.append(
            Finding(
                Level.PROBLEM,
                f"{files.unreadable} of {files.files} files may not be read by this user, for instance {files.example}",
                f"Ollama makes files for its own user: `sudo chmod -R a+rX {folder.path}`, or {_CHOOSE}",
            )
        )
    if folder.writable is False:
        findings.append(
            Finding(Level.WARNING, f"{folder.path} may not be written by this user{owner}: no pull can work", _CHOOSE)
        )
    return findings


def sharing(facts: DoctorFacts) -> Check | None:
    """Nobody else changes the store behind Corral's back."""
    folder = facts.store
    if folder is None or not folder.exists or not facts.wanted.owns_replicas:
        return None
    findings = []
    for other in facts.other_ollamas or ():
        if other.keeps_blobs or (other.store is not None and other.store != folder.path):
            continue
        same = "uses the same store" if other.store else "may use the same store"
        findings.append(
            Finding(
                Level.WARNING,
                f"{_title(other)} {same}: at its start it removes files that a pull has not finished",
                "stop it, or give it OLLAMA_NOPRUNE=1",
            )
        )
    if folder.open_to_all:
        advice = f"`chmod o-w {folder.path}`; share it through a group instead"
        findings.append(Finding(Level.WARNING, "every user of this machine may replace models", advice))
    owner = f"belongs to {folder.owner}; " if folder.owner else ""
    return check_of("store sharing", findings, f"{owner}Corral's Ollamas share it with OLLAMA_NOPRUNE=1")


def disk(facts: DoctorFacts) -> Check | None:
    """There is room for models to pull."""
    folder = facts.store
    if folder is None or (not facts.wanted.owns_replicas and not folder.exists):
        return None
    if folder.free_bytes is None:
        return Check("disk", Level.WARNING, "free space for models is not known")
    free = f"{size(folder.free_bytes)} free for models"
    make = "remove models (`ollama rm`) or move the store (`ollama.models`) to a larger disk"
    findings = []
    if folder.free_bytes < NO_DISK_BYTES:
        findings.append(Finding(Level.PROBLEM, free, make))
    elif folder.free_bytes < LITTLE_DISK_BYTES:
        findings.append(Finding(Level.WARNING, f"{free}: less than many a model needs", make))
    else:
        findings.append(Finding(Level.OK, free))
    if facts.store_files and (left := _partials(folder, facts.store_files)):
        findings.append(left)
    return check_of("disk", findings, free)


def _partials(folder: Folder, files: StoreFiles) -> Finding | None:
    if not files.partial_files:
        return None
    text = f"{size(files.partial_bytes)} of unfinished pulls"
    age = files.newest_partial_age_s
    if age is not None and age < RUNNING_PULL_S:
        return Finding(Level.OK, f"{text}, one of which runs")
    if files.partial_bytes < PARTIALS_BYTES:
        return Finding(Level.OK, text)
    clean = f"find {folder.path}/blobs -name '*-partial*' -mmin +60 -delete"
    return Finding(Level.WARNING, text, f"pull those models again to finish, or remove what is left: `{clean}`")
