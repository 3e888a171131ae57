"""``corral policy``."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from corral.gateway.cli.entry import run
from corral.gateway.cli.policy_template import class_name, policy_file
from corral.gateway.config import load_config
from corral.gateway.config.policy_promises import broken_promises
from corral.policies import POLICIES, make_policy


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_list_names_every_policy_with_its_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["policy", "list"]) == 0
    said = capsys.readouterr().out
    for name, made in POLICIES.items():
        rule = " ".join((made.__doc__ or "").split()).replace("``", "`")
        assert f"{name}\n" in said
        assert rule in " ".join(said.split())
    assert run(["policy", "list", "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in page["policies"]] == list(POLICIES)
    first = page["policies"][0]["options"][0]
    assert (first["name"], first["kind"], first["default"]) == ("cold_penalty", "number", 4.0)
    assert "worth" in first["meaning"]


def test_one_policy_is_shown_with_its_options_and_how_to_choose_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["policy", "show", "weighted-least-load"]) == 0
    said = capsys.readouterr().out
    assert "  cold_penalty         number, default 4. How many requests in flight a load" in said
    assert "  weights.memory       number, default 0. Of the memory in use, of all." in said
    assert "policy: {name: weighted-least-load, cold_penalty: 4}" in said
    assert run(["policy", "show", "random", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["options"] == []


def test_an_unknown_policy_is_told_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["policy", "show", "round-robbin"]) == 1
    assert "there is no policy 'round-robbin'; did you mean 'round-robin'?" in capsys.readouterr().err


def test_a_new_policy_can_be_used_as_it_is_told_and_keeps_its_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["policy", "new", "small-first"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("small_first.py was written")
    (line,) = [line for line in said.splitlines() if line.startswith("policy: ")]
    (tmp_path / "corral.yaml").write_text(f"{line}\n")
    assert load_config(tmp_path / "corral.yaml").policy.name == "SmallFirst"
    assert run(["policy", "check", "small_first.py", "SmallFirst", "-o", "loading=2"]) == 0
    assert "SmallFirst of small_first.py keeps what a policy promises" in capsys.readouterr().out
    assert run(["policy", "check", "small_first.py", "SmallFirst", "-o", "loading=-1"]) == 78
    assert "is less than 0" in capsys.readouterr().err


def test_options_of_any_kind_are_told_with_their_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import dataclass, field\nfrom corral.model import Decision\n"
        "@dataclass(frozen=True)\nclass Mine:\n    must: int\n    mode: str = 'fast'\n    on: bool = True\n"
        "    most: int | None = None\n    names: tuple[str, ...] = ('a', 'b')\n"
        "    more: list[str] = field(default_factory=list)\n"
        "    def choose(self, request, candidates, rng):\n        return Decision(candidates[0].id, 'first')\n"
    )
    assert run(["policy", "check", str(path), "Mine", "-o", "must=3"]) == 0
    told = [line.split()[0] + " " + line.partition(", ")[2] for line in capsys.readouterr().out.splitlines()[2:]]
    assert told[:4] == ["must must be given.", 'mode default "fast".', "on default true.", "most default null."]
    assert told[4].endswith('default ["a", "b"].')
    assert told[5:] == ["more default []."]


def test_a_file_that_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text("x = 1\n")
    assert run(["policy", "new", "mine"]) == 1
    assert "mine.py is there already" in capsys.readouterr().err
    assert (tmp_path / "mine.py").read_text() == "x = 1\n"
    assert run(["policy", "new", "mine", "--output", "other.py"]) == 0
    assert (tmp_path / "other.py").read_text() == policy_file("Mine")


@pytest.mark.parametrize(("name", "made"), [("small-first", "SmallFirst"), ("Mine", "Mine"), ("a_b-c2", "ABC2")])
def test_a_name_makes_a_class(name: str, made: str) -> None:
    assert class_name(name) == made


@pytest.mark.parametrize("name", ["", "2nd", "a b", "../x", "none-", "größe"])
def test_a_name_that_makes_no_class_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "none-":  # a keyword in its class's spelling
        with pytest.raises(ValueError, match="makes no name"):
            class_name(name)
        return
    assert run(["policy", "new", name]) == 2
    assert "makes no name of a class" in capsys.readouterr().err


@pytest.mark.parametrize("name", POLICIES)
def test_corrals_own_policies_keep_the_promises(name: str) -> None:
    assert broken_promises(make_policy(name), Random(1), rounds=200) == []


BREAKS = {
    "return None": "choose() returns a Decision, not NoneType",
    "return Decision('gpu99', 'x')": "it chooses one of the candidates; 'gpu99' is none",
    "return Decision(candidates[0].id, '')": "its reason is a few words, 30 characters at most",
    "return Decision(candidates[0].id, 'x' * 31)": "its reason is a few words, 30 characters at most",
    "return Decision(random.choice(candidates).id, 'x')": "the same question gets the same answer",
    "return Decision(candidates[0].id, f'{rng.random():.6f}')": "there must be few",
    "return Decision(sorted(view.loaded for view in candidates)[0], 'x')": "it raises TypeError",
}


@pytest.mark.parametrize("body", BREAKS)
def test_a_broken_promise_is_told(body: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = "import random\nfrom corral.model import Decision\n\n\nclass Mine:\n"
    (tmp_path / "mine.py").write_text(f"{head}    def choose(self, request, candidates, rng):\n        {body}\n")
    assert run(["policy", "check", "mine.py", "Mine"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: Mine of mine.py breaks what a policy promises:\n")
    assert BREAKS[body] in said
