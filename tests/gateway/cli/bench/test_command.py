"""`corral bench` against a real gateway and one of its emulated replicas asked directly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corral.gateway.cli.entry import run
from tests.clients.processes import GPUS, Stack, stack
from tests.gateway.cli.shell import corral

MODEL = "llama3.1:8b"
FEW = ("--no-fairness", "--concurrency", "2", "--requests", "12", "--output-tokens", "8", "--prompt-tokens", "20")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def box(folder: Path) -> Iterator[Stack]:
    """Three equal replicas of two slots, and an access log."""
    log = f'access_log: {{format: json, path: "{folder / "access.log"}"}}\n'
    with stack(folder, ["--model", MODEL, "--speed", "3"], gpus=GPUS[:1] * 3, slots=2, more=log) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_faults(box: Stack) -> Iterator[None]:
    yield
    box.clear_faults()


async def test_three_replicas_beat_one_and_the_log_can_be_played_again(box: Stack, folder: Path) -> None:
    box.load_everywhere(MODEL)
    args = ("--no-fairness", "--concurrency", "8", "--requests", "24", "--output-tokens", "40", "--model", MODEL)
    done = await corral("bench", "--url", box.url, "--against", box.replicas[0].url, *args, "--json")
    assert (done.code, done.err) == (0, "")
    page = json.loads(done.out)
    assert [target["name"] for target in page["targets"]] == ["corral", "ollama"]
    ours, direct = page["levels"]
    assert (ours["ok"], ours["errors"], direct["ok"]) == (24, {}, 24)
    assert ours["tok_s"] > 1.5 * direct["tok_s"]
    assert ours["ttft"]["p50_s"] < direct["ttft"]["p50_s"]
    assert set(ours["replicas"]) == {"a", "b", "c"}
    assert direct["replicas"] == {}
    assert ours["output_tokens"] == 40

    played = await corral(
        "policy", "sim", str(folder / "access.log"), "--config", str(folder / "corral.yaml"), "--json"
    )
    assert played.code == 0, played.err
    page = json.loads(played.out)
    assert page["trace"]["requests"] >= 24
    assert page["box"]["models"][0]["name"] == MODEL
    assert {one["id"] for one in page["box"]["replicas"]} == {"a", "b", "c"}


async def test_who_asks_now_and_then_is_answered_sooner_than_by_one_ollama_in_a_flood(box: Stack) -> None:
    box.load_everywhere(MODEL)
    args = ("--concurrency", "4", "--requests", "4", "--output-tokens", "10", "--prompt-tokens", "20", "--model", MODEL)
    done = await corral("bench", "--url", box.url, "--against", box.replicas[0].url, *args, "--json")
    assert (done.code, done.err) == (0, "")
    ours, direct = json.loads(done.out)["fairness"]
    assert (ours["target"], direct["target"]) == ("corral", "ollama")
    assert ours["failed"] == direct["failed"] == 0
    assert ours["flood_streams"] == direct["flood_streams"] == 8
    assert direct["ratio"] > 2
    assert ours["flooded"]["p50_s"] < direct["flooded"]["p50_s"]


async def test_without_a_name_it_asks_a_model_that_is_there_and_prints_what_can_be_pasted(box: Stack) -> None:
    done = await corral("bench", "--url", box.url, *FEW, "--markdown")
    assert (done.code, done.err) == (0, "")
    assert f"model {MODEL}, about 20 tokens in" in done.out
    assert "| corral | 2 |" in done.out
    assert done.out.startswith("`corral bench --url")


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("truncate", "Response payload is not completed"),
        ("end-without-done", "answer cut off"),
        ("error-mid-stream", "error in the stream"),
        ("reset", "reset"),
    ],
)
async def test_an_answer_that_is_not_whole_is_an_error_and_said(box: Stack, kind: str, why: str) -> None:
    page = await with_fault(box, kind)
    (level,) = page["levels"]
    assert sum(level["errors"].values()) == 4
    assert level["ok"] == 8
    assert all(why in said for said in level["errors"]), level["errors"]


async def test_a_refusal_is_told_apart_from_an_error(box: Stack) -> None:
    (level,) = (await with_fault(box, "busy"))["levels"]
    assert (level["refused"], level["errors"], level["ok"]) == (4, {}, 8)


async def test_where_nothing_is_answered_there_is_nothing_to_report(box: Stack) -> None:
    replica = box.replicas[0]
    box.load_everywhere(MODEL)
    replica.fault("end-without-done", count=1_000_000)
    done = await corral("bench", "--url", replica.url, "--model", MODEL, *FEW)
    assert done.code == 1
    assert "answers none of the requests (answer cut off)" in done.err
    assert done.out == ""


async def with_fault(box: Stack, kind: str) -> dict[str, Any]:
    """The figures of one replica, of which every third request meets a fault."""
    replica = box.replicas[0]
    box.load_everywhere(MODEL)
    replica.fault(kind, count=1_000_000, every=3)
    done = await corral("bench", "--url", replica.url, "--model", MODEL, *FEW, "--json")
    assert done.code == (0 if kind == "busy" else 1), done.err
    page: dict[str, Any] = json.loads(done.out)
    return page


async def test_an_address_of_another_machine_needs_its_owners_word() -> None:
    done = await corral("bench", "--url", "http://192.0.2.1:11434")
    assert done.code == 1
    assert "is not this machine" in done.err
    assert "--i-own-it" in done.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--url", "http://127.0.0.1:1"), "http://127.0.0.1:1 does not answer"),
        (("--against", "http://10.0.0.1"), "http://10.0.0.1:11434 is not this machine"),
        (("--requests", "3", "--seconds", "3"), "--requests and --seconds"),
        (("--json", "--markdown"), "--json and --markdown"),
        (("--concurrency", "0"), "'0' is not a list"),
        (("--concurrency", ",".join(["1"] * 2 + [str(n) for n in range(1, 20)])), "is not a list of 1 to 16"),
        (("--seconds", "nan"), "nan is not a number"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_asked(
    args: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", *args]) != 0
    out, err = capsys.readouterr()
    assert said in err
    assert out == ""


async def test_a_model_that_is_not_there_is_told_in_the_servers_words(box: Stack) -> None:
    done = await corral("bench", "--url", box.replicas[0].url, "--model", "unheard-of", *FEW)
    assert done.code == 1
    assert "would not load unheard-of: model 'unheard-of' not found" in done.err
