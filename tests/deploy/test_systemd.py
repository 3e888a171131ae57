"""The units of systemd: accepted by systemd itself, hardened, and in step with what Corral does."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from corral.gateway.cli.table import corral
from corral.gateway.config import Config
from corral.gateway.config.known_variables import unknown_variables
from corral.gateway.sockets import ADMIN, CLIENTS
from tests.deploy.dockerfile import ROOT

FOLDER = ROOT / "deploy/systemd"
UNITS = ("corral.service", "corral.socket", "corral-admin.socket")
INSTALLED = "/opt/corral/bin/corral"
EXPOSURE = 2.0
"""At most, of 10, as `systemd-analyze security` counts. What is left is what it is for: a network and GPUs."""
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here (Debian's package systemd)"
)


class Unit(configparser.RawConfigParser):
    """A unit; of a key that is there several times all lines are kept."""

    def __init__(self, name: str) -> None:
        super().__init__(strict=False, empty_lines_in_values=False, interpolation=None, delimiters=("=",))
        self.lines = [line for line in (FOLDER / name).read_text().splitlines() if not line.startswith("#")]
        self.read_string("\n".join(self.lines))

    def optionxform(self, optionstr: str) -> str:
        return optionstr

    def every(self, key: str) -> list[str]:
        return [line.partition("=")[2] for line in self.lines if line.startswith(f"{key}=")]


SERVICE = Unit("corral.service")["Service"]


@pytest.fixture
def installed(tmp_path: Path) -> list[str]:
    """The units with a program that exists in place of the one that will be installed."""
    program = shutil.which("true")
    for name in UNITS:
        (tmp_path / name).write_text((FOLDER / name).read_text().replace(INSTALLED, str(program)))
    return [str(tmp_path / name) for name in UNITS]


@needs_systemd
def test_systemd_accepts_the_units_without_a_warning(installed: list[str]) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *installed], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_the_service_is_exposed_as_little_as_can_be(installed: list[str]) -> None:
    options = ["--offline=true", f"--threshold={int(EXPOSURE * 10)}"]
    done = subprocess.run(
        ["systemd-analyze", "security", *options, installed[0]], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="needs Debian's package systemd")
def test_systemd_makes_the_user_of_the_service() -> None:
    command = ["systemd-sysusers", "--dry-run", str(FOLDER / "corral.sysusers")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    made = [line.split()[1] for line in (FOLDER / "corral.sysusers").read_text().splitlines() if line.startswith("u ")]
    assert made == [SERVICE["User"]]


@pytest.mark.parametrize("key", ["ExecStart", "ExecReload"])
def test_every_command_line_is_one_that_corral_takes(key: str) -> None:
    program, name, *arguments = SERVICE[key].split()
    assert program == INSTALLED
    with click.Context(corral, info_name="corral") as parent:
        command = corral.get_command(parent, name)
        assert command is not None
        command.make_context(name, arguments, parent=parent)


def test_running_streams_may_finish_before_the_service_is_killed() -> None:
    config = Config()
    assert float(SERVICE["TimeoutStopSec"]) > config.timeouts.drain_s + config.restart.stop_s
    assert SERVICE["KillMode"] == "mixed"  # the Ollamas are not told to end while their requests run


def test_a_runner_that_runs_out_of_memory_does_not_stop_the_service() -> None:
    assert SERVICE["OOMPolicy"] == "continue"


def test_a_configuration_that_cannot_be_used_is_not_tried_again() -> None:
    from corral.errors import ConfigError

    assert int(SERVICE["RestartPreventExitStatus"]) == ConfigError.exit_code


def test_it_is_watched_and_says_when_it_is_ready() -> None:
    assert SERVICE["Type"] == "notify"
    assert SERVICE["NotifyAccess"] == "main"
    assert float(SERVICE["WatchdogSec"]) > 0


def test_every_variable_is_known() -> None:
    pairs = [word for line in Unit("corral.service").every("Environment") for word in line.split()]
    assert not unknown_variables(pair.partition("=")[0] for pair in pairs)


@pytest.mark.parametrize(
    ("name", "handed", "port"),
    [("corral.socket", CLIENTS, Config().listen), ("corral-admin.socket", ADMIN, Config().admin_listen)],
)
def test_a_socket_is_handed_over_by_the_name_that_corral_knows(name: str, handed: str, port: object) -> None:
    unit = Unit(name)
    assert unit["Socket"]["FileDescriptorName"] == handed
    assert unit["Socket"]["ListenStream"] == str(port)
    assert unit["Socket"]["Service"] == "corral.service"
