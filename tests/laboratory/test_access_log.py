"""Corral's own access log is a trace: people play their own traffic again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from corral.errors import OperatorError
from corral.gateway.ended import Ended
from corral.gateway.serve.access_log import json_line
from corral.laboratory.accesslog import CLOUD, CUT, EMBEDDED, NO_TOKENS, OTHER, is_access_log, read_access_log
from corral.laboratory.traces import read_trace
from corral.model import Figures

PATH = Path("access.log")


def ended(at: float = 1000.0, **fields: Any) -> Ended:
    known: dict[str, Any] = {
        "id": "1",
        "at": at,
        "kind": "chat",
        "method": "POST",
        "path": "/api/chat",
        "outcome": "ok",
        "model": "llama3.1:8b",
        "tenant": "somebody",
        "total_s": 2.5,
        "first_byte_s": 0.5,
        "figures": Figures(300, 40, 0.0, 0.0, 0.4, 2.0),
    }
    return Ended(**(known | fields))


def log_of(*lines: Ended | str) -> str:
    return "".join(line if isinstance(line, str) else json_line(line).decode() for line in lines)


def test_what_the_gateway_writes_is_read_with_arrival_model_tenant_class_and_tokens() -> None:
    text = log_of(ended(1007.0, rank=2), ended(1000.0, tenant="other", model="qwen2.5:7b", total_s=90.0))
    assert is_access_log(text)
    late, early = read_access_log(PATH, text).arrivals
    assert late.at_s - early.at_s == pytest.approx(7.0, abs=0.01)
    assert (late.model, late.tenant, late.rank) == ("llama3.1:8b", "somebody", 2)
    assert (early.model, early.tenant, early.rank) == ("qwen2.5:7b", "other", 1)
    assert (late.prompt_tokens, late.output_tokens) == (300, 40)


def test_what_cannot_be_played_again_is_left_out_and_counted() -> None:
    whole, damaged = log_of(ended()), log_of(ended())[:60]
    text = log_of(
        ended(),
        ended(figures=None, outcome="refused_queue_full", status=503),
        ended(figures=None, model=None, kind="tags"),
        ended(kind="embed"),
        ended(model="gpt-oss:120b-cloud"),
        "11:02:11 info event key=value\n",
        whole,
        damaged,
    )
    log = read_access_log(PATH, text)
    assert len(log.arrivals) == 2
    assert log.skipped == {NO_TOKENS: 2, EMBEDDED: 1, CLOUD: 1, OTHER: 1, CUT: 1}
    assert log.total_s == (2.5, 2.5)
    assert log.first_byte_s == (0.5, 0.5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt_tokens": -1}, "line 2: Expected `int` >= 0"),
        ({"output_tokens": "many"}, "line 2: Expected `int"),
        ({"output_tokens": 10**15}, "line 2: Expected `int` <= 10000000"),
        ({"time": "yesterday"}, "line 2: time: Invalid isoformat"),
        ({"total_s": -3}, "line 2: Expected `float` >= 0"),
        ({"model": 7}, "line 2: Expected `str"),
    ],
)
def test_a_line_that_cannot_be_true_is_named(change: dict[str, Any], said: str) -> None:
    bad = json.dumps(json.loads(json_line(ended())) | change) + "\n"
    with pytest.raises(OperatorError, match=rf"^access\.log, {said}"):
        read_access_log(PATH, log_of(ended(), bad, ended()))


def test_a_damaged_line_in_the_middle_is_an_error_and_no_end_of_the_file() -> None:
    with pytest.raises(OperatorError, match="line 1: no JSON"):
        read_access_log(PATH, log_of('{"total_s": 1, "queue_s": 0, "tim\n', ended()))


def test_a_log_with_nothing_to_play_says_what_it_holds() -> None:
    with pytest.raises(OperatorError, match="no request that can be played again: 2 without token counts"):
        read_access_log(PATH, log_of(ended(figures=None), ended(figures=None)))


def test_the_laboratory_reads_it_as_any_trace_in_order(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_text(log_of(ended(1005.0), ended(1002.0, model="m:1")))
    assert [(one.number, one.at_s, one.model) for one in read_trace(path)] == [
        (0, 0.0, "m:1"),
        (1, pytest.approx(3.0, abs=0.01), "llama3.1:8b"),
    ]


def test_other_traces_are_not_taken_for_it() -> None:
    assert not is_access_log('{"timestamp": 0, "input_length": 1200, "output_length": 50, "hash_ids": [0]}\n')
    assert not is_access_log("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    assert not is_access_log("")
