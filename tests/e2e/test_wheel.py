"""What people install is the wheel: it holds everything, and the demo runs from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUIET = ["-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout stays as it is."""
    source = tmp_path_factory.mktemp("source")
    skipped = {".git", ".venv", ".cache", "node_modules", "build", "dist"}
    for path in ROOT.iterdir():
        if path.name not in skipped:
            subprocess.run(["cp", "-a", str(path), str(source)], check=True)
    made = tmp_path_factory.mktemp("wheel")
    options = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(made), str(source)]
    subprocess.run([sys.executable, *QUIET, *options], check=True, timeout=100)
    return next(made.glob("corral-*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has the wheel; its dependencies come from the one the tests run in."""
    place = tmp_path_factory.mktemp("installed")
    venv.create(place, with_pip=False, symlinks=True)
    target = sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)})
    subprocess.run(
        [sys.executable, *QUIET, "install", "--no-deps", "--target", target, str(wheel)], check=True, timeout=100
    )
    return place / "bin" / "python"


def environment() -> dict[str, str]:
    # Path files (such as that of the editable install) do not work by way of PYTHONPATH: only the packages are seen.
    return {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib"), "PYTHONSAFEPATH": "1"}


def test_the_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("gateway", "probes", "policies", "emulator", "laboratory"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".py", ".json", ".html", ".js", ".css", ".svg"):
                assert f"corral/{file.relative_to(ROOT)}" in names
    assert "corral/py.typed" in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"corral"}


def test_the_installed_corral_is_the_wheels(python: Path, tmp_path: Path) -> None:
    run = [str(python), "-c", "import corral, corral.gateway.app, corral.emulator.app; print(corral.__file__)"]
    answer = subprocess.run(
        run, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True, timeout=60
    )
    assert Path(answer.stdout.strip()).is_relative_to(python.parents[1])


def test_the_laboratory_runs_from_the_wheel_with_nothing_of_the_repository(python: Path, tmp_path: Path) -> None:
    run = [str(python), "-m", "corral", "policy", "sim", "--requests", "40", "--seeds", "2", "--json"]
    answer = subprocess.run(
        run, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True, timeout=100
    )
    assert [policy["failed"] for policy in json.loads(answer.stdout)["policies"]] == [0, 0]


@pytest.fixture
def demo(python: Path, tmp_path: Path) -> Iterator[str]:
    """A running demo's URL."""
    command = [str(python), "-m", "corral", "demo", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = ""
            for line in process.stdout:
                if line.split()[:1] == ["clients"]:
                    url = line.split()[1]
                if "Ctrl-C" in line:
                    break
            yield url
            process.terminate()
            process.stdout.read()
            assert process.wait(30) == 0
        finally:
            process.kill()


@pytest.mark.e2e
def test_the_demo_answers_from_the_wheel(demo: str) -> None:
    asked = {"model": "llama3.1:8b", "messages": [{"role": "user", "content": "hi"}], "options": {"num_predict": 4}}
    request = urllib.request.Request(f"{demo}/api/chat", json.dumps(asked).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        lines = [json.loads(line) for line in answer]
    assert lines[-1]["done"] is True
    assert len(lines) > 1
