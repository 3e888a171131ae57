"""What is delivered for Prometheus and Grafana, and what its queries ask for."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from corral.gateway.serve.exposition import METRICS

ROOT: Final = Path(__file__).parents[3]
PROMETHEUS: Final = ROOT / "deploy" / "prometheus"
GRAFANA: Final = ROOT / "deploy" / "grafana"
RULES: Final = tuple(sorted((PROMETHEUS / "rules").glob("*.yml")))
BOARDS: Final = tuple(sorted((GRAFANA / "dashboards").glob("*.json")))

TARGET_LABELS: Final = frozenset({"job", "instance"})
OF_PROMETHEUS: Final = {"up": TARGET_LABELS, "scrape_duration_seconds": TARGET_LABELS}
OF_THE_PROCESS: Final = ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds")

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="needs Prometheus: apt-get install prometheus",
)


def rules() -> list[dict[str, Any]]:
    """All rules, each with its ``expr``."""
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def boards() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in BOARDS}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def panel_queries() -> Iterator[tuple[str, str]]:
    """(where, query) of every panel and every variable of every dashboard."""
    for name, board in boards().items():
        for panel in panels(board):
            for target in panel.get("targets", ()):
                yield f"{name}: {panel['title']}", target["expr"]
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                yield f"{name}: ${variable['name']}", variable["query"]["query"]


def without_variables(query: str, window: str = "5m") -> str:
    """As Prometheus is asked it: everything is chosen."""
    query = query.replace("$__rate_interval", window).replace("$__range", window).replace("$__interval", window)
    return re.sub(r"\$\{?\w+\}?", ".*", query)


def known_metrics() -> dict[str, frozenset[str]]:
    """Every series that a query may ask for, with its labels."""
    known = dict(OF_PROMETHEUS)
    known |= dict.fromkeys((*OF_THE_PROCESS, "process_max_fds", "process_start_time_seconds"), TARGET_LABELS)
    for name, spec in METRICS.items():
        labels = TARGET_LABELS | set(spec.labels)
        if spec.type == "histogram":
            known |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            known[name] = labels
    for rule in rules():
        if "record" in rule:
            known[rule["record"]] = TARGET_LABELS | {"model", "class", "replica", "part"}
    return known


_NAME: Final = re.compile(r"\b([a-zA-Z_:][a-zA-Z0-9_:]*)\b(?!\s*\()\s*(\{[^}]*\})?")
"""A word that is no function."""
_LABELS: Final = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_GROUPING: Final = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_WORDS: Final = frozenset({"or", "and", "unless", "bool", "offset", "inf", "nan"})


def asked(query: str) -> Iterator[tuple[str, frozenset[str]]]:
    """Each metric that a query names, with the labels that it is chosen by."""
    bare = _GROUPING.sub(" ", re.sub(r'"[^"]*"', '""', query))
    bare = re.sub(r"\[[^\]]*\]", " ", bare)
    for name, selector in _NAME.findall(bare):
        if name not in _WORDS:
            yield name, frozenset(_LABELS.findall(selector))


def grouped(query: str) -> frozenset[str]:
    """The labels that a query groups, matches or joins by."""
    found = (label.strip() for labels in _GROUPING.findall(query) for label in labels.split(","))
    return frozenset(label for label in found if label)
