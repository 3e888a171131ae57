"""The Dockerfile and the locks: what they name exists, and nothing in them runs as root or unpinned."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.dockerfile import DOCKERFILE, ROOT, Stage, in_context, stages

ARGUMENTS, STAGES = stages(DOCKERFILE.read_text())
BY_NAME = {stage.name: stage for stage in STAGES}
RUNNING = ("corral", "with-ollama")
EXTRAS = ("top", "otel", "discovery")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def locked(path: str) -> dict[str, str]:
    """Name and version of everything in a lock."""
    found = re.findall(r"^([a-z0-9-]+)==([^ \\;]+)", (ROOT / path).read_text(), flags=re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


RUNTIME = locked("deploy/docker/requirements.lock")


@pytest.mark.parametrize("stage", STAGES, ids=[f"{at}-{stage.name or 'default'}" for at, stage in enumerate(STAGES)])
def test_everything_that_is_copied_exists_and_is_let_into_the_build(stage: Stage) -> None:
    for copy in stage.all("COPY"):
        *sources, _ = copy.words
        origin = copy.flags.get("from")
        if origin is not None:
            assert origin in BY_NAME
            continue
        for source in sources:
            assert (ROOT / source).exists()
            if (ROOT / source).is_file():
                assert in_context(source)


def test_what_the_package_needs_is_let_into_the_build_and_nothing_else() -> None:
    package = [*ROOT.glob("src/corral/*.py"), *ROOT.glob("src/corral/py.typed")]
    for folder in ("gateway", "probes", "policies", "emulator"):
        package += [path for path in ROOT.glob(f"{folder}/**/*") if path.is_file() and "__pycache__" not in path.parts]
    assert [path for path in package if not in_context(str(path.relative_to(ROOT)))] == []
    for path in (".git/config", ".venv/bin/python", "tests/conftest.py", "deploy/compose/corral.yaml", "corral.yaml"):
        assert not in_context(path)
    assert not in_context("gateway/__pycache__/app.cpython-313.pyc")


@pytest.mark.parametrize("name", RUNNING)
def test_an_image_that_runs_is_not_root_and_starts_without_a_shell(name: str) -> None:
    stage = BY_NAME[name]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", stage.last("USER").text)
    assert stage.instructions.index(stage.last("USER")) > max(
        stage.instructions.index(each) for each in stage.all("RUN") + stage.all("COPY")
    )
    for command in ("ENTRYPOINT", "CMD"):
        said = (stage.all(command) or BY_NAME[stage.base].all(command))[-1]
        assert said.text.startswith("[")
        assert said.words in (["corral"], ["serve"])


def test_the_health_check_and_the_stop_signal_are_ones_that_corral_knows() -> None:
    stage = BY_NAME["corral"]
    assert stage.last("STOPSIGNAL").text == "SIGTERM"
    *_, program = stage.last("HEALTHCHECK").words
    copied = {copy.words[-1]: copy.words[0] for copy in stage.all("COPY")}
    assert (ROOT / copied[program]).is_file()
    assert set(stage.last("EXPOSE").words) == {
        stage.env[name].rpartition(":")[2] for name in ("CORRAL_LISTEN", "CORRAL_ADMIN_LISTEN")
    }


def test_every_base_is_pinned() -> None:
    for stage in STAGES:
        if stage.base not in BY_NAME:
            assert re.search(r":[\w.-]*\d+\.\d+", stage.base), stage.base
    assert set(ARGUMENTS) == {"PYTHON", "OLLAMA"}


def test_everything_that_pip_installs_is_in_a_lock_with_its_hash() -> None:
    installs = [
        run.text for stage in STAGES for run in stage.all("RUN") if " install " in run.text and "pip" in run.text
    ]
    assert installs
    for text in installs:
        assert "--require-hashes" in text or "--no-index --no-deps" in text


def test_the_locks_hold_what_the_project_asks_for_in_the_versions_that_are_tested() -> None:
    project = PYPROJECT["project"]
    asked = [*project["dependencies"], *(each for extra in EXTRAS for each in project["optional-dependencies"][extra])]
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(RUNTIME[canonicalize_name(requirement.name)]), requirement
    tested = locked("requirements.lock")
    for lock in (RUNTIME, locked("deploy/docker/build.lock"), locked("deploy/standalone/build.lock")):
        assert {name: version for name, version in lock.items() if tested.get(name, version) != version} == {}
    assert RUNTIME.keys() <= tested.keys()


def test_the_lock_of_the_image_has_nothing_that_only_developers_need() -> None:
    assert not RUNTIME.keys() & {"pytest", "mypy", "ruff", "setuptools", "pip", "hypothesis", "playwright"}


def test_every_folder_of_the_package_is_in_the_image_and_in_the_standalone_file() -> None:
    folders = {link.name for link in (ROOT / "src" / "corral").iterdir() if link.is_symlink()}
    copied = {copy.words[0] for copy in BY_NAME["build"].all("COPY")}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    line = next(
        line for line in (ROOT / "deploy/standalone/build.sh").read_text().splitlines() if line.startswith("cp -a")
    )
    assert folders <= copied
    assert folders <= let_in
    assert folders <= set(line.split())
