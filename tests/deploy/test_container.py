"""Both images, built in a clean root file system and run as a container would be: by hand, as root.

    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm /tmp/root
    CORRAL_TRY_ROOT=/tmp/root pytest tests/deploy/test_container.py

``CORRAL_TRY_PYTHON``: the folder of a Python that becomes /usr/local there, where the official image has its own.
The program ``ollama`` is the emulator. No engine is needed: namespaces of the kernel are.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.deploy.compose import STAGES
from tests.deploy.container import PATIENCE_S, Container, composed, container, services_of
from tests.deploy.image import Image

TRY_ROOT = os.environ.get("CORRAL_TRY_ROOT", "")
pytestmark = [
    pytest.mark.skipif(not TRY_ROOT, reason="CORRAL_TRY_ROOT names no root file system: run by hand, see this file"),
    pytest.mark.timeout(600),
]
FROM_THE_MACHINE = ("etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt")
EMULATED_OLLAMA = '#!/bin/sh\nexec /opt/corral/bin/python3 -m corral.emulator.ollama "$@"\n'
PYTHON = "/opt/corral/bin/python3"
CHAT = """
import json, sys, urllib.request
asked = {"model": sys.argv[1], "messages": [{"role": "user", "content": "hi"}], "options": {"num_predict": 4}}
print(urllib.request.urlopen("http://127.0.0.1:11434/api/chat", json.dumps(asked).encode(), timeout=30).read().decode())
"""
SCRAPE = """
import urllib.request
print(urllib.request.urlopen("http://corral:11435/metrics", timeout=30).read().decode())
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Image]]:
    folder = tmp_path_factory.mktemp("images")
    base = base_image(folder / "base")
    made = {"ollama": ollama_image(folder / "ollama")}
    for name, below in (("build", base), ("corral", base), ("with-ollama", folder / "corral")):
        made[name] = image = Image(copied(below, folder / name), is_chroot=True)
        if name == "with-ollama":
            image.env, image.cwd = dict(made["corral"].env), made["corral"].cwd
        image.build(STAGES[name], made)
        image.at("/opt/chat.py").write_text(CHAT)
        image.at("/opt/scrape.py").write_text(SCRAPE)
    yield made
    for root in folder.iterdir():
        shutil.rmtree(root)


def base_image(root: Path) -> Path:
    copied(Path(TRY_ROOT), root)
    for path in FROM_THE_MACHINE:
        (root / path).unlink(missing_ok=True)
        shutil.copy(Path("/", path), root / path)
    if python := os.environ.get("CORRAL_TRY_PYTHON"):
        shutil.copytree(python, root / "usr/local", symlinks=True, dirs_exist_ok=True)
        subprocess.run(["chroot", str(root), "ldconfig"], check=True)
    return root


def ollama_image(root: Path) -> Image:
    """What of the official image is copied."""
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/lib/ollama").mkdir(parents=True)
    (root / "usr/bin/ollama").write_text(EMULATED_OLLAMA)
    (root / "usr/bin/ollama").chmod(0o755)
    return Image(root)


def copied(source: Path, target: Path) -> Path:
    subprocess.run(["cp", "--archive", "--reflink=auto", str(source), str(target)], check=True)
    return target


def healthy(running: Container) -> bool:
    return running.run(*STAGES["corral"].last("HEALTHCHECK").words).returncode == 0


def answers(running: Container, model: str) -> bool:
    done = running.run(PYTHON, "/opt/chat.py", model)
    assert done.returncode == 0, done.stderr
    return bool(json.loads(done.stdout.split("\n")[-3])["done"])


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_the_demo_runs_unprivileged_on_a_read_only_root(images: dict[str, Image]) -> None:
    with container(images["corral"], "demo", "--speed", "20") as running:
        running.until("http://0.0.0.0:11434")  # from outside, too
        running.until("corral status")
        assert healthy(running)
        assert answers(running, "llama3.1:8b")
        assert running.run("/opt/corral/bin/corral", "status", "--json").returncode == 0


def test_the_gateway_runs_ollamas_of_its_own_and_no_ended_process_stays(images: dict[str, Image]) -> None:
    with container(images["with-ollama"], "serve", EMULATED_MODELS="llama3.2:1b", EMULATED_SPEED="20") as running:
        running.until("corral status")
        until(lambda: healthy(running) and answers(running, "llama3.2:1b"))
        ollama = running.run("sh", "-c", "grep -l emulator.ollama /proc/[0-9]*/cmdline").stdout.split("/")[2]
        running.run("kill", "-KILL", ollama)
        until(lambda: answers(running, "llama3.2:1b"))
        states = running.run("sh", "-c", "cat /proc/[0-9]*/stat").stdout
        assert " Z " not in states, states


def test_the_demo_of_compose_runs_with_a_container_for_each_service(images: dict[str, Image]) -> None:
    chosen = services_of("compose.demo.yaml")
    checks = {service.name: service.keys["healthcheck"]["test"][1:] for service in chosen}
    with composed(images["corral"], chosen) as running:
        until(lambda: all(one.run(*checks[name]).returncode == 0 for name, one in running.items()))
        assert answers(running["corral"], "llama3.1:8b")
        scraped = running["rtx-3060"].run(PYTHON, "/opt/scrape.py")  # as Prometheus does, from another container
        assert "corral_requests" in scraped.stdout, scraped.stderr
