"""The dashboards are what their script writes, are laid out well, and ask only for what there is."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from typing import Any

import pytest
import yaml

from tests.deploy.monitoring.files import (
    BOARDS,
    GRAFANA,
    asked,
    boards,
    grouped,
    known_metrics,
    panel_queries,
    panels,
    rules,
    without_variables,
)

UNITS = {
    "none", "reqps", "ops", "tok/s", "s", "percentunit", "watt", "celsius", "joule", "bytes", "hertz",
}  # fmt: skip
KINDS = {"timeseries", "stat", "state-timeline", "table", "text"}


def test_the_dashboards_are_what_their_script_writes() -> None:
    command = [sys.executable, str(GRAFANA / "build.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_there_is_one_for_the_fleet_for_a_gpu_for_a_model_and_for_tenants() -> None:
    assert [path.stem for path in BOARDS] == ["corral-fleet", "corral-gpu", "corral-model", "corral-tenants"]
    assert {board["uid"] for board in boards().values()} == {path.stem for path in BOARDS}


@pytest.mark.parametrize("board", boards().values(), ids=boards())
def test_every_panel_has_a_title_a_description_a_unit_and_a_legend(board: dict[str, Any]) -> None:
    assert board["title"]
    assert board["description"]
    titles = [panel["title"] for panel in panels(board)]
    for row in board["panels"]:
        assert row["title"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in panels(board):
        assert panel["title"], titles
        assert panel["description"].endswith("."), panel["title"]
        assert panel["type"] in KINDS
        if panel["type"] == "text":
            assert panel["options"]["content"]
            continue
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert [target["refId"] for target in panel["targets"]] == [*"ABCDEFG"][: len(panel["targets"])]
        for target in panel["targets"]:
            assert panel["type"] in ("stat", "table") or target["legendFormat"] != "__auto", panel["title"]


@pytest.mark.parametrize("board", boards().values(), ids=boards())
def test_no_panel_lies_over_another_or_out_of_the_page_and_no_line_has_a_gap_at_its_end(board: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in board["panels"]]
    for place in places:
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
    for a, b in combinations(places, 2):
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert apart or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], (a, b)
    for y in {place["y"] for place in places}:
        assert sum(place["w"] for place in places if place["y"] == y) == 24, y


@pytest.mark.parametrize("board", boards().values(), ids=boards())
def test_every_query_heeds_the_chosen_data_source_and_gateway(board: dict[str, Any]) -> None:
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert {"datasource", "instance"} <= variables
    for panel in panels(board):
        for target in panel.get("targets", ()):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert target["expr"].count("{") == target["expr"].count("}")
            assert target["expr"].count('instance=~"$instance"') >= target["expr"].count("corral_"), target["expr"]


def test_every_query_asks_for_metrics_that_there_are_by_labels_that_they_have() -> None:
    known = known_metrics()
    everywhere = [(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]
    everywhere += [(where, without_variables(query)) for where, query in panel_queries()]
    assert len(everywhere) > 150
    for where, query in everywhere:
        query = query.removeprefix("label_values(").rpartition(",")[0] if query.startswith("label_values(") else query
        found = dict(asked(query))
        assert found, (where, query)
        labels: set[str] = set()
        for name, chosen in asked(query):
            assert name in known, f"{where}: no metric is called {name}"
            assert chosen <= known[name], f"{where}: {name} has no {sorted(chosen - known[name])}"
            labels |= known[name]
        assert grouped(query) <= labels, f"{where}: nobody has {sorted(grouped(query) - labels)}"


def test_a_query_that_asks_for_something_else_would_be_found() -> None:
    query = (
        'sum by (tenant) (rate(corral_request_total{kind="chat"}[5m])) / on (job) group_left () up{tenant!="x"} > 0.5'
    )
    assert dict(asked(query)) == {"corral_request_total": {"kind"}, "up": {"tenant"}}
    assert grouped(query) == {"tenant", "job"}


def test_every_metric_that_is_for_people_is_looked_at_somewhere() -> None:
    """A metric that no dashboard and no alert asks for is perhaps none that anybody needs."""
    queries = " ".join([query for _, query in panel_queries()] + [rule["expr"] for rule in rules()])
    unused = {
        name
        for name in known_metrics()
        if name.startswith("corral_") and not name.endswith(("_sum", "_count")) and name not in queries
    }
    assert unused == {
        "corral_policy_info",
        "corral_replica_weight",
        "corral_replica_health_changes_total",
        "corral_replica_prompt_tokens_total",
        "corral_predicted_seconds_total",
        "corral_probe_failures_total",
        "corral_probe_success",
        "corral_gpu_probe_rounds_total",
        "corral_gpu_probe_seconds_total",
    }


def test_grafana_finds_the_dashboards_and_prometheus() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/corral.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"


def test_every_alert_says_what_it_is_what_it_means_and_what_to_do() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("critical", "warning", "info")
            assert set(rule["annotations"]) == {"summary", "description", "runbook"}
            for text in rule["annotations"].values():
                assert text.rstrip().endswith((".", ")")), text
