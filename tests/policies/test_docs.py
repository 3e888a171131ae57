"""docs/policies.md says what is true: its tables are the code's, its example runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from random import Random

import pytest
import yaml

from corral.model import RequestKind, RouteRequest
from corral.policies import POLICIES, make_policy
from tests.policies.test_catalogue import install
from tests.policies.views import view

PAGE = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()
SMALL = RouteRequest(RequestKind.INFERENCE, "m:latest", body_bytes=500)
LARGE = RouteRequest(RequestKind.INFERENCE, "m:latest", body_bytes=3_000)
CANDIDATES = [view("small-gpu"), view("big", inflight=3), view("bigger", inflight=2)]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def configured(at: int) -> dict[str, object]:
    """The n-th YAML example of the page."""
    section: dict[str, dict[str, object]] = yaml.safe_load(blocks("yaml")[at])
    return section["policy"]


def test_the_table_lists_every_policy_with_its_docstring() -> None:
    table = PAGE.partition("## The rules")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+?) \|", table, re.MULTILINE)
    said = {name: rule.replace("``", "`") for name, rule in rows}
    assert said == {name: (made.__doc__ or "").replace("``", "`") for name, made in POLICIES.items()}


def test_the_first_configuration_is_the_default() -> None:
    options = configured(0)
    assert make_policy(str(options.pop("name")), options=options) == make_policy("weighted-least-load")


def test_the_example_runs_from_a_file(tmp_path: Path) -> None:
    options = configured(1)
    path = tmp_path / str(options.pop("path"))
    path.write_text(blocks("python")[0])
    policy = make_policy(str(options.pop("name")), path, options)
    assert policy.choose(SMALL, CANDIDATES, Random(0)).replica_id == "small-gpu"
    assert policy.choose(LARGE, CANDIDATES, Random(0)).replica_id == "bigger"
    assert policy.choose(LARGE, CANDIDATES[:1], Random(0)).replica_id == "small-gpu"


def test_the_example_runs_from_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "", "corral_test_plugin:Unused")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "express.py").write_text(blocks("python")[0])
    group, line = blocks("toml")[0].splitlines()
    assert group == '[project.entry-points."corral.policies"]'
    (tmp_path / "corral_test_plugin-1.dist-info" / "entry_points.txt").write_text(
        f"[corral.policies]\n{line.replace(chr(34), '')}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_package.express", raising=False)
    options = configured(2)
    policy = make_policy(str(options.pop("name")), options=options)
    assert policy.choose(LARGE, CANDIDATES, Random(0)).replica_id == "small-gpu"
