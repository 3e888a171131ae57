"""The Kubernetes files: every overlay renders, fits the schemas, and says what Corral and each other really have."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from corral.gateway.cli.serve import serve
from corral.gateway.config import Config, parse_config
from corral.gateway.discovery import api
from corral.gateway.serve.admin import INDEX
from corral.gateway.serve.exposition import METRICS
from corral.gateway.serve.openapi import routes_of

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
SCHEMAS = ("1.30", "1.34")
OF_OPERATORS = ("ServiceMonitor", "PrometheusRule", "ScaledObject")
WORKLOADS = ("Deployment", "DaemonSet")
Object = dict[str, Any]

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl (Debian: kubernetes-client)")
pytestmark = [needs_kubectl, pytest.mark.parametrize("overlay", OVERLAYS)]


@cache
def rendered(overlay: str) -> tuple[Object, ...]:
    folder = KUBERNETES / "overlays" / overlay
    made = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert made.returncode == 0, made.stderr
    assert "deprecated" not in made.stderr
    return tuple(yaml.safe_load_all(made.stdout))


def of_kind(overlay: str, *kinds: str) -> list[Object]:
    return [each for each in rendered(overlay) if each["kind"] in kinds]


def named(overlay: str, kind: str, name: str) -> Object:
    return next(each for each in of_kind(overlay, kind) if each["metadata"]["name"] == name)


def pods(overlay: str) -> list[tuple[Object, Object]]:
    """Labels and spec of the pods that each workload makes."""
    templates = [each["spec"]["template"] for each in of_kind(overlay, *WORKLOADS)]
    return [(template["metadata"]["labels"], template["spec"]) for template in templates]


def containers(overlay: str) -> Iterator[tuple[Object, Object]]:
    """Each container of Corral, and its pod."""
    for _, pod in pods(overlay):
        for container in pod["containers"]:
            yield container, pod


def config_of(overlay: str, container: Object, pod: Object) -> Config:
    """The configuration that the container's arguments name, out of the ConfigMap that is mounted there."""
    path = Path(container["args"][container["args"].index("--config") + 1])
    mount = next(each for each in container["volumeMounts"] if each["mountPath"] == str(path.parent))
    volume = next(each for each in pod["volumes"] if each["name"] == mount["name"])
    return parse_config(named(overlay, "ConfigMap", volume["configMap"]["name"])["data"][path.name], path.name)


def matches(labels: Object, selector: Object) -> bool:
    return selector.items() <= labels.items()


def test_it_renders_and_every_object_fits_its_schema(overlay: str) -> None:
    objects = rendered(overlay)
    assert objects
    for each in objects:
        assert each["metadata"].get("namespace", "corral") == "corral"
        if each["kind"] not in OF_OPERATORS:
            fits_schemas(yaml.safe_dump(each))


@cache
def fits_schemas(text: str) -> None:
    """Most objects stand in several overlays: once is enough."""
    for version in SCHEMAS:
        kubernetes_validate.validate(yaml.safe_load(text), version, strict=True)


def test_the_page_names_it(overlay: str) -> None:
    page = (KUBERNETES.parents[1] / "docs" / "kubernetes.md").read_text()
    assert f"`overlays/{overlay}`" in page
    named_there = set(re.findall(r"`((?:base|components|overlays)/[a-z0-9./-]+)`", page))
    assert all((KUBERNETES / path).exists() for path in named_there), named_there


def test_the_command_line_is_one_that_corral_takes(overlay: str) -> None:
    found = list(containers(overlay))
    assert found
    for container, _ in found:
        first, *arguments = container["args"]
        assert first == "serve"
        serve.make_parser(click.Context(serve)).parse_args(list(arguments))


def test_the_configuration_is_one_that_corral_takes_and_its_ports_are_the_containers(overlay: str) -> None:
    for container, pod in containers(overlay):
        config = config_of(overlay, container, pod)
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports == {"ollama": config.listen.port, "admin": config.admin_listen.port}
        assert (config.listen.host, config.admin_listen.host) == ("0.0.0.0", "0.0.0.0")
        if config.ollama.models is not None:
            assert str(config.ollama.models) in [each["mountPath"] for each in container["volumeMounts"]]


def test_the_probes_ask_for_pages_that_there_are(overlay: str) -> None:
    pages = {path for method, path, _ in routes_of(INDEX) if method == "GET"}
    for container, _ in containers(overlay):
        probes = {name: container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
        assert {probe["path"] for probe in probes.values()} <= pages
        assert {probe["port"] for probe in probes.values()} == {"admin"}
        assert probes["readinessProbe"]["path"] == "/readyz"
        assert probes["livenessProbe"]["path"] == "/healthz"  # one that cannot serve for now is not to be restarted


def test_a_pod_has_the_time_to_finish_what_it_does(overlay: str) -> None:
    for container, pod in containers(overlay):
        config = config_of(overlay, container, pod)
        command = container["lifecycle"]["preStop"]["exec"]["command"]
        assert command[0] == "sleep"
        needed_s = int(command[1]) + config.timeouts.drain_s + config.restart.stop_s
        assert pod["terminationGracePeriodSeconds"] >= needed_s


def test_nothing_runs_as_root_but_who_gives_the_store_away(overlay: str) -> None:
    for _, pod in pods(overlay):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"]["drop"] == ["ALL"]
            if container["name"] == "corral":
                assert context.get("runAsUser") is None
            else:
                assert (container["name"], context["capabilities"]["add"]) == ("own-the-store", ["CHOWN"])


def test_every_container_says_what_it_needs_and_mounts_what_there_is(overlay: str) -> None:
    for _, pod in pods(overlay):
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]


