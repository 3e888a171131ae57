"""The merged pages, by example and by property."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corral.gateway.serve.views import CopyNotes, ReplicaPages, Union, lowest_version, merge_ps
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


def merge_tags(pages: Iterable[ReplicaPages]) -> bytes:
    return Union().of(pages).tags()


def openai_models(pages: Iterable[ReplicaPages]) -> bytes:
    return Union().of(pages).openai_models()


def openai_model(pages: Iterable[ReplicaPages], name: str) -> bytes | None:
    return Union().of(pages).openai_model(name)


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


def test_what_was_made_of_lists_is_made_anew_when_one_of_them_changes_comes_or_goes() -> None:
    pages = tags_of([tag("m")], [tag("n")])
    union = Union()
    first = union.of(pages).tags()
    assert union.of(pages).tags() is first
    assert models(union.of(pages[:1]).tags()) == models(merge_tags(pages[:1]))
    assert union.of(pages[:1]).openai_models() == openai_models(pages[:1])
    other = [pages[0], ReplicaPages("1", tags=(tag("o"),))]
    assert union.of(other).tags() == merge_tags(other)
    assert union.find("n") is None
    assert union.find("O:latest") is not None


# -- what the gateway adds for an operator


def test_notes_follow_an_entry_that_is_otherwise_as_it_was() -> None:
    pages = ps_of([loaded("m", 2)], [loaded("n", 1)])

    def notes(page: ReplicaPages, entry: PsEntry) -> CopyNotes:
        return CopyNotes(page.replica_id, None, 3, True, 0.5, 0.25)

    noted = models(merge_ps(pages, notes=notes))
    plain = models(merge_ps(pages))
    added = [{name: model.pop(name) for name in list(model) if name.startswith("x-corral-")} for model in noted]
    assert noted == plain
    assert added == [
        {
            "x-corral-replica": replica_id,
            "x-corral-slots": None,
            "x-corral-in-flight": 3,
            "x-corral-pinned": True,
            "x-corral-idle-s": 0.5,
            "x-corral-age-s": 0.25,
        }
        for replica_id in ("0", "1")
    ]


def test_a_copy_that_has_left_is_not_listed() -> None:
    pages = ps_of([loaded("m", 1)], [loaded("m", 2)])
    assert [model["expires"] for model in models(merge_ps(pages, lambda page, entry: page.replica_id == "0"))] == [2]


@given(REPLICAS)
def test_models_are_noted_with_where_they_are_and_otherwise_as_they_were(replicas: list[list[TagsEntry]]) -> None:
    pages = tags_of(*replicas)
    stores = {page.replica_id: f"s{int(page.replica_id) % 2}" for page in pages}
    noted = models(Union().of(pages).tags_noted(pages, stores))
    for model, plain in zip(noted, models(merge_tags(pages)), strict=True):
        added = {name: model.pop(name) for name in list(model) if name.startswith("x-corral-")}
        assert model == plain
        assert list(added) == ["x-corral-replicas", "x-corral-outdated", "x-corral-stores", "x-corral-loaded"]
        holders, others = added["x-corral-replicas"], added["x-corral-outdated"]
        assert len({*holders, *others}) == len(holders) + len(others)
        name = normalise_model(plain["name"])
        assert {*holders, *others} == {
            page.replica_id for page in pages if name in [entry.model.name for entry in page.tags or ()]
        }
        assert added["x-corral-stores"] == list(dict.fromkeys(stores[holder] for holder in holders))


def test_a_model_is_noted_with_who_has_another_version_and_who_has_it_in_memory() -> None:
    pages = [
        ReplicaPages("a", tags=(tag("m", 1, "old"),), ps=(loaded("m", 1),)),
        ReplicaPages("b", tags=(tag("M:latest", 2, "new"), tag("n")), ps=(loaded("gone", 1), loaded("m", 1))),
        ReplicaPages("c"),
    ]
    found = models(Union().of(pages).tags_noted(pages, {"a": "one", "b": "two"}))
    assert [{name: model[name] for name in model if name.startswith("x-corral-")} for model in found] == [
        {
            "x-corral-replicas": ["b"],
            "x-corral-outdated": ["a"],
            "x-corral-stores": ["two"],
            "x-corral-loaded": ["a", "b"],
        },
        {"x-corral-replicas": ["b"], "x-corral-outdated": [], "x-corral-stores": ["two"], "x-corral-loaded": []},
    ]


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
