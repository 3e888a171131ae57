"""``python -m corral.emulator.standin FOLDER``: all that a machine with GPUs has, in software.

It writes the stand-in for NVIDIA's library, the GPUs that it shows and an executable ``ollama``, and prints the
variables to run Corral with: ``env $(python -m corral.emulator.standin FOLDER) corral serve``.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Final

import click

from corral.emulator.nvml import machines
from corral.emulator.nvml.build import build
from corral.emulator.nvml.state import VARIABLE, Machine, write_machine
from corral.errors import OperatorError

_MACHINES: Final = {
    "one": lambda: machines.alike(1),
    "four-alike": lambda: machines.alike(4),
    "four-unequal": machines.four_unequal,
    "eight-mixed": machines.eight_mixed,
    "nvlink-pair": lambda: machines.nvlink_pairs(1),
    "four-nvlink-pairs": lambda: machines.nvlink_pairs(4),
    "nvswitch": machines.nvswitch,
    "mig": machines.split_by_mig,
}


def make_ollama(folder: Path) -> Path:
    """Write an executable ``ollama`` that is the emulator, for a folder that stands in front of ``PATH``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "ollama"
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m corral.emulator.ollama "$@"\n')
    path.chmod(0o755)
    return path


def set_up(folder: Path, machine: Machine) -> dict[str, str]:
    """Write everything below ``folder``; the environment variables that make it seen."""
    folder = folder.resolve()
    library, ollama = build(folder / "lib"), make_ollama(folder / "bin")
    write_machine(folder / "machine", *machine)
    path = f"{ollama.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {"CORRAL_NVML_LIBRARY": str(library), VARIABLE: str(folder / "machine"), "PATH": path}


@click.command("standin", help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--machine", "name", type=click.Choice(list(_MACHINES)), default="four-unequal", show_default=True)
@click.option("--gpu", "gpus", multiple=True, help="A GPU of the machine instead. Repeat for more.")
def standin(folder: Path, name: str, gpus: tuple[str, ...]) -> None:
    try:
        variables = set_up(folder, machines.of(gpus) if gpus else _MACHINES[name]())
    except OperatorError as error:
        raise click.ClickException(str(error)) from None
    for key, value in variables.items():
        click.echo(f"{key}={value}")


if __name__ == "__main__":
    standin()
