"""The progress of several stores as that of one."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from corral.gateway.store.lines import read_line
from corral.gateway.store.merge import Merge

MANIFEST, VERIFY, WRITE = "pulling manifest", "verifying sha256 digest", "writing manifest"


def layer(completed: int, digest: str = "sha256:aa", total: int = 100) -> dict[str, Any]:
    line: dict[str, Any] = {"status": f"pulling {digest[7:]}", "digest": digest, "total": total}
    return line | ({"completed": completed} if completed else {})


def told(merge: Merge, *steps: tuple[str, Any]) -> list[Any]:
    """What is passed on. A step is a store and a status, a layer's line, or whether it ended well there."""
    heard = []
    for store, what in steps:
        if isinstance(what, bool):
            lines = merge.ended(store, ok=what)
        else:
            raw = json.dumps({"status": what} if isinstance(what, str) else what).encode() + b"\n"
            lines = merge.hear(store, read_line(raw))
        heard += [json.loads(line.raw) for line in lines]
    return [line["status"] if list(line) == ["status"] else line for line in heard]


def test_with_one_store_every_line_passes_as_it_came() -> None:
    merge = Merge(["a"])
    for raw in (b'{"status": "x",  "odd":1}\n', b"no json\n", b'{"digest":"d","total":-1}\n', b'{"digest":"d"}\n'):
        assert [line.raw for line in merge.hear("a", read_line(raw))] == [raw]
    assert merge.ended("a", ok=True) == []


@pytest.mark.parametrize(
    ("steps", "passed"),
    [
        ([("a", MANIFEST)], []),
        ([("a", MANIFEST), ("b", MANIFEST)], [MANIFEST]),
        ([("a", MANIFEST), ("a", MANIFEST), ("b", MANIFEST), ("b", MANIFEST)], [MANIFEST]),
        ([("a", MANIFEST), ("a", VERIFY), ("b", MANIFEST), ("b", VERIFY)], [MANIFEST, VERIFY]),
        ([("a", "only here"), ("a", VERIFY), ("b", VERIFY)], [VERIFY]),
        # a store where it failed holds up nothing
        ([("a", MANIFEST), ("b", False), ("a", VERIFY)], [MANIFEST, VERIFY]),
        # nor does one where it is done
        ([("a", MANIFEST), ("a", VERIFY), ("a", True), ("b", MANIFEST), ("b", VERIFY)], [MANIFEST, VERIFY]),
        ([("a", MANIFEST), ("a", False), ("b", False)], []),
    ],
)
def test_a_status_is_passed_on_once_when_all_have_reached_it(steps: list[Any], passed: list[Any]) -> None:
    assert told(Merge(["a", "b"]), *steps) == passed


@pytest.mark.parametrize(
    ("steps", "passed"),
    [
        ([("a", layer(40))], [layer(0)]),  # the other one has not begun
        ([("a", layer(40)), ("b", layer(10))], [layer(0), layer(10)]),
        ([("a", layer(40)), ("b", layer(10)), ("a", layer(50))], [layer(0), layer(10)]),
        ([("a", layer(40)), ("b", layer(100))], [layer(0), layer(40)]),  # the other one has all of it
        ([("a", layer(100)), ("b", layer(60)), ("b", layer(100))], [layer(0), layer(60), layer(100)]),
        ([("a", layer(40)), ("b", False)], [layer(0), layer(40)]),
        ([("a", layer(100)), ("a", True), ("b", layer(5)), ("b", False)], [layer(0), layer(5), layer(100)]),
        ([("a", layer(40)), ("a", False), ("b", False)], [layer(0)]),  # nobody has it: nothing is claimed
    ],
)
def test_a_layer_is_as_far_as_where_it_is_least_far(steps: list[Any], passed: list[Any]) -> None:
    assert told(Merge(["a", "b"]), ("a", MANIFEST), ("b", MANIFEST), *steps) == [MANIFEST, *passed]


@pytest.mark.parametrize("last", [MANIFEST, False])
def test_layers_wait_until_each_store_has_said_something_or_failed(last: str | bool) -> None:
    merge = Merge(["a", "b"])
    assert told(merge, ("a", MANIFEST), ("a", layer(40)), ("a", layer(50))) == []
    assert told(merge, ("b", last)) == [MANIFEST, layer(0 if last else 50)]


def test_the_sizes_are_those_of_the_layers_known() -> None:
    merge = Merge(["a", "b"])
    assert merge.bytes_of("a") is None
    told(merge, ("a", layer(40)), ("a", layer(7, "sha256:bb", 7)), ("b", layer(3)))
    assert merge.bytes_of("a") == (47, 107)
    assert merge.bytes_of("b") == (3, 100)


@pytest.mark.parametrize("seed", range(30))
def test_what_is_told_is_never_ahead_of_any_store_that_matters_and_ends_complete(seed: int) -> None:
    rng, stores = Random(seed), ["a", "b", "c"]
    merge = Merge(stores)
    digests = ["sha256:aa", "sha256:bb"]
    script: dict[str, list[Any]] = {}
    for store in stores:
        steps = [(digest, [*sorted(rng.sample(range(1, 100), 3)), 100]) for digest in digests]
        script[store] = [MANIFEST, *(layer(step, digest) for digest, parts in steps for step in parts)]
    at = {store: dict.fromkeys(digests, 0) for store in stores}
    last: dict[str, int] = {}
    while any(script.values()):
        store = rng.choice([each for each in stores if script[each]])
        step = script[store].pop(0)
        if isinstance(step, dict):
            at[store][step["digest"]] = step["completed"]
        for line in told(merge, (store, step)):
            if isinstance(line, dict):
                completed = line.get("completed", 0)
                assert completed == min(at[each][line["digest"]] for each in stores)
                assert completed >= last.get(line["digest"], 0)
                last[line["digest"]] = completed
    assert last == dict.fromkeys(digests, 100)
