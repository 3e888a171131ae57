"""What a request wants to change, read as leniently as Ollama reads it."""

from __future__ import annotations

import json

import pytest

from corral.gateway.store.mutation import Act, Reach, deletion_of, pull_of, read_mutation
from corral.gateway.store.turns import Sort

STORES = frozenset({"s"})


@pytest.mark.parametrize(
    ("act", "body", "model", "source"),
    [
        (Act.PULL, {"model": "M"}, "m:latest", None),
        (Act.PULL, {"name": "hf.co/a/B:Q4"}, "hf.co/a/b:q4", None),
        (Act.PULL, {"model": "", "name": "m"}, "m:latest", None),
        (Act.PULL, {"model": "m", "name": "n"}, "m:latest", None),
        (Act.DELETE, {"model": "m:7b"}, "m:7b", None),
        (Act.DELETE, {"name": "m:7b"}, "m:7b", None),
        (Act.PUSH, {"model": "me/m"}, "me/m:latest", None),
        (Act.COPY, {"source": "a", "destination": "b:1"}, "b:1", "a:latest"),
        (Act.CREATE, {"model": "a", "from": "b", "system": "x"}, "a:latest", "b:latest"),
        (Act.CREATE, {"model": "a", "files": {"x": "sha256:1"}}, "a:latest", None),
    ],
)
def test_its_models(act: Act, body: dict[str, object], model: str, source: str | None) -> None:
    mutation = read_mutation(act, json.dumps(body).encode())
    assert (mutation.reach, mutation.model, mutation.source) == (Reach.NAMED, model, source)
    assert mutation.claim(STORES).models == {each for each in (model, source) if each}


@pytest.mark.parametrize(
    "body",
    [
        b'{"MODEL":"m"}',
        b' {"model":"m"} and more',
        b'{"model":"m","x":"\xff"}',
        b'{"model":"n","model":"m"}',
        b'{"model":"m","x":1e999}',
        b'{"model":"m","stream":null}',
    ],
)
def test_odd_bodies_that_ollama_reads_are_read_and_sent_as_they_came(body: bytes) -> None:
    mutation = read_mutation(Act.PULL, body)
    assert (mutation.reach, mutation.model, mutation.body) == (Reach.NAMED, "m:latest", body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"model":7}',
        b'{"model":""}',
        b'{"model":"m","stream":"yes"}',
        b'{"model":"%b"}' % (b"m" * 600),
        b'{"model":"m\\n"}',
    ],
)
def test_what_ollama_refuses_waits_for_nobody_and_holds_up_nobody(body: bytes) -> None:
    mutation = read_mutation(Act.PULL, body)
    assert (mutation.reach, mutation.model, mutation.body) == (Reach.NONE, None, body)
    claim = mutation.claim(STORES)
    assert (claim.sort, claim.models) == (Sort.READS, frozenset())


@pytest.mark.parametrize(
    "body", [b'{"x":' + b"[" * 5000 + b"]" * 5000 + b',"model":"m"}', b'{"model":"m","x":"\xff' + b"x" * (1 << 20)]
)
def test_what_only_ollama_can_read_has_the_store_for_itself(body: bytes) -> None:
    mutation = read_mutation(Act.CREATE, body)
    assert (mutation.reach, mutation.body) == (Reach.ANY, body)
    assert mutation.claim(STORES).sort is Sort.WHOLE_STORE


def test_a_replica_is_always_asked_for_lines() -> None:
    mutation = read_mutation(Act.CREATE, b'{"model":"m","Stream":false,"num":1.50, "x" : [1,  2]}')
    assert not mutation.streams
    assert b"1.50" in mutation.body
    assert b"[1,  2]" in mutation.body
    assert json.loads(mutation.body) == {"model": "m", "num": 1.5, "x": [1, 2], "stream": True}
    assert read_mutation(Act.CREATE, b'{"model":"m", "stream":true}').body == b'{"model":"m", "stream":true}'


def test_two_pulls_of_the_same_are_told_from_two_that_differ() -> None:
    same = [
        {"model": "m"},
        {"name": "M:latest", "stream": False},
        {"model": "registry.ollama.ai/library/m", "insecure": False},
        {"model": "m", "username": ""},
    ]
    keys = {(each.model, each.rest) for each in (read_mutation(Act.PULL, json.dumps(body).encode()) for body in same)}
    assert len(keys) == 1
    assert (pull_of("m", insecure=False).model, pull_of("m", insecure=False).rest) in keys
    insecure = read_mutation(Act.PULL, b'{"insecure":true,"model":"m"}')
    assert (insecure.model, insecure.rest) not in keys
    assert insecure.rest == pull_of("m", insecure=True).rest


def test_what_a_pull_says_at_length_is_told_apart_unread() -> None:
    one, same, other = (
        read_mutation(Act.PULL, b'{"model":"m","x":[%b]%b}' % (b"[]," * 2000 + last, more))
        for last, more in ((b"1", b""), (b"1", b',"stream":false'), (b"2", b""))
    )
    assert one.rest == same.rest != other.rest
    assert len(one.rest) < 100


@pytest.mark.parametrize(
    ("act", "sort"),
    [
        (Act.PULL, Sort.DOWNLOADS),
        (Act.PUSH, Sort.READS),
        (Act.CREATE, Sort.NAMES_LAYERS),
        (Act.COPY, Sort.NAMES_LAYERS),
        (Act.DELETE, Sort.REMOVES),
    ],
)
def test_what_each_act_claims(act: Act, sort: Sort) -> None:
    body = b'{"model":"m","source":"a","destination":"b"}'
    assert read_mutation(act, body).claim(STORES).sort is sort


def test_the_gateways_own_are_what_a_client_would_send() -> None:
    assert deletion_of('m"1').body == b'{"model": "m\\"1"}'
