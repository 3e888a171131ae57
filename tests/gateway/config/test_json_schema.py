"""``docs/corral.schema.json``: what an editor is told of a configuration is what Corral itself takes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped, unused-ignore]
import pytest
import yaml

from corral.errors import ConfigError
from corral.gateway.config import Config, load_config, parse_config
from corral.gateway.config.json_schema import config_schema, schema_text
from tests.gateway.config.test_load import LEAST, WHOLE

ROOT = Path(__file__).parents[3]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").rglob("*.md")])
FILES = sorted((ROOT / "deploy").rglob("*.y*ml"))
KEYS = set(Config.__struct_fields__)
POLICY = "class Mine:\n    def choose(self, request, candidates, rng): ...\n"


@pytest.fixture(scope="module")
def validator() -> Any:
    found = jsonschema.Draft7Validator(config_schema())
    found.check_schema(config_schema())
    return found


def configurations() -> Iterator[Any]:
    """Whatever is a configuration of Corral in the documentation and among the files to deploy it with."""
    for page in PAGES:
        for number, text in enumerate(re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)):
            yield from of_corral(text, f"{page.relative_to(ROOT)}-{number}")
    for file in FILES:
        yield from of_corral(file.read_text(), str(file.relative_to(ROOT)))


def of_corral(text: str, name: str) -> Iterator[Any]:
    """The text itself, or what it carries in a ConfigMap."""
    try:
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError:  # another program's, with tags of its own
        return
    for document in documents:
        if isinstance(document, dict) and document.keys() & KEYS and not document.keys() & {"services", "apiVersion"}:
            yield pytest.param(text, id=name)
        elif isinstance(document, dict) and document.get("kind") == "ConfigMap":
            inner = [value for key, value in document.get("data", {}).items() if key.startswith("corral.y")]
            yield from (pytest.param(value, id=name) for value in inner)


def test_the_file_in_the_repository_is_the_one_that_is_made() -> None:
    text = (ROOT / "docs" / "corral.schema.json").read_text()
    assert text == schema_text(), "run: corral config schema > docs/corral.schema.json"


@pytest.mark.parametrize("text", list(configurations()))
def test_every_example_is_valid(text: str, validator: Any) -> None:
    validator.validate(yaml.safe_load(text))
    parse_config(text, "corral.yaml")


def test_the_examples_are_found() -> None:
    names = [str(each.id) for each in configurations()]
    assert sum(name.startswith("docs/operations.md") for name in names) >= 4


GOOD = (
    LEAST,
    WHOLE,
    "gpus: auto\n",
    "gpus: [0, GPU-ab, [1, GPU-c], {gpus: [MIG-c, 3], models: [big], id: pair, split: row, env: {A: 1, B: true}}]\n",
    "gpus: [{gpus: 3}]\n",
    "replicas: [{id: a, url: 'HTTP://[::1]:65535/', gpus: 0}]\n",
    "replicas: [{id: a, url: 'http://a.b-c_d:1', gpus: [0, GPU-x]}]\n",
    "ollama: {keep_alive: 5m, env: {A: 1.5}}\nplacement: {canonicalise: {num_ctx: 4096}}\n",
    "policy: {cold_penalty: 2, weights: {memory: 1}}\n",
    "policy: {name: weighted-least-load, cold_penalty: 2}\n",
    "policy: {name: mine, anything: [1]}\n",
    "stores: {shared: {path: /x}}\nreplicas: [{id: a, url: 'http://a:1'}]\n",
    "state_dir: /var/lib/corral\nwarmup: {models: [a], seconds: 0.5}\n",
    "listen: '[::]:0'\nadmin_listen: localhost:1\n",
)


@pytest.mark.parametrize("text", GOOD)
def test_what_corral_takes_is_valid(text: str, validator: Any) -> None:
    parse_config(text, "corral.yaml")
    validator.validate(yaml.safe_load(text))


BAD = (
    "replica: []",
    LEAST + "queue: {max_request: 3}",
    "replicas: {id: a}",
    "replicas: [a]",
    "replicas: [{id: a}]",
    "- 1",
    *(
        f"replicas: [{{id: a, url: 'http://b:1', {each}}}]"
        for each in (
            "weight: 0",
            "weight: '2'",
            "slots: 0",
            "slots: 1.5",
            "max_loaded: 0",
            "pin: big",
            "slots: [1]",
            "pin: ['']",
            "gpus: []",
            "gpus: first",
        )
    ),
    *(
        f"replicas: [{{id: a, url: {each!r}}}]"
        for each in ("https://a:1", "a:1", "http://a", "http://:1", "http://a:0")
    ),
    *(f"replicas: [{{id: a, url: {each!r}}}]" for each in ("http://a:1/api", "http://a:1?x", "http://u:p@a:1")),
    *(f"replicas: [{{id: a, url: {each!r}}}]" for each in ("http://a:65536", "http://::1:80", "http://-a:80")),
    *(f"replicas: [{{id: {each}, url: 'http://a:1'}}]" for each in ("1", "'a b'", f"'{'x' * 65}'", "'..'")),
    *(f"listen: {each}" for each in ("11434", "':11434'", "localhost", "http://127.0.0.1:1", "127.0.0.1:99999")),
    "queue: {max_requests: 0}",
    "queue: {max_wait_s: 5m}",
    "queue: {order: sjf}",
    "placement: {enabled: 1}",
    "placement: {canonicalise: {num_ctx: 3}}",
    "placement: {canonicalise: {num_ctx: big}}",
    "placement: {canonicalise: {num_ctx: {m: x}}}",
    "timeouts: {drain_s: -1}",
    "timeouts: {connect_s: 90000}",
    "probes: {ollama_interval_s: 0}",
    "limits: {max_head_bytes: 1}",
    "limits: {max_body_bytes: 64MiB}",
    "origins: [foo]",
    "origins: https://a",
    "hosts: ['a:1']",
    "policy: round-robin",
    "policy: {path: ./mine.py}",
    "policy: {name: ''}",
    "policy: {name: prefer-loaded, cold_penalty: 1}",
    "policy: {cold_penalti: 1}",
    "policy: {cold_penalty: much}",
    "policy: {weights: {memroy: 1}}",
    "gpus: all",
    "gpus: [first]",
    "gpus: [[]]",
    "gpus: [{gpus: [0], modles: [a]}]",
    "gpus: [{models: [a]}]",
    "gpus: [{gpus: [0], split: diagonal}]",
    "ollama: {env: {a-b: 1}}",
    "ollama: {env: {A: [1]}}",
    "ollama: {env: [A]}",
    "ollama: {keep_alive: forever}",
    "ollama: {bind_numa: 1}",
    "state_dir: 5",
    "warmup: {seconds: -1}",
    "stores: {far: {}}",
)


@pytest.mark.parametrize("text", BAD)
def test_what_corral_refuses_by_a_single_key_is_not_valid(text: str, validator: Any, tmp_path: Path) -> None:
    path = tmp_path / "corral.yaml"
    path.write_text(text + "\n")
    with pytest.raises(ConfigError):
        load_config(path)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(yaml.safe_load(text))


def test_a_policy_of_a_file_may_have_any_options(tmp_path: Path, validator: Any) -> None:
    validator.validate(yaml.safe_load("policy: {path: ./mine.py, name: round-robin, depth: 3}"))


def test_editors_are_told_what_each_key_means_and_its_default() -> None:
    schema = json.loads(schema_text())
    queue = schema["definitions"]["QueueConfig"]["properties"]
    assert (queue["max_requests"]["default"], queue["order"]["enum"]) == (512, ["fcfs", "wspt"])
    nameless = [
        f"{name}.{key}"
        for name, each in schema["definitions"].items()
        for key, known in each.get("properties", {}).items()
        if not known.get("description") and "$ref" not in known
    ]
    assert nameless == []
    assert "\\Z" not in schema_text()
