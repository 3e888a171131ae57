"""Every Compose file: accepted by the specification, and everything in it exists, in Corral and in the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import pytest
import yaml

from corral.gateway.cli.table import corral
from corral.gateway.config import Config, load_config
from corral.gateway.config.known_variables import unknown_variables
from tests.deploy.compose import FILES, FOLDER, Service, interpolated, load, services
from tests.deploy.dockerfile import ROOT

SERVICES = services()
CORRALS = [service for service in SERVICES if service.is_corral]
GATEWAYS = [service for service in CORRALS if service.arguments[0] == "serve"]
PORTS = {
    "ollama/ollama": 11434,
    "prom/prometheus": 9090,
    "grafana/grafana": 3000,
    "ghcr.io/open-webui/open-webui": 8080,
}
"""Where the programs of others listen in their containers."""


def named(service: Service) -> str:
    return f"{service.file}:{service.name}"


def each(chosen: list[Service]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("service", chosen, ids=map(named, chosen))


def siblings(service: Service) -> dict[str, Service]:
    return {other.name: other for other in SERVICES if other.file == service.file}


def listens_on(service: Service) -> set[int]:
    """The ports of a service, inside its container."""
    if not service.is_corral:
        return {PORTS[service.keys["image"].rpartition(":")[0]]}
    if service.arguments[0] == "emulate":
        return {int(service.arguments[service.arguments.index("--listen") + 1].rpartition(":")[2])}
    return {int(service.stage_env(name).rpartition(":")[2]) for name in ("CORRAL_LISTEN", "CORRAL_ADMIN_LISTEN")}


def config_of(service: Service) -> Config:
    assert service.config is not None
    return load_config(service.config)


def test_the_three_files_are_there() -> None:
    assert set(FILES) == {"compose.gpu.yaml", "compose.sidecar.yaml", "compose.demo.yaml"}


def test_the_specification_accepts_every_file() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, *map(str, FILES.values())], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", FILES)
def test_docker_compose_accepts_every_file(name: str) -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("docker compose is not installed (Docker's package docker-compose-plugin)")
    command = ["docker", "compose", "-f", str(FILES[name]), "--profile", "*", "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@each(CORRALS)
def test_every_command_line_is_one_that_corral_takes(service: Service) -> None:
    name, *arguments = service.arguments
    with click.Context(corral, info_name="corral") as parent:
        command = corral.get_command(parent, name)
        assert command is not None
        command.make_context(name, arguments, parent=parent)


@each(GATEWAYS)
def test_every_configuration_can_be_used_and_names_services_of_its_file(service: Service) -> None:
    config, others = config_of(service), siblings(service)
    for replica in config.replicas:
        assert replica.url.port in listens_on(others[replica.url.host])
    ollamas = {
        name
        for name, other in others.items()
        if other.keys["image"].startswith("ollama/") or (other.is_corral and other.arguments[0] == "emulate")
    }
    assert {replica.url.host for replica in config.replicas} == ollamas
    assert config.owns_replicas == (service.target == "with-ollama")
    for replica in config.replicas:
        other = others[replica.url.host]
        parallel = other.env.get("OLLAMA_NUM_PARALLEL") or other.arguments[other.arguments.index("--parallel") + 1]
        assert replica.slots == int(parallel)


@each(GATEWAYS)
def test_running_streams_may_finish_before_a_gateway_is_killed(service: Service) -> None:
    config = config_of(service)
    within_s = int(service.keys["stop_grace_period"].removesuffix("s"))
    assert within_s > config.timeouts.drain_s + config.restart.stop_s


@each(GATEWAYS)
def test_the_admin_port_answers_to_the_name_that_other_containers_call_it_by(service: Service) -> None:
    assert service.keys["hostname"] == service.name or service.name in config_of(service).hosts


@each(SERVICES)
def test_a_port_is_published_on_loopback_and_leads_to_where_somebody_listens(service: Service) -> None:
    for published in service.keys.get("ports", []):
        address, _, inside = published.split(":")
        assert address == "127.0.0.1"
        assert int(inside) in listens_on(service)


@pytest.mark.parametrize("name", FILES)
def test_no_two_services_publish_one_port(name: str) -> None:
    published = [
        port.split(":")[1] for service in SERVICES if service.file == name for port in service.keys.get("ports", [])
    ]
    assert len(published) == len(set(published))


@each(SERVICES)
def test_everything_that_is_mounted_exists(service: Service) -> None:
    volumes = load(FILES[service.file])["volumes"] if service.mounts else {}
    for source, how in service.mounts.values():
        if source.startswith("."):
            assert (FOLDER / source).exists(), source
            assert how == "ro"
        else:
            assert source in volumes


@each(SERVICES)
def test_every_image_is_pinned_or_built_of_a_stage_that_exists(service: Service) -> None:
    if not service.is_corral:
        assert re.search(r":v?\d+\.\d+\.\d+$", service.keys["image"])
    elif "build" in service.keys:
        build = service.keys["build"]
        assert (FOLDER / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()
        assert build["target"] == service.target == service.stage.name
    else:
        assert any(
            other.keys["image"] == service.keys["image"] and "build" in other.keys
            for other in siblings(service).values()
        )


@each(SERVICES)
def test_a_service_has_no_privileges_and_bounds_and_comes_back(service: Service) -> None:
    keys = service.keys
    assert not {"privileged", "network_mode", "pid", "ipc"} & keys.keys()
    assert keys["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in keys["security_opt"]
    assert keys["restart"] == "unless-stopped"
    assert {"memory", "pids"} <= keys["deploy"]["resources"]["limits"].keys()
    assert re.fullmatch(r"\d+[mg]", interpolated(keys["deploy"]["resources"]["limits"]["memory"]))


@each(CORRALS)
def test_what_runs_corral_has_a_read_only_root(service: Service) -> None:
    assert service.keys["read_only"] is True
    assert "/tmp" in service.keys["tmpfs"]
    assert (
        service.arguments[0] == "emulate" or "/var/lib/corral" in service.mounts or service.file == "compose.demo.yaml"
    )


@each(SERVICES)
def test_every_health_check_asks_a_port_that_somebody_listens_on(service: Service) -> None:
    test = service.keys["healthcheck"]["test"]
    assert test[0] == "CMD"
    if "/opt/corral/healthy.py" in test and service.arguments[0] == "serve":
        assert test[test.index("/opt/corral/healthy.py") + 1 :] in ([], ["/readyz"])
    else:
        asked = re.search(r"127\.0\.0\.1:(\d+)|healthy\.py (\d+)", " ".join(test))
        assert asked is not None or test[1] == "ollama"
        assert asked is None or int(asked[1] or asked[2]) in listens_on(service)


@each(SERVICES)
def test_every_variable_is_known_to_who_reads_it(service: Service) -> None:
    assert service.name == "open-webui" or not unknown_variables(service.env)
    for name, value in service.env.items():
        assert re.match(r"(CORRAL|OLLAMA|GF|NVIDIA)_|ENABLE_OPENAI_API$", name)
        if value.startswith("http://"):
            url = urlsplit(value)
            assert url.port in listens_on(siblings(service)[str(url.hostname)])


@each(SERVICES)
def test_what_a_service_waits_for_is_there(service: Service) -> None:
    others = siblings(service)
    for name, how in service.keys.get("depends_on", {}).items():
        assert how["condition"] == "service_started" or "healthcheck" in others[name].keys


@pytest.mark.parametrize("name", ["compose.sidecar.yaml", "compose.demo.yaml"])
def test_prometheus_scrapes_the_gateway_by_the_rules_of_the_repository(name: str) -> None:
    by_name = {service.name: service for service in SERVICES if service.file == name}
    ours = yaml.safe_load((FOLDER / by_name["prometheus"].mounts["/etc/prometheus/prometheus.yml"][0]).read_text())
    given = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (target,) = ours["scrape_configs"][0]["static_configs"][0].pop("targets")
    host, _, port = target.partition(":")
    assert int(port) in listens_on(by_name[host])
    given["scrape_configs"][0]["static_configs"][0].pop("targets")
    assert ours == given


@pytest.mark.parametrize("name", ["compose.sidecar.yaml", "compose.demo.yaml"])
def test_grafana_finds_its_data_and_its_dashboards(name: str) -> None:
    by_name = {service.name: service for service in SERVICES if service.file == name}
    grafana = by_name["grafana"]
    provisioning = FOLDER / grafana.mounts["/etc/grafana/provisioning"][0]
    sources = [source for path in provisioning.glob("datasources/*.y*ml") for source in _read(path)["datasources"]]
    assert sources
    for source in sources:
        url = urlsplit(expanded(source["url"], grafana.env))
        assert url.port in listens_on(by_name[str(url.hostname)])
    for path in provisioning.glob("dashboards/*.y*ml"):
        for provider in _read(path)["providers"]:
            assert provider["options"]["path"] in grafana.mounts


def expanded(text: str, env: dict[str, str]) -> str:
    """As Grafana reads what it is provisioned with."""
    return re.sub(r"\$\{?(\w+)\}?", lambda match: env[match[1]], text)


def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())
