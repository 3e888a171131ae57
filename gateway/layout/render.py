"""A plan as a page for people, and as JSON for programs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from corral.gateway.layout.estimate import gib
from corral.gateway.layout.machine import Machine
from corral.gateway.layout.plan import Facts, Plan, ReplicaPlan
from corral.model import Gpu, LinkKind

WIDTH = 120
_OWN = ("CUDA_", "ROCR_", "HIP_", "HSA_", "OLLAMA_", "LLAMA_ARG_", "GGML_", "NO_PROXY", "no_proxy")
"""Variables whose values are shown; any other is the operator's, and may be a secret."""
_SHORT = {
    LinkKind.NVLINK: "NVLink",
    LinkKind.SAME_BOARD: "board",
    LinkKind.PCIE_SWITCH: "switch",
    LinkKind.PCIE_SWITCHES: "switches",
    LinkKind.HOST_BRIDGE: "bridge",
    LinkKind.NUMA_NODE: "node",
    LinkKind.SYSTEM: "system",
}


def plan_json(plan: Plan, facts: Facts) -> Any:
    """Plain data; ``facts`` is what ``corral plan --facts`` takes."""
    return {
        "schema": 1,
        "replicas": [_replica_json(replica) for replica in plan.replicas],
        "notes": list(plan.notes),
        "advice": list(plan.advice),
        "facts": msgspec.to_builtins(facts),
    }


def _replica_json(replica: ReplicaPlan) -> dict[str, Any]:
    return {
        "id": replica.id,
        "command": list(replica.command),
        "env": shown_env(replica),
        "gpus": [gpu.uuid for gpu in replica.gpus],
        "models": None if replica.models is None else sorted(replica.models),
        "pinned": sorted(replica.pinned),
        "kept_off": sorted(replica.kept_off),
        "store": replica.store,
        "slots": replica.slots,
        "max_loaded": replica.max_loaded,
        "context_length": replica.context_length,
        "weight": replica.weight,
        "cpus": list(replica.cpus),
        "numa_node": replica.numa_node,
        "signature": replica.signature,
        "reasons": list(replica.reasons),
    }


def shown_env(replica: ReplicaPlan) -> dict[str, str]:
    """Its environment, without the values of variables that are none of Corral's, CUDA's or Ollama's."""
    return {name: value if name.startswith(_OWN) else "(set)" for name, value in sorted(replica.env.items())}


