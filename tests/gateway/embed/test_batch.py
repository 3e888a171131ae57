"""Bodies with many texts, cut: together the parts hold every text once, and all else as the client wrote it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.gateway.embed.batch import Batch, cut, read_batch


def read(content: bytes) -> Batch:
    batch = read_batch(content)
    assert batch is not None
    return batch


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=300), min_size=1, max_size=60), st.integers(1, 20))
def test_the_parts_hold_every_text_once_and_in_order(texts: list[str], count: int) -> None:
    batch = read(json.dumps({"model": "m", "input": texts, "dimensions": 3}, ensure_ascii=False).encode())
    parts = cut(batch, count)
    assert 1 <= len(parts) <= count
    assert [text for part in parts for text in json.loads(part.body)["input"]] == texts
    place = 0
    for part in parts:
        told = json.loads(part.body)
        assert (told.pop("input"), told) == (texts[place : place + part.texts], {"model": "m", "dimensions": 3})
        assert part.first == place
        assert part.text_bytes == sum(len(text.encode()) for text in texts[place : place + part.texts])
        assert part.texts
        place += part.texts


def test_all_but_the_texts_stays_byte_for_byte() -> None:
    before, after = b' {"odd" : 1.0e+2,\t"input":', b',"options":{"x":1,"x":2}, "model" :"\\u006d" }\n'
    first, second = read(before + b'[ "a\\u00e9" , "\xc3\xa9\\/" ]' + after), b'"\xc3\xa9\\/"'
    assert [part.body for part in cut(first, 2)] == [
        before + b'["a\\u00e9"]' + after,
        before + b"[" + second + b"]" + after,
    ]
    assert first.sizes == (3, 3)


def test_parts_are_about_as_much_work_each() -> None:
    texts = ["x" * (10_000 if number == 5 else 400) for number in range(64)]
    parts = cut(read(json.dumps({"input": texts}).encode()), 4)
    works = [part.text_bytes + 128 * part.texts for part in parts]
    assert len(parts) == 4
    assert max(works) - min(works) <= 2 * 10_128


def test_one_text_that_is_more_than_all_others_is_a_part_of_its_own() -> None:
    parts = cut(read(json.dumps({"input": ["x" * 100_000, *["y"] * 7]}).encode()), 4)
    assert [part.texts for part in parts] == [1, 7]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[",
        b'{"model":"m"}',
        b'{"model":"m","input":"text"}',
        b'{"model":"m","input":null}',
        b'{"model":"m","input":[1,2]}',
        b'{"model":"m","input":[[1,2],[3]]}',
        b'{"model":"m","input":["a",1]}',
        b'{"model":"m","input":["a",null]}',
        b'{"model":"m","Input":["a"],"input":["a","b"]}',
        b'{"model":"m","INPUT":["a","b"]}',
        '{"model":"m","input":["a","b"],"\u212aeep_alive":0}'.encode(),
        b'{"model":"m","input":["a","b"]} x',
        b'{"model":"m","input":["a","b"],"input":["a","b"]}',
        b'{"model":"m","input":["a\xff","b"]}',
        b'{"model":"m","input":["\\ud800","b"]}',
        b"[" * 100_000,
    ],
)
def test_whatever_is_unusual_is_not_read(content: bytes) -> None:
    assert read_batch(content) is None


@pytest.mark.parametrize(
    ("keep_alive", "stays"),
    [
        (b"null", True),
        (b"300", True),
        (b"-1", True),
        (b'"5m"', True),
        (b'"-1"', True),
        (b'"24h"', True),
        (b"0", False),
        (b'"0s"', False),
        (b'"1ms"', False),
        (b'"1ns"', False),
        (b"0.5", False),
        (b'"1h30m"', False),  # it would, but only Go can tell
        (b"false", False),
    ],
)
def test_a_model_that_may_leave_after_a_part_is_not_asked_in_parts(keep_alive: bytes, stays: bool) -> None:
    found = read_batch(b'{"model":"m","input":["a","b"],"keep_alive":%b}' % keep_alive)
    assert (found is not None) is stays


def test_of_two_lists_the_last_one_counts() -> None:
    parts = cut(read(b'{"input":["old"],"input":["a","b"]}'), 2)
    assert [part.body for part in parts] == [b'{"input":["old"],"input":["a"]}', b'{"input":["old"],"input":["b"]}']


def test_a_body_that_takes_long_to_read_is_left_whole() -> None:
    assert read_batch(json.dumps({"input": ["x" * 1000] * 17_000}).encode()) is None


def test_so_many_texts_that_everybody_would_wait_for_them_are_left_whole() -> None:
    assert read_batch(b'{"input":[%b""]}' % (b'"",' * 300_000)) is None
    assert read_batch(b'{"input":[%b""]}' % (b'"",' * 200_000)) is not None