def test_selectors_match_the_pods_that_they_are_for(overlay: str) -> None:
    labels = [each for each, _ in pods(overlay)]
    for workload in of_kind(overlay, *WORKLOADS):
        assert matches(workload["spec"]["template"]["metadata"]["labels"], workload["spec"]["selector"]["matchLabels"])
    selectors = [service["spec"]["selector"] for service in of_kind(overlay, "Service")]
    selectors += [pdb["spec"]["selector"]["matchLabels"] for pdb in of_kind(overlay, "PodDisruptionBudget")]
    selectors += [policy["spec"]["podSelector"].get("matchLabels", {}) for policy in of_kind(overlay, "NetworkPolicy")]
    assert len(selectors) >= 3 * len(labels)
    for selector in selectors:
        assert any(matches(each, selector) for each in labels), selector
    for each in labels:
        assert any(matches(each, service["spec"]["selector"]) for service in of_kind(overlay, "Service"))


def test_ports_that_have_names_are_ports_of_the_pods(overlay: str) -> None:
    names = {port["name"] for container, _ in containers(overlay) for port in container["ports"]}
    for service in of_kind(overlay, "Service"):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    for policy in of_kind(overlay, "NetworkPolicy"):
        rules = [*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])]
        ports = [port["port"] for rule in rules for port in rule["ports"]]
        assert {port for port in ports if isinstance(port, str)} <= names
    for monitor in of_kind(overlay, "ServiceMonitor"):
        scraped = [each for each in of_kind(overlay, "Service") if _is_monitored(each, monitor)]
        assert len(scraped) == len(of_kind(overlay, "Service"))
        for endpoint in monitor["spec"]["endpoints"]:
            assert f"GET  {endpoint['path']} " in INDEX
            assert all(endpoint["port"] in {port["name"] for port in each["spec"]["ports"]} for each in scraped)


def _is_monitored(service: Object, monitor: Object) -> bool:
    return matches(service["metadata"]["labels"], monitor["spec"]["selector"]["matchLabels"])


def test_what_is_discovered_is_a_service_with_that_port_and_may_be_looked_at(overlay: str) -> None:
    for container, pod in containers(overlay):
        discovery = config_of(overlay, container, pod).discovery
        if discovery is None:
            assert pod["automountServiceAccountToken"] is False
            continue
        kubernetes = discovery.kubernetes
        assert kubernetes is not None
        services = {each["metadata"]["name"]: each for each in of_kind(overlay, "Service")}
        if overlay != "balancer":  # there the nodes are somebody else's
            ports = {port["name"]: port["port"] for port in services[kubernetes.service]["spec"]["ports"]}
            assert ports == {kubernetes.port: 11434, "admin": discovery.admin_port}
        binding = named(overlay, "RoleBinding", pod["serviceAccountName"])
        assert binding["subjects"][0]["name"] == pod["serviceAccountName"]
        (rule,) = named(overlay, "Role", binding["roleRef"]["name"])["rules"]
        needed = re.findall(r'\["?([a-z.0-9"\', ]+)\]', api.ROLE)
        said = [re.findall(r"[a-z.0-9]+", each) for each in needed]
        assert [rule["apiGroups"], rule["resources"], rule["verbs"]] == said


def test_every_metric_that_is_asked_for_is_one_of_corrals(overlay: str) -> None:
    texts = [
        rule["expr"]
        for each in of_kind(overlay, "PrometheusRule")
        for group in each["spec"]["groups"]
        for rule in group["rules"]
    ]
    for each in of_kind(overlay, "ScaledObject"):
        texts += [trigger["metadata"]["query"] for trigger in each["spec"]["triggers"]]
        target = each["spec"]["scaleTargetRef"]
        assert named(overlay, target["kind"], target["name"])
    rules = yaml.safe_load((KUBERNETES / "components" / "adapter" / "values.yaml").read_text())["rules"]["external"]
    offered = {rule["name"]["as"] for rule in rules}
    texts += [rule["seriesQuery"] for rule in rules]
    for each in of_kind(overlay, "HorizontalPodAutoscaler"):
        assert {metric["external"]["metric"]["name"] for metric in each["spec"]["metrics"]} == offered
        assert named(overlay, each["spec"]["scaleTargetRef"]["kind"], each["spec"]["scaleTargetRef"]["name"])
    assert texts
    asked = {name for text in texts for name in re.findall(r"\bcorral_[a-z_]+", text)}
    assert {name for name in asked if not name.startswith("corral_queue_oldest_seconds_max")} <= METRICS.keys()


def test_gpus_are_had_in_one_way_only(overlay: str) -> None:
    """Asked of the plugin, or all of the node's by the runtime: both together would give other GPUs than counted."""
    for container, pod in containers(overlay):
        names = {each["name"]: each.get("value") for each in container.get("env", [])}
        asks_plugin = "nvidia.com/gpu" in container["resources"]["limits"]
        takes_all = names.get("NVIDIA_VISIBLE_DEVICES") == "all"
        owns_gpus = config_of(overlay, container, pod).gpus is not None
        assert owns_gpus == (asks_plugin != takes_all)
        assert not (asks_plugin and takes_all)
        assert owns_gpus == (pod.get("runtimeClassName") == "nvidia")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
def test_the_rules_are_ones_that_prometheus_takes(overlay: str, tmp_path: Path) -> None:
    for number, each in enumerate(of_kind(overlay, "PrometheusRule")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump({"groups": each["spec"]["groups"]}))
        checked = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr
