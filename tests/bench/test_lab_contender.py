"""A contender is named in one text: a rival, or Corral with a policy, its options and what is switched."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.policies import __main__ as command

from corral.errors import OperatorError
from corral.laboratory.contender import DEFAULT, SWITCHES, Contender, contender

OURS = "corral:weighted-least-load"
BANDIT = Path(__file__).parents[2] / "examples" / "bandit.py"


def test_a_contender_is_a_rival_or_a_policy_with_options_and_switches() -> None:
    assert contender("least-conn") == Contender("least-conn")
    text = f"{OURS}?cold_penalty=8.5"
    assert contender(text) == Contender(text, "weighted-least-load", (("cold_penalty", 8.5),))
    both = f"{text}+no-placement+wspt"
    assert contender(both).switches == {"no-placement", "wspt"}
    assert contender(both).options == (("cold_penalty", 8.5),)
    assert all(contender(f"{OURS}+{word}").switches == {word} for word in SWITCHES)
    assert all(contender(name).name == name for name in DEFAULT)


def test_groups_of_contenders_have_a_name() -> None:
    policies = command.arguments(["--policies", "ablations,least-conn"]).policies
    assert policies == [OURS, *(f"{OURS}+{word}" for word in SWITCHES), "least-conn"]
    assert command.arguments(["--policies", "all"]).policies == list(DEFAULT)


def test_a_policy_may_come_from_a_file() -> None:
    text = f"corral:{BANDIT}:Bandit?hold=20+unfair"
    assert contender(text) == Contender(text, "Bandit", (("hold", 20),), str(BANDIT), frozenset({"unfair"}))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("least", "rivals: round-robin"),
        ("corral:least", "no policy"),
        (f"{OURS}?warm=1", "no such option"),
        (f"{OURS}+no-placment", "did you mean 'no-placement'"),
        (f"{OURS}+", "no switch ''"),
        (f"corral:{BANDIT}:Robber", "defines no 'Robber'"),
        ("corral:nowhere.py:Bandit", "cannot read nowhere.py"),
    ],
)
def test_what_nobody_is_called_is_refused(wrong: str, said: str) -> None:
    with pytest.raises(OperatorError, match=said):
        contender(wrong)
