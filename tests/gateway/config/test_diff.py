"""What a reload says it changed."""

from __future__ import annotations

from corral.gateway.config import diff_config, parse_config

OLD = """
replicas:
  - {id: a, url: "http://127.0.0.1:21001"}
  - {id: b, url: "http://127.0.0.1:21002", slots: 2}
"""


def test_the_same_configuration_has_no_differences() -> None:
    assert diff_config(parse_config(OLD, "x"), parse_config(OLD, "x")) == []


def test_each_change_is_one_line_and_says_when_it_needs_a_restart() -> None:
    new = """
listen: 0.0.0.0:11434
replicas:
  - {id: a, url: "http://127.0.0.1:21001", weight: 2}
  - {id: c, url: "http://127.0.0.1:21003"}
policy: {name: prefer-loaded, cold_penalty: 3}
queue: {max_wait_s: 10}
hosts: [gpu.example]
"""
    assert diff_config(parse_config(OLD, "x"), parse_config(new, "x")) == [
        "replica b removed (http://127.0.0.1:21002)",
        "replica a.weight: 1 → 2",
        "replica c added (http://127.0.0.1:21003)",
        "listen: 127.0.0.1:11434 → 0.0.0.0:11434 (needs a restart)",
        "policy: weighted-least-load → prefer-loaded, cold_penalty: 3",
        "queue.max_wait_s: 300 → 10",
        "hosts: [] → [gpu.example]",
    ]


def test_folders_of_stores_are_said_one_by_one() -> None:
    one, other = (parse_config(f"{OLD}stores: {{shared: {{path: {path}}}}}\n", "x") for path in ("/a", "/b"))
    assert diff_config(one, other) == ["stores.shared.path: /a → /b"]
    assert diff_config(parse_config(OLD, "x"), one) == ["stores.shared: not set → /a"]
    assert diff_config(one, parse_config(OLD, "x")) == ["stores.shared: /a → not set"]


def test_a_value_taken_away_is_said_to_be_not_set() -> None:
    new = OLD.replace(", slots: 2", "")
    assert diff_config(parse_config(OLD, "x"), parse_config(new, "x")) == ["replica b.slots: 2 → not set"]


def test_gpus_and_environments_are_said_without_a_value_that_may_be_secret() -> None:
    listed = "gpus: [0, {gpus: [1, 2], slots: 3, env: {TOKEN: hush}}]\nollama: {env: {A: hush, B: '1', C: '1'}}\n"
    before, after = parse_config(listed, "x"), parse_config("ollama: {env: {A: other, B: '1', D: '1'}}\n", "x")
    assert diff_config(before, after) == [
        "gpus: [0, 1+2 (slots: 3) (env: [TOKEN])] → not set",
        "ollama.env.A: changed",
        "ollama.env.C: removed",
        "ollama.env.D: added",
    ]
    assert diff_config(after, parse_config("gpus: auto\nollama: {env: {A: other, B: '1', D: '1'}}\n", "x")) == [
        "gpus: not set → auto"
    ]


def test_a_policys_option_that_may_be_secret_is_said_without_its_value() -> None:
    one, other = (parse_config(f"{OLD}policy: {{name: p, api_key: {key}, depth: 2}}\n", "x") for key in ("a1", "b2"))
    assert diff_config(one, other) == ["policy: p, api_key: ***, depth: 2 → p, api_key: ***, depth: 2"]


def test_a_context_length_for_each_model_is_said_with_its_values() -> None:
    one = parse_config(OLD + "placement: {canonicalise: {num_ctx: 4096}}\n", "x")
    named = parse_config(OLD + "placement: {enabled: false, canonicalise: {num_ctx: {m: 4096, b:1: 8}}}\n", "x")
    assert diff_config(one, named) == [
        "placement.enabled: True → False",
        "placement.canonicalise.num_ctx: 4096 → {m:latest: 4096, b:1: 8}",
    ]
    assert diff_config(named, parse_config(OLD, "x"))[1] == (
        "placement.canonicalise.num_ctx: {m:latest: 4096, b:1: 8} → not set"
    )
