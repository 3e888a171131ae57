"""A configuration in rows, and as a file again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from corral.gateway.config import Config, parse_config
from corral.gateway.config.as_yaml import rows_as_yaml
from corral.gateway.config.masking import MASK, masked
from corral.gateway.config.shown import config_page
from corral.gateway.config.sources import Sources
from tests.gateway.config.test_load import WHOLE

OWNED = """
gpus: [0, {gpus: [1, 2], slots: 3, env: {OLLAMA_DEBUG: 1}}]
large_models: []
ollama: {models: /srv, env: {OLLAMA_KV_CACHE_TYPE: q8_0}}
placement: {canonicalise: {num_ctx: 4096}}
policy: {name: weighted-least-load, cold_penalty: 1.5, weights: {memory: 2}}
"""
STORES = """
replicas: [{id: "1", url: "http://127.0.0.1:21001", store: a.b}]
stores: {a.b: {path: /x}}
warmup: {models: ["yes", "12:30", "a: b"], seconds: 1.5}
listen: "[::]:80"
"""


def page_of(folder: Path, text: str, **environ: str) -> dict[str, Any]:
    path = folder / "corral.yaml"
    path.write_text(text)
    return config_page(Sources(path, environ).settle())


@pytest.mark.parametrize("text", [WHOLE.replace("{path: ./mine.py, name: Mine,", "{"), OWNED, STORES, "gpus: none\n"])
@pytest.mark.parametrize("origins", [False, True])
def test_what_is_shown_is_a_file_that_means_the_same(text: str, origins: bool, tmp_path: Path) -> None:
    text = text.replace("depth: 3, names: [x, y]", "name: random")
    text = text.replace("gpus: none\n", 'gpus: none\nreplicas: [{id: a, url: "http://a:1"}]\n')
    shown = rows_as_yaml(page_of(tmp_path, text)["keys"], origins=origins)
    source = str(tmp_path / "corral.yaml")
    assert parse_config(shown, source) == parse_config(text, source)


def test_every_key_of_the_schema_is_in_it(tmp_path: Path) -> None:
    page = page_of(tmp_path, "gpus: auto\n")
    assert {row["path"][0] for row in page["keys"]} == set(Config.__struct_fields__)
    shown = rows_as_yaml(page["keys"], origins=True)
    assert "queue:\n  max_requests: 512                       # default\n" in shown
    assert "\n# state_dir: not set\n" in shown
    assert f"gpus: auto                                # {tmp_path}/corral.yaml:1\n" in shown


def test_rows_say_the_value_and_where_it_comes_from(tmp_path: Path) -> None:
    page = page_of(tmp_path, "queue: {max_wait_s: 5}\n", OLLAMA_MODELS="/m", OLLAMA_MODLES="x")
    rows = {row["key"]: row for row in page["keys"]}
    path = str(tmp_path / "corral.yaml")
    assert rows["queue.max_wait_s"] == {
        "key": "queue.max_wait_s",
        "path": ["queue", "max_wait_s"],
        "value": 5,
        "from": "file",
        "origin": f"{path}:1",
    }
    assert (rows["ollama.models"]["value"], rows["ollama.models"]["from"]) == ("/m", "environment")
    assert (page["schema"], page["file"], len(page["warnings"])) == (1, path, 1)


@pytest.mark.parametrize(
    ("path", "value", "wanted"),
    [
        ("ollama.env.HF_TOKEN", "hush", MASK),
        ("ollama.env.HOME", "/home/me", MASK),
        ("ollama.env.OLLAMA_API_KEY", "hush", MASK),
        ("ollama.env.OLLAMA_DEBUG", "1", "1"),
        ("gpus[0].env.CUDA_VISIBLE_DEVICES", "0", "0"),
        ("gpus[0].env.OLLAMA_REMOTES", "https://me:hush@host/x", f"https://{MASK}@host/x"),
        ("policy.api_key", "hush", MASK),
        ("policy.weights", {"memory": 1, "token": "hush"}, {"memory": 1, "token": MASK}),
        ("policy.urls", ["http://a:b@c"], [f"http://{MASK}@c"]),
        ("policy.url", "http://a:b@hush@c, x://d:e@f/g@h", f"http://{MASK}@c, x://{MASK}@f/g@h"),
        ("tracing.endpoint", "http://me:hush@otel:4318", f"http://{MASK}@otel:4318"),
        ("policy.max_tokens", 5, 5),
        ("ollama.keep_alive", "5m", "5m"),
        ("ollama.bind_numa", True, True),
        ("listen", "127.0.0.1:11434", "127.0.0.1:11434"),
    ],
)
def test_secrets_are_masked_and_nothing_else(path: str, value: object, wanted: object) -> None:
    assert masked(path, value) == wanted


def test_no_secret_of_a_file_is_in_the_page(tmp_path: Path) -> None:
    text = "gpus: [{gpus: [0], env: {A_TOKEN: hush, X: hush}}]\nollama: {env: {PASSWORD: hush, P: 'http://u:hush@x'}}\n"
    page = page_of(tmp_path, text)
    assert "hush" not in str(page)
    assert "hush" not in rows_as_yaml(page["keys"], origins=True)
