"""How a policy is named, found and given its options, and what is said when that fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from random import Random
from typing import Any

import pytest

from corral.errors import ConfigError
from corral.policies import POLICIES, make_policy
from tests.policies.views import REQUEST, view

MINE = '''\
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from corral.model import Decision, ReplicaView, RouteRequest


@dataclass(frozen=True)
class Mine:
    """The last by name."""

    prefix: str = ""
    limit: int | None = None

    def choose(self, request: RouteRequest, candidates: Sequence[ReplicaView], rng: Random) -> Decision:
        return Decision(max(view.id for view in candidates), f"{self.prefix}last")
'''


def mine(tmp_path: Path, source: str = MINE) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(source)
    return path


def refused(name: str, path: Path | None = None, options: Mapping[str, object] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        make_policy(name, path, options)
    return str(caught.value)


@pytest.mark.parametrize("name", POLICIES)
def test_every_listed_policy_is_a_frozen_dataclass_with_a_sentence_that_is_its_rule(name: str) -> None:
    policy = POLICIES[name]
    assert policy.__doc__
    assert policy.__doc__.endswith(".")
    assert not policy.__doc__.startswith(f"{policy.__name__}(")
    params: Any = policy
    assert params.__dataclass_params__.frozen


@pytest.mark.parametrize("name", POLICIES)
def test_every_option_of_a_listed_policy_has_a_default(name: str) -> None:
    made: Any = make_policy(name)
    given = {field.name: getattr(made, field.name) for field in fields(made)}
    assert make_policy(name, options=given) == made


def test_an_unknown_policy_is_refused_with_the_nearest_name() -> None:
    message = refused("weighted-lest-load")
    assert message.startswith(
        "policy.name: there is no policy 'weighted-lest-load'; did you mean 'weighted-least-load'?"
    )
    assert "round-robin" in message


def test_an_unknown_option_is_refused_with_the_nearest_name() -> None:
    message = refused("weighted-least-load", options={"cold_penalti": 3})
    assert message == (
        "policy.cold_penalti: weighted-least-load has no such option; did you mean 'cold_penalty'?"
        " known options: cold_penalty, weights"
    )


def test_an_option_of_a_policy_without_options_is_refused() -> None:
    assert refused("random", options={"x": 1}) == "policy.x: random has no such option; known options: none"


@pytest.mark.parametrize("value", ["4", True, None, [4]])
def test_an_option_of_the_wrong_type_is_refused_with_its_name_and_the_type(value: object) -> None:
    message = refused("weighted-least-load", options={"cold_penalty": value})
    assert message.startswith("policy.cold_penalty: Expected `float`, got `")


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_an_option_that_makes_no_sense_is_refused(value: float) -> None:
    assert "cold_penalty must be 0 or more" in refused("weighted-least-load", options={"cold_penalty": value})


def test_a_whole_number_will_do_for_a_float() -> None:
    assert make_policy("weighted-least-load", options={"cold_penalty": 2}) == POLICIES["weighted-least-load"](
        **{"cold_penalty": 2.0}
    )


def test_a_file_gives_a_policy_with_options(tmp_path: Path) -> None:
    made = make_policy("Mine", mine(tmp_path), {"prefix": "the ", "limit": None})
    decision = made.choose(REQUEST, [view("a"), view("b")], Random(0))
    assert (decision.replica_id, decision.reason) == ("b", "the last")


def test_a_file_is_read_again_each_time(tmp_path: Path) -> None:
    make_policy("Mine", str(mine(tmp_path)))
    made = make_policy("Mine", str(mine(tmp_path, MINE.replace('last")', 'first")').replace("max", "min"))))
    assert made.choose(REQUEST, [view("a"), view("b")], Random(0)).replica_id == "a"


def test_the_options_of_a_file_are_checked_too(tmp_path: Path) -> None:
    assert refused("Mine", mine(tmp_path), {"prefx": ""}).startswith(
        "policy.prefx: Mine has no such option; did you mean 'prefix'?"
    )
    assert refused("Mine", mine(tmp_path), {"limit": "x"}).startswith("policy.limit: Expected `int | null`")


BROKEN = {
    "a syntax error": ("x = 1\ndef f(:\n", 2, "SyntaxError"),
    "a name that is not defined": ("x = 1\n\nprint(nowhere)\n", 3, "NameError: name 'nowhere' is not defined"),
    "a missing package": ("import no_such_package_here\n", 1, "ModuleNotFoundError"),
    "an exit": ("import sys\nsys.exit(3)\n", 2, "SystemExit: 3"),
    "an error deep inside": ("import json\n\n\njson.loads('{')\n", 4, "JSONDecodeError"),
    "an interrupt": ("raise KeyboardInterrupt\n", 1, "KeyboardInterrupt"),
    "a null byte": ("x = 1\0\n", 1, "null bytes"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_cannot_be_run_is_refused_with_its_line(case: str, tmp_path: Path) -> None:
    source, line, what = BROKEN[case]
    before = set(sys.modules)
    message = refused("Mine", mine(tmp_path, source))
    assert message.startswith(f"policy.path: {tmp_path}/mine.py:{line}: ")
    assert what in message
    assert "Traceback" not in message
    assert "corral_policy_mine" not in set(sys.modules) - before


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    message = refused("Mine", tmp_path / "none.py")
    assert message == f"policy.path: cannot read {tmp_path}/none.py: No such file or directory"


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    for path in (tmp_path / "pipe.py", Path("/dev/zero")):
        assert refused("Mine", path) == f"policy.path: cannot read {path}: it is no file"


def test_a_missing_class_is_refused_with_the_nearest_of_the_file(tmp_path: Path) -> None:
    message = refused("Mein", mine(tmp_path))
    assert message.endswith("defines no 'Mein'; did you mean 'Mine'? known classes: Mine")


@pytest.mark.parametrize("source", ["Mine = 3\n", "class Mine:\n    pass\n", "def Mine(): ...\n"])
def test_what_is_not_a_policy_is_refused(source: str, tmp_path: Path) -> None:
    assert "is not a policy: that is a class with a method choose" in refused("Mine", mine(tmp_path, source))


def test_a_policy_that_lacks_a_required_option_is_refused(tmp_path: Path) -> None:
    source = MINE.replace('prefix: str = ""', "prefix: str")
    assert "prefix" in refused("Mine", mine(tmp_path, source))


@pytest.mark.parametrize("error", ["KeyError('x')", "RuntimeError('x')", "SystemExit(3)", "KeyboardInterrupt()"])
def test_whatever_a_policys_constructor_raises_is_a_refusal(error: str, tmp_path: Path) -> None:
    source = MINE.replace(
        "    def choose", f"    def __post_init__(self) -> None:\n        raise {error}\n\n    def choose"
    )
    assert refused("Mine", mine(tmp_path, source)).startswith(f"policy: Mine: {error.partition('(')[0]}")


def test_option_types_that_cannot_be_read_are_a_refusal(tmp_path: Path) -> None:
    for wrong in ("1 / 0", "int[3]", "Nowhere"):
        source = MINE.replace('prefix: str = ""', f"prefix: {wrong} = 0")
        assert refused("Mine", mine(tmp_path, source), {"prefix": 1}).startswith("policy: Mine: the type")
    source = MINE.replace('prefix: str = ""', "prefix: Random | None = None")
    assert refused("Mine", mine(tmp_path, source), {"prefix": 1}).startswith("policy.prefix: ")


def test_all_wrong_options_are_told_together() -> None:
    message = refused("weighted-least-load", options={"x": 1, "cold_penalty": "much"})
    assert [line.partition(":")[0] for line in message.splitlines()] == ["policy.x", "policy.cold_penalty"]


def test_an_installed_package_gives_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, MINE, "corral_test_plugin:Mine")
    monkeypatch.syspath_prepend(tmp_path)
    decision = make_policy("mine", options={"prefix": "x"}).choose(REQUEST, [view("a"), view("b")], Random(0))
    assert (decision.replica_id, decision.reason) == ("b", "xlast")
    assert "known policies: weighted-least-load" in refused("other")
    assert refused("other").endswith(", mine")


def test_an_installed_package_that_cannot_be_imported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "raise RuntimeError('not today')\n", "corral_test_plugin:Mine")
    monkeypatch.syspath_prepend(tmp_path)
    assert refused("mine") == "policy.name: corral_test_plugin:Mine: RuntimeError: not today"


def install(site: Path, source: str, value: str) -> None:
    """What an installer leaves behind, in its smallest form."""
    sys.modules.pop("corral_test_plugin", None)
    (site / "corral_test_plugin.py").write_text(source)
    info = site / "corral_test_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: corral-test-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[corral.policies]\nmine = {value}\n")
