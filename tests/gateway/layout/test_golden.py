"""What ``corral plan`` prints for known machines, word for word.

After a wanted change run this file with ``UPDATE_GOLDEN=1`` in the environment, and read the difference before it is
committed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from corral.gateway.config import parse_config
from corral.gateway.layout.choose import make_plan
from corral.gateway.layout.plan import Facts
from corral.gateway.layout.render import plan_text
from tests.gateway.layout import machines

GOLDEN = Path(__file__).parents[2] / "golden"
LARGE = "large_models: [deepseek-r1:70b]\n"
CASES: dict[str, tuple[Callable[[], Facts], str]] = {
    "one": (machines.one, ""),
    "two": (machines.two, ""),
    "four_pairs": (machines.four_in_pairs, ""),
    "four_pairs_large": (machines.four_in_pairs, LARGE),
    "eight_mixed": (machines.eight_mixed, LARGE),
    "mig": (machines.with_mig, ""),
    "amd": (machines.two_amd, ""),
    "none": (machines.none, ""),
}


@pytest.mark.parametrize("name", CASES)
def test_the_plan_of_a_known_machine_is_the_golden_one(name: str) -> None:
    machine, text = CASES[name]
    config = parse_config(text or "{}", "corral.yaml")
    facts = machine()
    path = GOLDEN / f"plan_{name}.txt"
    found = plan_text(make_plan(config, facts), facts) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text()