def plan_text(plan: Plan, facts: Facts) -> str:
    """The GPUs, their links, and each replica with the reasons for it."""
    machine = Machine.of(facts, 0)
    common = _common(plan.replicas)
    parts = [
        _head(facts),
        _gpu_lines(machine),
        _link_lines(machine),
        _common_lines(common),
        *(_replica_lines(replica, machine, common) for replica in plan.replicas),
        _sentences("Notes", plan.notes),
        _sentences("Advice", plan.advice),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _head(facts: Facts) -> list[str]:
    program = facts.program
    version = "no version" if program is None or program.version is None else program.version
    ollama = "not found" if program is None else f"{version} ({program.path})"
    survey = facts.survey
    driver = f"driver {survey.driver_version}" if survey.driver_version else ""
    cuda = f"CUDA {survey.cuda_version}" if survey.cuda_version else ""
    ram = "" if facts.ram_bytes is None else f"memory {gib(facts.ram_bytes)}"
    models = f", {len(facts.models)} model{'' if len(facts.models) == 1 else 's'}"
    if not facts.store_is_readable:
        models = ", which this user may not read"
    return [
        f"Ollama   {ollama}",
        f"Store    {f'{facts.store}{models}' if facts.store else 'left to Ollama'}",
        f"Machine  {', '.join(part for part in (ram, driver, cuda) if part) or 'not known'}",
        *(f"         {problem}" for problem in survey.problems),
    ]


def _gpu_lines(machine: Machine) -> list[str]:
    if not machine.gpus:
        return ["GPUs     none"]
    rows = [_gpu_row(gpu, machine) for gpu in machine.gpus]
    return ["GPUs", *_columns(rows)]


def _gpu_row(gpu: Gpu, machine: Machine) -> list[str]:
    memory = "not known" if gpu.memory_bytes is None else gib(gpu.memory_bytes)
    if gpu.memory_bytes is None and gpu.unified_memory:
        memory = "the host's"
    bandwidth = machine.bandwidth(gpu)
    facts = [
        "" if bandwidth is None else f"{bandwidth / 1e9:.0f} GB/s",
        "" if gpu.numa_node is None else f"NUMA {gpu.numa_node}",
        "split by MIG" if gpu.is_split else "",
    ]
    return [machine.short(gpu), gpu.name, memory, *facts, gpu.uuid]


def _link_lines(machine: Machine) -> list[str]:
    gpus = [gpu for gpu in machine.gpus if gpu.parent_uuid is None]
    if len(gpus) < 2 or not machine.survey.links:
        return []
    rows = [["", *(machine.short(gpu) for gpu in gpus[1:])]]
    for at, gpu in enumerate(gpus[:-1]):
        cells = [_link_cell(gpu, other, machine) if place >= at + 1 else "" for place, other in enumerate(gpus)]
        rows.append([machine.short(gpu), *cells[1:]])
    used = {link.kind for link in machine.survey.links}
    legend = [f"{_SHORT[kind]}: {kind.value}" for kind in LinkKind if kind in used and _SHORT[kind] != kind.value]
    return ["Links", *_columns(rows), *(f"  ({', '.join(legend)})" for _ in legend[:1])]


def _link_cell(a: Gpu, b: Gpu, machine: Machine) -> str:
    link = machine.link(a, b)
    if link is None:
        return "?"
    return f"{_SHORT[link.kind]} x{link.lanes}" if link.lanes else _SHORT[link.kind]


@dataclass(frozen=True, slots=True)
class _Common:
    """What is so for every replica, said once; empty where there is only one."""

    reasons: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


def _common(replicas: Sequence[ReplicaPlan]) -> _Common:
    if len(replicas) < 2:
        return _Common()
    first, others = replicas[0], replicas[1:]
    reasons = tuple(reason for reason in first.reasons if all(reason in other.reasons for other in others))
    envs = [shown_env(replica) for replica in replicas]
    env = {name: value for name, value in envs[0].items() if all(other.get(name) == value for other in envs)}
    return _Common(reasons, env)


def _common_lines(common: _Common) -> list[str]:
    if not common.env:
        return []
    return ["Every replica", *_reason_lines(common.reasons), *_env_lines(common.env)]


def _replica_lines(replica: ReplicaPlan, machine: Machine, common: _Common) -> list[str]:
    where = machine.labels(replica.gpus) if replica.gpus else "the CPU"
    models = "" if replica.models is None else f", only {', '.join(sorted(replica.models))}"
    models += f", always loaded: {', '.join(sorted(replica.pinned))}" if replica.pinned else ""
    models += f", never: {', '.join(sorted(replica.kept_off))}" if replica.kept_off else ""
    own = {name: value for name, value in shown_env(replica).items() if common.env.get(name) != value}
    return [
        f"Replica {replica.id}: {where}{models}",
        f"  slots {replica.slots}, context {replica.context_length}, weight {replica.weight:g}",
        *_reason_lines([reason for reason in replica.reasons if reason not in common.reasons]),
        *_env_lines(own),
    ]


def _reason_lines(reasons: Iterable[str]) -> list[str]:
    return [line for reason in reasons for line in _wrapped(reason, "  - ")]


def _env_lines(env: Mapping[str, str]) -> list[str]:
    return _wrapped(" ".join(f"{name}={value}" for name, value in env.items()), "  env  ")


def _sentences(title: str, sentences: Iterable[str]) -> list[str]:
    lines = [line for sentence in sentences for line in _wrapped(sentence, "  - ")]
    return [title, *lines] if lines else []


def _wrapped(text: str, head: str) -> list[str]:
    """Lines of at most :data:`WIDTH` characters; a longer word (a list of UUIDs) is left whole, to be copied."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Left-aligned columns; a column without content is left out."""
    used = [at for at in range(len(rows[0])) if any(row[at] for row in rows)]
    widths = {at: max(len(row[at]) for row in rows) for at in used}
    return ["  " + "  ".join(row[at].ljust(widths[at]) for at in used).rstrip() for row in rows]
