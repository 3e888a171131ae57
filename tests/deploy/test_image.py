"""The steps of the gateway's image, carried out in a bare environment; ``test_container.py`` has a whole root."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.demo import chat, demo
from tests.deploy.dockerfile import DOCKERFILE, stages
from tests.deploy.image import Image

pytestmark = pytest.mark.timeout(300)
_, STAGES = stages(DOCKERFILE.read_text())
BY_NAME = {stage.name: stage for stage in STAGES}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The gateway's image below a folder, made by the lines of the Dockerfile."""
    built = Image(tmp_path_factory.mktemp("build"))
    built.env = {"PIP_NO_COMPILE": "1"}  # which takes most of the time, and is the same as running it
    try:
        built.build(BY_NAME["build"], {})
    except AssertionError as error:
        if re.search("NewConnectionError|NameResolutionError|ConnectTimeout|Temporary failure", str(error)):
            pytest.skip("no package registry is reached from here")
        raise
    made = Image(built.root)  # an environment of Python does not move: it stays where it was built
    made.build(BY_NAME["corral"], {"build": built})
    return made


@pytest.mark.e2e
def test_the_steps_make_a_corral_that_answers_and_is_healthy(image: Image, tmp_path: Path) -> None:
    with demo([str(image.at("/opt/corral/bin/corral"))], tmp_path, PYTHONDONTWRITEBYTECODE="1") as card:
        assert chat(card["clients"])[-1]["done"] is True
        check = [str(image.at("/opt/corral/bin/python3")), str(image.at("/opt/corral/healthy.py"))]
        environ = {"CORRAL_ADMIN_LISTEN": card["admin"].removeprefix("http://")}
        assert subprocess.run(check, env=environ, capture_output=True, timeout=30).returncode == 0
        assert subprocess.run([*check, "/readyz"], env=environ, capture_output=True, timeout=30).returncode == 0
        clients = card["clients"].rpartition(":")[2]
        assert subprocess.run([*check, clients, "/api/version"], capture_output=True, timeout=30).returncode == 0
        assert subprocess.run([*check, clients, "/nothing"], capture_output=True, timeout=30).returncode == 1
    assert subprocess.run(check, env=environ, capture_output=True, timeout=30).returncode == 1


def test_nothing_that_builds_gets_into_the_image(image: Image) -> None:
    python = str(image.at("/opt/corral/bin/python3"))
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "freeze"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.lower()
    assert "corral @" in listed or "corral==" in listed
    assert not re.search(r"^(pip|setuptools|wheel|pytest)\b", listed, flags=re.MULTILINE)
