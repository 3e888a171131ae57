"""`corral policy sim` as a person runs it."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from corral.gateway.cli.entry import run
from tests.gateway.cli.shell import running
from tests.laboratory.test_access_log import ended, log_of

CONFIG = """
replicas:
  - {id: slow, url: "http://127.0.0.1:21001", slots: 2}
  - {id: quick, url: "http://127.0.0.1:21002", weight: 4, slots: 4}
policy: {name: prefer-loaded}
"""
POLICY = """
from dataclasses import dataclass
from corral.model import Decision

@dataclass
class Only:
    where: str
    def choose(self, request, candidates, rng):
        there = [view for view in candidates if view.id == self.where]
        return Decision(there[0].id, "there") if there else Decision(candidates[0].id, "elsewhere")

class Broken:
    def choose(self, request, candidates, rng):
        raise RuntimeError("no idea")
"""
FEW = ("--requests", "120", "--processes", "1")


@pytest.fixture(autouse=True)
def _box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("corral.yaml").write_text(CONFIG)
    Path("mine.py").write_text(POLICY)


def sim(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    assert run(["policy", "sim", *args, *FEW, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""  # progress is for terminals
    page: dict[str, Any] = json.loads(out)
    return page


def by_name(page: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in page["policies"]}


def test_the_policy_of_the_configuration_is_beside_the_default_and_a_simple_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = sim(capsys)
    assert list(by_name(page)) == ["prefer-loaded", "weighted-least-load", "round-robin"]
    assert [one["id"] for one in page["box"]["replicas"]] == ["slow", "quick"]
    for each in page["policies"]:
        assert sum(replica["share"] for replica in each["replicas"].values()) == pytest.approx(1)
        assert 0 < each["ttft_p50"] <= each["ttft_p95"] <= each["ttft_p99"] <= each["e2e_p99"]
        assert each["refused"] == each["failed"] == 0
    assert len(page["changes"]) == 2


def test_a_policy_to_try_stands_first_beside_the_one_in_effect(capsys: pytest.CaptureFixture[str]) -> None:
    page = sim(capsys, "--load", "0.3", "--policy", "mine.py:Only?where=slow")
    assert list(by_name(page))[:2] == ["mine.py:Only?where=slow", "prefer-loaded"]
    mine, theirs = page["policies"][:2]
    assert mine["replicas"]["slow"]["share"] > theirs["replicas"]["slow"]["share"] + 0.3
    assert mine["e2e_mean"] > 1.5 * theirs["e2e_mean"]
    assert set(mine["reasons"]) == {"there", "elsewhere"}
    assert any("later" in line or "as late" in line for line in page["changes"])


def test_what_it_is_compared_with_can_be_chosen_rules_of_others_too(capsys: pytest.CaptureFixture[str]) -> None:
    page = sim(capsys, "--against", "least-conn", "--against", "mine.py:Only?where=quick")
    assert list(by_name(page)) == ["prefer-loaded", "least-conn", "mine.py:Only?where=quick"]


def test_the_same_command_says_the_same_again_in_processes_too(capsys: pytest.CaptureFixture[str]) -> None:
    args = ("bursty", "--seeds", "2", "--against", "random")
    once = sim(capsys, *args)
    assert run(["policy", "sim", *args, *FEW[:2], "--processes", "2", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    for each in (*once["policies"], *again["policies"]):
        del each["decision_us"]
    assert once == again


def test_a_log_is_played_with_its_models_and_says_what_was_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [ended(1000.0 + n, model="qwen2.5:7b" if n % 3 else "llama3.1:8b") for n in range(60)]
    Path("access.log").write_text(log_of(*lines, ended(figures=None)))
    page = sim(capsys, "access.log", "--policy", "weighted-least-load")
    assert page["trace"] | {"load": None} == {
        "name": "access.log",
        "kind": "Corral's access log",
        "requests": 60,
        "seconds": pytest.approx(59, abs=0.1),
        "load": None,
        "cut_s": 0,
        "skipped": {"without token counts (refused, broken off, or no answer of a model)": 1},
        "was": {"e2e_mean": 2.5, "e2e_p95": 2.5, "ttft_mean": 0.5, "ttft_p95": 0.5},
    }
    assert [model["name"] for model in page["box"]["models"]] == ["qwen2.5:7b", "llama3.1:8b"]


def test_a_log_may_come_through_a_pipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = log_of(*(ended(1000.0 + n) for n in range(10)))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert sim(capsys, "-")["trace"]["requests"] == 10


def test_people_read_a_table_what_was_assumed_and_what_changes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["policy", "sim", *FEW, "--gpu", "slow=L4 24GB", "--policy", "round-robin"]) == 0
    said = capsys.readouterr().out
    assert "slow: L4 24GB, as --gpu says; 2 slots" in said
    assert "quick: assumed: RTX 4090 24GB" in said
    assert "0.70 of what the box can do" in said
    for row in ("first token: mean", "within the SLO", "refused", "models loaded", "slow: share, busy"):
        assert row in said
    assert "round-robin beside prefer-loaded: the first token comes" in said
    assert "All of it is simulated" in said


def test_more_than_the_box_can_do_is_said_and_refused_as_the_queue_would(capsys: pytest.CaptureFixture[str]) -> None:
    Path("corral.yaml").write_text(f"{CONFIG}queue: {{max_requests: 3}}\n")
    assert run(["policy", "sim", *FEW, "--load", "8"]) == 0
    said = capsys.readouterr().out
    assert "more than the box can do" in said
    assert "counts as 120 s" in said
    assert sim(capsys, "--load", "8")["policies"][0]["refused"] > 10


def test_a_policy_that_fails_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["policy", "sim", *FEW, "--policy", "mine.py:Broken"]) == 0
    said = capsys.readouterr().out
    assert "mine.py:Broken failed: " in said
    assert "no idea" in said
    assert "In 100.0 % of its decisions Corral drew a replica." in said


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("nothing.csv",), "nothing.csv: there is no such file"),
        (("--policy", "nope"), "--policy nope: there is no policy 'nope'"),
        (("--against", "mine.py:Nope"), "--against mine.py:Nope: "),
        (("--policy", "mine.py:Only"), "where"),
        (("--policy", "weighted-least-load?cold=1"), "has no such option"),
        (("--load", "1", "--speed", "1"), "--load and --speed"),
        (("--load", "nan"), "nan is not a number"),
        (("--gpu", "slow=Voodoo"), "unknown GPU"),
        (("--models", "unheard-of"), "--models unheard-of=4.9"),
        (("--models", "llama3.1:405b=230"), "no replica has the memory for llama3.1:405b"),
        (("--box", "shoe-1"), "--box shoe-1: unknown"),
        (("--config", "none.yaml"), "none.yaml: no such file"),
        (("--facts", "corral.yaml", "--config", "owned.yaml"), "is not what `corral plan --json` prints"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_simulated(
    args: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("owned.yaml").write_text("gpus: auto\n")
    assert run(["policy", "sim", *args]) != 0
    out, err = capsys.readouterr()
    assert said in err
    assert "bug" not in err
    assert out == ""


async def test_ctrl_c_ends_it_with_its_processes() -> None:
    async with running("policy", "sim", "--requests", "5000", "--seeds", "2", "--processes", "2") as child:
        async with asyncio.timeout(30):
            while len(workers := workers_of(child.process.pid)) < 2:
                await asyncio.sleep(0.01)
        child.process.send_signal(signal.SIGINT)
        assert await child.ended() == 130
    assert [line for line in child.said if line] == ["interrupted"]
    psutil.wait_procs(workers, timeout=10)
    assert not any(worker.is_running() for worker in workers)


def workers_of(pid: int) -> list[psutil.Process]:
    children = psutil.Process(pid).children(recursive=True)
    return [child for child in children if any("spawn_main" in word for word in child.cmdline())]


def test_the_gateway_runs_without_the_laboratory() -> None:
    code = "import sys; sys.modules['corral.laboratory'] = None; from corral.gateway.cli.entry import run; "
    run_it = [sys.executable, "-c", f"{code}sys.exit(run(['policy', 'list']))"]
    assert subprocess.run(run_it, capture_output=True, check=False, timeout=60).returncode == 0
