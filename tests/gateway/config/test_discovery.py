"""The keys that say where replicas are found, and which replicas are Corrals."""

from __future__ import annotations

import pytest

from corral.errors import ConfigError
from corral.gateway.config import parse_config


def complaint(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "corral.yaml")
    return str(caught.value)


def test_with_discovery_corral_runs_no_ollama_of_its_own_unless_it_is_told_to() -> None:
    found = "discovery: {dns: {name: nodes.example}}\n"
    assert not parse_config(found, "corral.yaml").owns_replicas
    assert parse_config(found + "gpus: auto\n", "corral.yaml").owns_replicas


def test_both_sources_and_a_list_may_stand_together() -> None:
    config = parse_config(
        "replicas: [{id: a, url: 'http://127.0.0.1:21001'}]\n"
        "discovery:\n"
        "  dns: {name: _ollama._tcp.nodes.example, interval_s: 5, server: 10.0.0.53:53}\n"
        "  kubernetes: {service: nodes, port: 11434}\n"
        "  models: [llama3]\n",
        "corral.yaml",
    )
    assert config.discovery is not None
    assert config.discovery.dns is not None
    assert config.discovery.kubernetes is not None
    assert (config.discovery.kubernetes.port, config.discovery.dns.interval_s) == (11434, 5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("discovery: {}", "discovery: says not where to look; give it dns: or kubernetes:"),
        ("discovery: {dns: {name: 'no name'}}", "expected a name in the DNS"),
        ("discovery: {dns: {name: nodes, port: 0}}", "discovery.dns.port: expected a whole number >= 1"),
        ("discovery: {kubernetes: {service: Nodes}}", "expected a name of Kubernetes"),
        ("discovery: {kubernetes: {service: nodes, port: true}}", "expected a number or a name, found true"),
        ("discovery: {kubernetes: {}}", "discovery.kubernetes.service: is missing"),
        ("discovery: {dns: {name: nodes}, slot: 4}", "did you mean 'slots'"),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, said: str) -> None:
    assert said in complaint(text)


CORRAL = "replicas: [{{id: a, url: 'http://10.0.0.1:11434', admin: 'http://10.0.0.1:{port}'{more}}}]"


def test_a_replica_that_is_a_corral_has_an_admin_port_of_its_own() -> None:
    config = parse_config(CORRAL.format(port=11435, more=""), "corral.yaml")
    assert config.replicas[0].to_replica().admin == ("10.0.0.1", 11435)
    assert "replicas[0].admin" in complaint(CORRAL.format(port=11434, more=""))


@pytest.mark.parametrize(("key", "value"), [("pin", "[llama3]"), ("max_loaded", "2"), ("gpus", "[0]")])
def test_what_is_the_affair_of_the_corral_below_is_refused(key: str, value: str) -> None:
    said = complaint(CORRAL.format(port=11435, more=f", {key}: {value}"))
    assert f"replicas[0].{key}: belongs into the configuration of that Corral" in said
