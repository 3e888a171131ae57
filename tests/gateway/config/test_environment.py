"""Settings from the environment."""

from __future__ import annotations

import pytest

from corral.errors import ConfigError
from corral.gateway.config import Config, parse_config
from corral.gateway.config.environment import with_environment


def test_the_schedulers_that_guides_name_choose_the_policy() -> None:
    assert with_environment(Config(), {"OLLAMA_SCHEDULER": "round-robin"}).policy.name == "round-robin"
    assert with_environment(Config(), {"OLLAMA_SCHEDULER": "load-aware"}).policy.name == "weighted-least-load"
    assert with_environment(Config(), {}) == Config()
    assert with_environment(Config(), {"OLLAMA_SCHEDULER": " "}) == Config()


def test_the_interval_is_in_milliseconds_and_for_both_kinds_of_probes() -> None:
    probes = with_environment(Config(), {"OLLAMA_SCHEDULER_INTERVAL": "250"}).probes
    assert (probes.gpu_interval_s, probes.ollama_interval_s) == (0.25, 0.25)


def test_ollamas_own_variables_are_those_of_the_ollamas_that_corral_runs() -> None:
    said = {"OLLAMA_NUM_PARALLEL": "3", "OLLAMA_CONTEXT_LENGTH": "8192", "OLLAMA_KEEP_ALIVE": '"5m"'}
    ollama = with_environment(Config(), said).ollama
    assert (ollama.parallel, ollama.context_length, ollama.keep_alive) == (3, 8192, "5m")
    file = parse_config("ollama: {parallel: 2, context_length: 4096, keep_alive: 1h}\n", "c.yaml")
    assert with_environment(file, said) == file
    assert with_environment(Config(), {"OLLAMA_NUM_PARALLEL": "0"}) == Config()


def test_what_a_file_says_goes_before_the_environment() -> None:
    config = parse_config("policy: {name: power-of-two}\nprobes: {gpu_interval_s: 5}\n", "c.yaml")
    assert with_environment(config, {"OLLAMA_SCHEDULER": "round-robin", "OLLAMA_SCHEDULER_INTERVAL": "99"}) == config


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("OLLAMA_SCHEDULER", "fastest", "OLLAMA_SCHEDULER=fastest: there is no such scheduler; known: load-aware"),
        ("OLLAMA_SCHEDULER_INTERVAL", "2s", "OLLAMA_SCHEDULER_INTERVAL=2s: expected whole milliseconds from 50"),
        ("OLLAMA_NUM_PARALLEL", "many", "OLLAMA_NUM_PARALLEL=many: cannot be used as ollama.parallel"),
        ("OLLAMA_KEEP_ALIVE", "long", "OLLAMA_KEEP_ALIVE=long: cannot be used as ollama.keep_alive"),
        ("OLLAMA_SCHEDULER_INTERVAL", "1", "expected whole milliseconds from 50 to 3600000"),
    ],
)
def test_a_wrong_value_is_named_with_its_variable(name: str, value: str, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_environment(Config(), {name: value})
    assert wanted in str(caught.value)
