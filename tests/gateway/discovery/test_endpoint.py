"""What becomes of readings: who is a replica, who is leaving, who is forgotten."""

from __future__ import annotations

import re

import pytest

from corral.gateway.config.discovery import DiscoveryConfig
from corral.gateway.config.patterns import ID_PATTERN
from corral.gateway.discovery.endpoint import EMPTY_MISSES, Endpoint, Known, replicas_of

A, B = Endpoint("10.0.0.1", 11434), Endpoint("10.0.0.2", 11434)


def ids(known: Known) -> list[str]:
    return [endpoint.id for endpoint in known.endpoints]


def test_a_new_address_is_a_replica_at_once() -> None:
    known = Known(60)
    known.read([A], 0, is_final=False)
    known.read([A, B], 1, is_final=False)
    assert ids(known) == ["10.0.0.1", "10.0.0.2"]
    assert not known.leaving


def test_one_reading_without_an_address_removes_nothing() -> None:
    known = Known(60)
    known.read([A, B], 0, is_final=False)
    known.read([A], 1, is_final=False)
    assert not known.leaving
    known.read([A, B], 2, is_final=False)
    known.read([A], 3, is_final=False)
    assert not known.leaving
    known.read([A], 4, is_final=False)
    assert known.leaving == {"10.0.0.2": False}


def test_an_empty_answer_counts_only_after_several() -> None:
    known = Known(60)
    known.read([A], 0, is_final=False)
    for number in range(1, EMPTY_MISSES):
        known.read([], number, is_final=False)
        assert not known.leaving
    known.read([], EMPTY_MISSES, is_final=False)
    assert known.leaving == {"10.0.0.1": False}


def test_what_knows_for_sure_is_believed_at_once() -> None:
    known = Known(60)
    known.read([A, B], 0, is_final=True)
    known.read([], 1, is_final=True)
    assert known.leaving == {"10.0.0.1": False, "10.0.0.2": False}


def test_one_that_left_is_forgotten_after_its_time() -> None:
    known = Known(60)
    known.read([A], 0, is_final=True)
    known.read([], 10, is_final=True)
    known.forget_old(69.9)
    assert ids(known) == ["10.0.0.1"]
    known.forget_old(70)
    assert ids(known) == []


def test_one_that_comes_back_in_time_serves_again() -> None:
    known = Known(60)
    known.read([A], 0, is_final=True)
    known.read([], 10, is_final=True)
    known.read([A], 20, is_final=True)
    known.forget_old(1000)
    assert ids(known) == ["10.0.0.1"]
    assert not known.leaving


def test_one_that_is_listed_as_leaving_is_kept_as_long_as_it_is_listed() -> None:
    known = Known(60)
    leaving = Endpoint("10.0.0.1", 11434, is_leaving=True)
    known.read([A], 0, is_final=True)
    known.read([leaving], 1, is_final=True)
    assert known.leaving == {"10.0.0.1": True}
    known.forget_old(1000)
    assert ids(known) == ["10.0.0.1"]
    known.read([], 1001, is_final=True)
    known.forget_old(1001)
    assert ids(known) == []


@pytest.mark.parametrize(
    ("endpoint", "id"),
    [
        (A, "10.0.0.1"),
        (Endpoint("fd00::a:1", 11434), "fd00--a-1"),
        (Endpoint("10.0.0.1", 31000, names_port=True), "10.0.0.1-31000"),
    ],
)
def test_an_id_says_the_address_and_fits_where_ids_go(endpoint: Endpoint, id: str) -> None:
    assert endpoint.id == id
    assert re.match(ID_PATTERN, id)


def test_found_replicas_have_the_settings_and_a_store_of_their_own() -> None:
    config = DiscoveryConfig(weight=2.0, slots=4, models=("Llama3",), admin_port=11435)
    (replica,) = replicas_of({"dns nodes": [A]}, config)
    assert (replica.host, replica.port, replica.weight, replica.slots) == ("10.0.0.1", 11434, 2.0, 4)
    assert replica.models == frozenset({"llama3:latest"})
    assert replica.store == "10.0.0.1"
    assert replica.admin == ("10.0.0.1", 11435)
    assert replica.found_by == "dns nodes"


def test_what_two_sources_find_is_one_replica() -> None:
    found = replicas_of({"dns nodes": [A], "kubernetes x/nodes": [A, B]}, DiscoveryConfig(store="shared"))
    assert [(replica.id, replica.found_by) for replica in found] == [
        ("10.0.0.1", "dns nodes"),
        ("10.0.0.2", "kubernetes x/nodes"),
    ]
    assert {replica.store for replica in found} == {"shared"}
