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


def test_a_value_taken_away_is_said_to_be_not_set() -> None:
    new = OLD.replace(", slots: 2", "")
    assert diff_config(parse_config(OLD, "x"), parse_config(new, "x")) == ["replica b.slots: 2 → not set"]
