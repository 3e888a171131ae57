"""docs/deploy.md: what it names exists, and its command lines are ones that Corral takes."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from corral.gateway.cli.table import corral
from tests.deploy.compose import services
from tests.deploy.dockerfile import ROOT, stages

PAGE = (ROOT / "docs/deploy.md").read_text()
LINES = [
    line.partition(" #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


def test_every_path_exists() -> None:
    paths = set(re.findall(r"\bdeploy/[\w./-]*\w", PAGE))
    assert "deploy/docker/Dockerfile" in paths
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_every_page_that_it_leads_to_exists() -> None:
    links = re.findall(r"\]\((?!https)([^)#]*)(#[^)]*)?\)", PAGE)
    assert links
    for page, anchor in links:
        text = (ROOT / "docs" / page).read_text() if page else PAGE
        titles = {
            "#" + re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")
            for title in re.findall(r"^#+ (.*)$", text, re.M)
        }
        assert not anchor or anchor in titles


@pytest.mark.parametrize("line", [line for line in LINES if "exec corral corral" in line])
def test_a_command_in_a_container_is_one_that_corral_takes(line: str) -> None:
    name, *arguments = shlex.split(line.partition("exec corral corral ")[2])
    with click.Context(corral, info_name="corral") as parent:
        command = corral.get_command(parent, name)
        assert command is not None
        while isinstance(command, click.Group):
            name, *arguments = arguments
            command = command.commands[name]
        command.make_context(name, arguments, parent=parent)


def test_the_images_and_profiles_that_it_names_are_there() -> None:
    targets = {stage.name for stage in stages((ROOT / "deploy/docker/Dockerfile").read_text())[1]}
    named = {name for line in LINES for name in re.findall(r"--target (\S+)", line)}
    assert named == {"corral", "with-ollama"} <= targets
    profiles = {profile for service in services() for profile in service.keys.get("profiles", [])}
    assert {name for line in LINES for name in re.findall(r"--profile (\S+)", line)} == profiles
