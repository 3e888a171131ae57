"""``keep_alive`` as Ollama reads it, and which requests have one."""

from __future__ import annotations

from math import inf

import pytest

from corral.gateway.wire.fields import route_request
from corral.gateway.wire.keepalive import keep_alive_s
from corral.gateway.wire.routes import find_route
from corral.model import RequestKind, RouteRequest


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("0", 0.0),
        ("-0", 0.0),
        ("0.0", 0.0),
        ("0e5", 0.0),
        ("1e-12", 0.0),
        ('"0"', 0.0),
        ('"+0"', 0.0),
        ('"-0s"', 0.0),
        ('"0h0m"', 0.0),
        ("5", 5.0),
        ("0.5", 0.5),
        ('"10m"', 600.0),
        ('"1h30m"', 5400.0),
        ('"1.5h"', 5400.0),
        ('".5s"', 0.5),
        ('"2.s"', 2.0),
        ('"3\u00b5s"', 3e-6),
        ('"250ms"', 0.25),
        ("-1", inf),
        ('"-1m"', inf),
        ("1e300", inf),
    ],
)
def test_seconds_and_durations_are_read_as_go_reads_them(given: str, seconds: float) -> None:
    assert keep_alive_s(given.encode()) == pytest.approx(seconds)


STRANGE = ('"300000000h"', '"-300000000h"', "00", "5" * 33, "[" * 32)


@pytest.mark.parametrize(
    "given",
    [
        *STRANGE,
        "",
        "null",
        '""',
        '"5"',
        '"-1"',
        '"1 h"',
        '"."',
        '".s"',
        '"s"',
        '"1x"',
        '"--1s"',
        "true",
        "{}",
        "[5]",
        "1e999",
    ],
)
def test_what_ollama_refuses_says_nothing(given: str) -> None:
    assert keep_alive_s(given.encode()) is None


def asked(path: str, more: str) -> RouteRequest:
    route = find_route(b"POST", path)
    return route_request(route, f'{{"model":"m",{more}}}'.encode(), b"application/json", "")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/api/chat", '"messages":[{"role":"user","content":"hi"}]'),
        ("/api/generate", '"prompt":"hi"'),
        ("/api/generate", '"prompt":""'),
        ("/api/embed", '"input":["a","b"]'),
        ("/api/embeddings", '"prompt":"a"'),
    ],
)
def test_ollamas_own_routes_say_how_long_a_model_is_kept(path: str, text: str) -> None:
    assert asked(path, text + ',"keep_alive":"1h"').keep_alive_s == 3600.0
    assert asked(path, text + ',"keep_alive":-1').keep_alive_s == inf
    assert asked(path, text).keep_alive_s is None


@pytest.mark.parametrize("text", ['"prompt":"hi"', '"messages":[{"role":"user","content":"hi"}]', '"input":"hi"'])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages"])
def test_other_dialects_have_no_such_field(path: str, text: str) -> None:
    assert asked(path, text + ',"keep_alive":0').keep_alive_s is None


def test_with_a_text_the_model_runs_first_and_leaves_then() -> None:
    request = asked("/api/generate", '"prompt":"hi","keep_alive":0')
    assert (request.kind, request.keep_alive_s) == (RequestKind.INFERENCE, 0.0)


def test_in_a_body_that_only_the_lenient_reader_understands_it_is_not_looked_for() -> None:
    request = asked("/api/generate", '"MODEL":"n","prompt":{"a":1},"keep_alive":0')
    assert request.keep_alive_s is None
