"""What is told of requests: the keys, and how they are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from corral.errors import ConfigError
from corral.gateway.config import Config, diff_config, parse_config
from corral.gateway.config.telling import AccessLogConfig

BASE = "replicas:\n  - {id: a, url: 'http://127.0.0.1:21001'}\n"


def read(more: str) -> Config:
    return parse_config(f"{BASE}{more}\n", "folder/corral.yaml")


@pytest.mark.parametrize("word", ["off", "'off'", "Off", "OFF"])
def test_off_is_off_although_yaml_reads_it_as_false(word: str) -> None:
    config = read(f"load_report: {word.lower() if word[0] == chr(39) else word}\naccess_log: {{format: {word}}}")
    assert (config.load_report, config.access_log.format) == ("off", "off")


@pytest.mark.parametrize("word", ["no", "false", "on", "yes"])
def test_other_words_that_yaml_reads_as_truth_values_are_no_format(word: str) -> None:
    with pytest.raises(ConfigError, match=r"access_log\.format"):
        read(f"access_log: {{format: {word}}}")


def test_a_truth_value_stays_one_where_one_is_wanted() -> None:
    assert read("measure_links: off").measure_links is False
    assert read("measure_links: on").measure_links is True


def test_the_log_begins_at_the_folder_of_the_file() -> None:
    assert read("access_log: {format: json, path: logs/access.log}").access_log == AccessLogConfig(
        format="json", path=Path("folder/logs/access.log")
    )


@pytest.mark.parametrize("endpoint", ["http://collector:4318", "https://h/v1/traces", "http://[::1]:4318/"])
def test_an_endpoint_is_a_url(endpoint: str) -> None:
    assert read(f"tracing: {{endpoint: '{endpoint}'}}").tracing.endpoint == endpoint


@pytest.mark.parametrize(
    "endpoint", ["collector:4318", "grpc://h:4317", "http://", "http://user:secret@h:4318", "http://h:4318?key=x"]
)
def test_an_endpoint_with_a_password_or_without_http_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"tracing\.endpoint: expected http://host:port or https://host:port"):
        read(f"tracing: {{endpoint: '{endpoint}'}}")


def test_a_reload_says_that_traces_need_a_restart_and_the_log_does_not() -> None:
    after = read("access_log: {format: text}\ntracing: {endpoint: 'http://h:1'}\nload_report: asked")
    assert diff_config(read(""), after) == [
        "access_log.format: off → text",
        "tracing.endpoint: not set → http://h:1 (needs a restart)",
        "load_report: off → asked",
    ]
