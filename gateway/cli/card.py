"""The start-up card: where clients connect, where operators look, and which GPU, replica and models stand behind it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TextIO

import click

from corral.gateway.cli.messages import EXAMPLE_MODEL, admin_flag, client_url, talks, visible
from corral.model import GpuState, Replica, Snapshot

_PAGES: Final = "(web page; /snapshot /metrics /healthz /readyz)"


class Ready(Protocol):
    """What is known once the gateway accepts requests."""

    @property
    def url(self) -> str: ...
    @property
    def admin_url(self) -> str: ...
    @property
    def replicas(self) -> Sequence[Replica]: ...
    @property
    def folders(self) -> Mapping[str, str]: ...
    @property
    def snapshot(self) -> Callable[[], Snapshot]: ...


@dataclass(frozen=True, slots=True)
class Row:
    """One replica on the card."""

    gpu: str
    """Empty: not known, or none."""
    replica: str
    url: str
    weight: str
    slots: str
    folder: str
    """Of its models; empty: not known."""


def show(ready: Ready, version: str, seconds: float | None, more: str = "") -> None:
    """Print the card: with boxes and colours where there is a terminal for them. ``seconds`` since the start;
    ``more`` stands below it."""
    boxed = wants_boxes(sys.stdout, os.environ) and _print_boxes(ready, version, seconds)
    click.echo(next_steps(ready) if boxed else plain(ready, version, seconds))
    if more:
        click.echo(f"\n{more}")


def _print_boxes(ready: Ready, version: str, seconds: float | None) -> bool:
    from corral.gateway.cli.card_boxes import print_boxes  # heavy, and not needed in a pipe

    return print_boxes(title(version, seconds), ready.url, ready.admin_url, rows(ready))


def wants_boxes(out: TextIO, environ: Mapping[str, str]) -> bool:
    return out.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def title(version: str, seconds: float | None) -> str:
    return f"Corral {version} is ready{'' if seconds is None else f' after {seconds:.1f} s'}"


def plain(ready: Ready, version: str, seconds: float | None) -> str:
    lines = [
        title(version, seconds),
        f"  clients   {ready.url}",
        f"  admin     {ready.admin_url}  {_PAGES}",
        *_replica_lines(rows(ready)),
        next_steps(ready),
    ]
    return "\n".join(lines)


def _replica_lines(found: Sequence[Row]) -> list[str]:
    width = max((len(row.replica) for row in found), default=0)
    lines = []
    for index, row in enumerate(found):
        head = "replicas" if index == 0 else ""
        line = f"  {head:<8}  {row.replica:<{width}}  {row.url}  weight {row.weight}  slots {row.slots}"
        line += f"  {row.gpu}" if row.gpu else ""
        lines.append(f"{line}  models {row.folder}" if row.folder else line)
    return lines


def rows(ready: Ready) -> list[Row]:
    gpus = {state.gpu.uuid: state for state in ready.snapshot().gpus}
    return [
        Row(
            gpu=_gpu_names([gpus[uuid] for uuid in replica.gpus if uuid in gpus]),
            replica=replica.id,
            url=f"http://{f'[{replica.host}]' if ':' in replica.host else replica.host}:{replica.port}",
            weight=f"{replica.weight:g}",
            slots="not known yet" if replica.slots is None else str(replica.slots),
            folder=visible(ready.folders.get(replica.id, "")),
        )
        for replica in ready.replicas
    ]


def _gpu_names(states: Sequence[GpuState]) -> str:
    """``GPU 0 NVIDIA GeForce RTX 4090``, ``GPU 0+1 Tesla T4``."""
    if not states:
        return ""
    names = dict.fromkeys(state.gpu.name for state in states)
    return f"GPU {'+'.join(state.label for state in states)} {', '.join(names)}"


def next_steps(ready: Ready) -> str:
    """Two commands to copy."""
    client = client_url(ready.url).removeprefix("http://")
    model = model_to_try(ready.snapshot())
    return f"next: OLLAMA_HOST={client} ollama run {model}\n      corral status{admin_flag(ready.admin_url)}"


def model_to_try(snapshot: Snapshot) -> str:
    """One that is in memory, else one that is installed, else one to pull."""
    for known in ([state.loaded for state in snapshot.replicas], [state.installed for state in snapshot.replicas]):
        names = [name for each in known for name in each or () if talks(name)]
        if names:
            return visible(sorted(names)[0]).replace(" ", "")
    return EXAMPLE_MODEL
