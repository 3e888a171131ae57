"""The merged pages, by example and by property."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corral.gateway.serve.views import (
    ReplicaPages,
    lowest_version,
    merge_ps,
    merge_tags,
    openai_model,
    openai_models,
)
from corral.model import InstalledModel, LoadedModel, normalise_model
from corral.probes.ollama import PsEntry, TagsEntry

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def tag(name: str, modified_s: float = 1.5, digest: str = "d", **more: object) -> TagsEntry:
    when = (EPOCH + timedelta(seconds=modified_s)).astimezone(timezone(timedelta(hours=2)))
    raw = json.dumps({"name": name, "digest": digest, "modified_at": when.isoformat(), **more}).encode()
    return TagsEntry(InstalledModel(normalise_model(name), digest), name, modified_s, raw)


def loaded(name: str, expires_s: float) -> PsEntry:
    raw = json.dumps({"name": name, "expires": expires_s}).encode()
    return PsEntry(LoadedModel(normalise_model(name), 1, 1, None), expires_s, raw)


def tags_of(*replicas: Sequence[TagsEntry]) -> list[ReplicaPages]:
    return [ReplicaPages(str(number), tags=tuple(entries)) for number, entries in enumerate(replicas)]


def ps_of(*replicas: Sequence[PsEntry]) -> list[ReplicaPages]:
    return [ReplicaPages(str(number), ps=tuple(entries)) for number, entries in enumerate(replicas)]


def models(page: bytes) -> list[dict[str, Any]]:
    answer = json.loads(page)
    assert list(answer) == ["models"]
    found: list[dict[str, Any]] = answer["models"]
    return found


NAMES = st.sampled_from(
    ["m", "m:latest", "M:LATEST", "library/m", "m:8b", "x/m", "registry.ollama.ai/library/m:8b", "n"]
)
ENTRIES = st.builds(
    tag, NAMES, st.integers(-3, 3).map(lambda half: half / 2), st.sampled_from(["d1", "d2"]), future_field=st.text()
)
REPLICAS = st.lists(st.lists(ENTRIES, max_size=6), max_size=4)


@given(REPLICAS)
def test_tags_are_the_union_with_each_model_once(replicas: list[list[TagsEntry]]) -> None:
    names = [normalise_model(model["name"]) for model in models(merge_tags(tags_of(*replicas)))]
    assert len(names) == len(set(names))
    assert set(names) == {entry.model.name for entries in replicas for entry in entries}


@given(REPLICAS)
def test_every_tag_is_an_entry_of_some_replica_verbatim_and_its_newest(replicas: list[list[TagsEntry]]) -> None:
    entries = [entry for page in replicas for entry in page]
    merged = merge_tags(tags_of(*replicas))
    for model in models(merged):
        same = [entry for entry in entries if entry.model.name == normalise_model(model["name"])]
        newest = max(entry.modified_s for entry in same)
        first_newest = next(entry for entry in same if entry.modified_s == newest)
        assert json.loads(first_newest.raw) == model
        assert first_newest.raw in merged


@given(REPLICAS)
def test_tags_come_newest_first(replicas: list[list[TagsEntry]]) -> None:
    when = [datetime.fromisoformat(model["modified_at"]) for model in models(merge_tags(tags_of(*replicas)))]
    seconds = [(moment - EPOCH) // timedelta(seconds=1) for moment in when]
    assert seconds == sorted(seconds, reverse=True)


@given(REPLICAS)
def test_merging_is_idempotent(replicas: list[list[TagsEntry]]) -> None:
    by_raw = {entry.raw: entry for entries in replicas for entry in entries}
    once = merge_tags(tags_of(*replicas))
    page = [by_raw[json.dumps(model).encode()] for model in models(once)]
    assert merge_tags(tags_of(page)) == once
    assert merge_tags(tags_of(page, page)) == once
    assert merge_tags(tags_of(*replicas, *replicas)) == once


@given(REPLICAS)
def test_the_openai_list_names_the_same_models_in_the_same_order(replicas: list[list[TagsEntry]]) -> None:
    pages = tags_of(*replicas)
    data = json.loads(openai_models(pages))["data"]
    assert [model["id"] for model in data or []] == [model["name"] for model in models(merge_tags(pages))]


@given(st.lists(st.lists(st.builds(loaded, NAMES, st.floats(-1e10, 1e10)), max_size=4), max_size=4))
def test_ps_lists_every_copy_the_longest_lived_first(replicas: list[list[PsEntry]]) -> None:
    expires = [model["expires"] for model in models(merge_ps(ps_of(*replicas)))]
    assert sorted(expires) == sorted(entry.expires_s for entries in replicas for entry in entries)
    assert all(later // 1 >= sooner // 1 for later, sooner in itertools.pairwise(expires))


def test_a_single_replicas_page_keeps_its_own_order_within_a_second() -> None:
    page = [tag("c", 5.1), tag("a", 5.9), tag("b", 5.5), tag("z", 4.0)]
    assert [model["name"] for model in models(merge_tags(tags_of(page)))] == ["c", "a", "b", "z"]


def test_where_digests_differ_the_newest_pull_speaks_for_the_name() -> None:
    pages = tags_of([tag("m", 10, "old")], [tag("m:latest", 20, "new")], [tag("M", 5, "older")])
    assert [model["digest"] for model in models(merge_tags(pages))] == ["new"]


def test_unread_pages_are_left_out_and_nothing_at_all_is_an_empty_list() -> None:
    assert merge_tags([]) == merge_ps([ReplicaPages("a")]) == b'{"models":[]}'
    assert merge_tags([ReplicaPages("a"), *tags_of([tag("m")])]) == merge_tags(tags_of([tag("m")]))


def test_the_same_model_on_two_replicas_is_two_loaded_copies() -> None:
    assert len(models(merge_ps(ps_of([loaded("m", 1)], [loaded("m", 2)])))) == 2


def test_an_empty_openai_list_is_null_as_ollama_has_it() -> None:
    assert openai_models([]) == b'{"object":"list","data":null}\n'


def test_an_openai_model_has_ollamas_exact_shape() -> None:
    pages = tags_of([tag("llama3.1:8b", 1787330891.9)])
    model = b'{"id":"llama3.1:8b","object":"model","created":1787330891,"owned_by":"library"}'
    assert openai_models(pages) == b'{"object":"list","data":[' + model + b"]}\n"
    assert openai_model(pages, "llama3.1:8b") == model + b"\n"


def test_an_openai_model_is_found_under_every_spelling_and_echoes_the_one_asked_for() -> None:
    pages = tags_of([tag("m:latest")])
    for asked in ("m", "M:latest", "library/m", "registry.ollama.ai/library/m:latest"):
        answer = openai_model(pages, asked)
        assert answer is not None
        assert json.loads(answer)["id"] == asked
    assert openai_model(pages, "m:8b") is None
    assert openai_model([ReplicaPages("a")], "m") is None


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("m:latest", "library"),
        ("jmorganca/m:latest", "jmorganca"),
        ("hf.co/bartowski/M-GGUF:Q4_K_M", "bartowski"),
        ("registry.ollama.ai/library/m:latest", "library"),
        ("localhost:5000/team/m", "team"),
    ],
)
def test_a_model_is_owned_by_its_namespace(name: str, owner: str) -> None:
    assert json.loads(openai_models(tags_of([tag(name)])))["data"][0]["owned_by"] == owner


ASCENDING = [
    "0.0.0",
    "0.5.7-0-ga420a45-dirty",
    "0.5.7",
    "0.9.0",
    "0.24.0",
    "0.32.15",
    "0.33.0-rc1",
    "0.33.0-rc2",
    "0.33.0-rc10",
    "0.33.0",
    "0.33.1-rc0",
    "v1.0",
    "1.0.1+build7",
]


@settings(max_examples=50)
@given(st.sets(st.sampled_from(ASCENDING), min_size=1), st.randoms(use_true_random=False))
def test_the_lowest_version_is_lowest_by_meaning_and_not_by_spelling(versions: set[str], rng: Random) -> None:
    shuffled = [*versions, "unreadable"]
    rng.shuffle(shuffled)
    assert lowest_version(shuffled) == min(versions, key=ASCENDING.index)


def test_unreadable_versions_count_only_where_no_other_is_known() -> None:
    assert lowest_version(["custom-build", "0.33.0"]) == "0.33.0"
    assert lowest_version(["nightly", "custom-build"]) == "custom-build"
    assert lowest_version([]) is None


@given(st.lists(st.text(max_size=30)))
def test_any_text_may_be_a_version(versions: list[str]) -> None:
    lowest = lowest_version(versions)
    assert (lowest in versions) if versions else lowest is None
