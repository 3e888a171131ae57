"""docs/operations.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from corral.gateway.cli.exits import EXITS
from corral.gateway.cli.table import COMMANDS
from corral.gateway.config import NEEDS_RESTART, parse_config
from corral.gateway.config.environment import VARIABLES
from corral.gateway.config.known_variables import OURS, PASSED_ON
from corral.gateway.serve.admin import INDEX
from corral.gateway.serve.explain import explain_json
from corral.gateway.serve.exposition import METRICS
from corral.gateway.serve.snapshot import SNAPSHOT_SCHEMA, snapshot_json
from tests.gateway.config.keys import rows
from tests.gateway.serve import history

PAGE = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()


def table(heading: str) -> list[str]:
    """The rows of the first table below a heading."""
    part = re.split(rf"^#+ {heading}$", PAGE, maxsplit=1, flags=re.MULTILINE)[1]
    lines = part[part.index("|---") :].splitlines()[1:]
    return lines[: next((number for number, line in enumerate(lines) if not line.startswith("|")), len(lines))]


def first_cells(heading: str) -> list[str]:
    return [row.split(" | ")[0].removeprefix("| ") for row in table(heading)]


def test_every_key_is_listed_with_its_type_default_and_meaning() -> None:
    assert table("Configuration") == list(rows())


def test_every_metric_is_listed_with_its_type_labels_and_meaning() -> None:
    assert table("Metrics") == [
        f"| `{name}` | {spec.type} | {', '.join(f'`{label}`' for label in spec.labels) or 'none'} | {spec.help} |"
        for name, spec in METRICS.items()
    ]


def test_every_command_is_listed() -> None:
    assert {cell.strip("`").split()[1] for cell in first_cells("Commands")} == set(COMMANDS)


def test_every_exit_code_is_listed() -> None:
    assert {int(cell) for cell in first_cells("Exit codes")} == set(EXITS)


def test_every_admin_route_is_listed() -> None:
    routes = {" ".join(line.split()[:2]) for line in INDEX.splitlines() if line.startswith(("GET", "POST", "DELETE"))}
    assert {cell.strip("`") for cell in first_cells("The admin port")} == routes | {"GET /"}


def test_every_key_of_the_snapshot_is_listed() -> None:
    page = snapshot_json(history.snapshot())
    keys = {"schema", "version", "ready", "reason", "policy"}
    keys |= {f"requests.{key}" for key in page["requests"]} - {"requests.waiting", "requests.running"}
    keys |= {f"requests.{part}[].{key}" for part in ("waiting", "running") for key in page["requests"][part][0]}
    keys |= {f"replicas[].{key}" for key in page["replicas"][0]}
    keys |= {f"replicas[].process.{key}" for key in page["replicas"][0]["process"]}
    keys |= {"advice"} | {f"gpus[].{key}" for key in page["gpus"][0]}
    keys |= {f"gpus[].sample.{key}" for key in page["gpus"][0]["sample"]}
    listed = {key for cell in first_cells("The snapshot") for key in re.findall(r"`([^`]+)`", cell)}
    assert listed == keys
    assert f"`schema` is {SNAPSHOT_SCHEMA};" in PAGE


def test_every_key_of_the_last_decisions_is_listed() -> None:
    decisions = explain_json(history.choices(), 100.0)
    keys = {f"decisions[].{key}" for key in decisions[0]} - {"decisions[].candidates"}
    first, second = decisions[0]["candidates"][0], decisions[1]["candidates"][0]
    keys |= {f"decisions[].candidates[].{key}" for key in first}
    keys |= {f"decisions[].candidates[].gpu.{key}" for key in first["gpu"]}
    keys |= {f"decisions[].candidates[].predicted.{key}" for key in second["predicted"]}
    assert {key for cell in first_cells("The last decisions") for key in re.findall(r"`([^`]+)`", cell)} == keys


def test_every_variable_of_the_environment_is_listed_in_one_row() -> None:
    listed = [name for cell in first_cells("Environment") for name in re.findall(r"`([^`]+)`", cell)]
    known = {variable.name for variable in VARIABLES} | {*PASSED_ON, *OURS}
    assert len(listed) == len(set(listed))
    assert set(listed) == known
    rows = {name: row for row in table("Environment") for name in re.findall(r"`([A-Z_]+)`", row.split(" | ")[0])}
    assert [each.name for each in VARIABLES if f"`{each.key}`" not in rows[each.name]] == []


def test_the_examples_are_configurations_that_work() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 4
    for example in examples:
        config = parse_config(example, "corral.yaml")
        assert config.replicas or config.owns_replicas


def test_the_keys_that_need_a_restart_are_named() -> None:
    sentence = next(sentence for sentence in PAGE.split(". ") if "need a restart" in sentence)
    assert set(re.findall(r"`(\w+)`", sentence)) == NEEDS_RESTART
