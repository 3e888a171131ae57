"""The packaging trick holds: each folder is importable below corral through its committed relative link."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import corral

ROOT = Path(__file__).parents[1]
LINKED = ("gateway", "probes", "policies", "emulator", "laboratory")


@pytest.mark.parametrize("name", LINKED)
def test_each_link_is_relative_committed_and_resolves(name: str) -> None:
    link = ROOT / "src" / "corral" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../../{name}"
    assert link.resolve() == ROOT / name
    mode = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-s", str(link.relative_to(ROOT))],
        capture_output=True,
        text=True,
        check=False,
    )
    if mode.returncode == 0 and mode.stdout:  # not in a copy without its history
        assert mode.stdout.startswith("120000 ")


def test_the_version_is_one_fact() -> None:
    assert corral.__version__.count(".") == 2


def test_no_file_names_a_package_registry() -> None:
    # in parts, so that this file does not name them either
    hosts = (("pypi", "org"), ("pythonhosted", "org"), ("registry", "npmjs", "org"), ("proxy", "golang", "org"))
    names = [".".join(parts) for parts in (*hosts, ("crates", "io"))]
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False
    ).stdout.split()
    for path in listed:
        file = ROOT / path
        if file.is_file() and not file.is_symlink():
            text = file.read_text(errors="ignore")
            assert not [name for name in names if name in text], path
