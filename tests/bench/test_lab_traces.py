"""Public traces are known by their columns, and their traps are not walked into."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from corral.errors import OperatorError
from corral.laboratory.traces import MOONCAKE_TICK_S, find_traces, read_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:47.1805901,396,0
2023-11-16 18:15:46.9305900,879,55
"""
SERVEGEN = """arrived_at_s,client_id,input_tokens,output_tokens,reason_ratio
4.878,r1-11,279,417,0.94
5.093,r1-13,208,1459,0.806
"""
MOONCAKE = """{"timestamp": 0, "input_length": 1200, "output_length": 50, "hash_ids": [0, 1, 2]}
{"timestamp": 0, "input_length": 700, "output_length": 40, "hash_ids": [0, 3]}
{"timestamp": 3000, "input_length": 1300, "output_length": 60, "hash_ids": [0, 1, 4]}
"""


def written(folder: Path, text: str, name: str = "trace.gz") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz"])
def test_azure_rows_come_in_order_from_zero_with_an_answer_of_a_token_at_least(tmp_path: Path, name: str) -> None:
    arrivals = read_trace(written(tmp_path, AZURE, name))
    assert [(a.number, a.prompt_tokens, a.output_tokens) for a in arrivals] == [(0, 374, 44), (1, 879, 55), (2, 396, 1)]
    assert [a.at_s for a in arrivals] == pytest.approx([0, 0.25, 0.5], abs=1e-6)


def test_servegen_clients_are_tenants(tmp_path: Path) -> None:
    arrivals = read_trace(written(tmp_path, SERVEGEN))
    assert [(a.tenant, a.prompt_tokens, a.output_tokens) for a in arrivals] == [
        ("r1-11", 279, 417),
        ("r1-13", 208, 1459),
    ]


def test_mooncake_ticks_are_spread_over_their_three_seconds_by_the_seed(tmp_path: Path) -> None:
    path = written(tmp_path, MOONCAKE)
    first, again, other = read_trace(path, 1), read_trace(path, 1), read_trace(path, 2)
    assert first == again
    assert first != other
    assert len({a.at_s for a in first}) == 3
    assert all(0 <= a.at_s <= 2 * MOONCAKE_TICK_S for a in first)
    assert first[2].blocks == (0, 1, 4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "its columns are a, b"),
        ("", "its columns are none"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no request"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", "line 2"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.1,1\n", "line 2"),
        ('{"timestamp": 0}\n', "line 1"),
        ("{not json\n", "line 1"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_with_its_line_or_columns(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(OperatorError, match=said):
        read_trace(written(tmp_path, text))


def test_a_missing_or_broken_file_is_the_operators_error(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="cannot read"):
        read_trace(tmp_path / "nowhere.csv")
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(AZURE.encode())[:-12])
    with pytest.raises(OperatorError, match="cannot read"):
        read_trace(cut)
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OperatorError, match="no text"):
        read_trace(tmp_path / "bytes.csv")


def test_traces_of_a_folder_are_found_by_their_names(tmp_path: Path) -> None:
    written(tmp_path, AZURE, "azure_conv.csv.gz")
    assert find_traces(tmp_path, {"conv": "azure*conv*", "code": "azure*code*"}) == {
        "conv": tmp_path / "azure_conv.csv.gz"
    }
