"""``corral explain`` against a real admin port."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
import pytest_asyncio
from aiohttp import web
from msgspec.structs import replace

from corral.gateway.ended import Attempt, Ended
from corral.gateway.serve.admin import make_admin, make_runner
from corral.gateway.serve.lately import Journal, Ring
from corral.gateway.serve.live import LiveRoutes
from tests.gateway.cli.shell import corral
from tests.gateway.serve import history
from tests.gateway.serve.test_admin import Gateway


class Admin(NamedTuple):
    gateway: Gateway
    requests: Ring[Ended]
    url: str


@pytest_asyncio.fixture
async def admin() -> AsyncIterator[Admin]:
    gateway = Gateway()
    requests: Ring[Ended] = Ring()
    live = LiveRoutes(lambda: {}, requests, Journal(), lambda: 0.0)
    runner = make_runner(make_admin(gateway, history.metrics(), more=live.routes()))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield Admin(gateway, requests, f"http://127.0.0.1:{runner.addresses[0][1]}")
    await runner.cleanup()


async def test_each_decision_is_a_table_of_what_its_candidates_looked_like(admin: Admin) -> None:
    ended = await corral("explain", "--admin", admin.url)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == (
        "llama3.1:8b, 12.0 s ago, waited 0.00 s -> b: least load\n"
        "  REPLICA  IN FLIGHT  OF MODEL  SLOTS  WEIGHT  SLOWDOWN  FOREIGN  IN MEMORY\n"
        "  a                3         2      4     2.5      1.25     2.00        yes\n"
        "> b                1         1      4       1         ?        ?          ?\n"
        "\n"
        "llama3.1:8b, 2.5 s ago, waited 1.25 s -> a: least time\n"
        "  REPLICA   WAIT  PREFILL  SAVED  DECODE  OTHERS  SLOWDOWN    COST  IN FLIGHT  IN MEMORY\n"
        "> a        0.000    0.113  0.400   0.300   0.050      1.00   0.438          3        yes\n"
        "  b        1.500    0.450  0.000   0.750   0.000      1.20  10.250          1         no\n"
        "\n"
        "a request without a model (other), 1.0 s ago, waited 0.00 s -> b: only candidate\n"
        "  REPLICA  IN FLIGHT  OF MODEL  SLOTS  WEIGHT  SLOWDOWN  FOREIGN  IN MEMORY\n"
        "> b                1         1      4       1         ?        ?          ?\n"
    )


async def test_the_last_ones_can_be_had_alone_and_as_json(admin: Admin) -> None:
    page = json.loads((await corral("explain", "-n", "2", "--json", CORRAL_ADMIN=admin.url)).out)
    assert page["schema"] == 1
    assert [decision["reason"] for decision in page["decisions"]] == ["least time", "only candidate"]
    assert page["decisions"][0]["candidates"][0]["predicted"]["prefill_s"] == 0.1128
    assert page["decisions"][0]["candidates"][1]["gpu"] is None


async def test_a_name_that_a_client_made_up_does_not_steer_the_terminal(admin: Admin) -> None:
    choice = admin.gateway.choices[-1]
    admin.gateway.choices = (replace(choice, model="\x1b]0;mine\x07 \ud800:latest"),)
    ended = await corral("explain", "--admin", admin.url)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("?]0;mine? ?:latest, 1.0 s ago")


async def test_before_the_first_decision_it_says_so(admin: Admin) -> None:
    admin.gateway.choices = ()
    ended = await corral("explain", "--admin", admin.url)
    assert (ended.code, ended.out) == (0, "no decision yet: no request has come\n")


@pytest.mark.parametrize("count", ["0", "-1", "x"])
async def test_a_wrong_count_is_refused(admin: Admin, count: str) -> None:
    ended = await corral("explain", "-n", count, "--admin", admin.url)
    assert (ended.code, ended.out) == (2, "")


def ended(id: str, outcome: str = "ok", replica: str | None = "a") -> Ended:
    return Ended(
        id=id,
        at=0.0,
        kind="chat",
        method="POST",
        path="/api/chat",
        outcome=outcome,
        status=200 if outcome == "ok" else 503,
        model="llama3.1:8b",
        replica=replica,
        reason=replica and "least time",
        queue_s=1.25,
        first_byte_s=1.5 if replica else None,
        total_s=4.0,
        failed=(Attempt("b", "connection refused", 0.0, 0.5),),
    )


async def test_one_request_by_its_id_with_what_became_of_it(admin: Admin) -> None:
    admin.requests.add(ended("r-2"))
    said = await corral("explain", "r-2", "--admin", admin.url)
    assert (said.code, said.err) == (0, "")
    assert said.out == (
        "r-2: chat of llama3.1:8b: ok (HTTP 200) from a; waited 1.25 s, first byte after 1.50 s, over after 4.00 s\n"
        "  failed at b after 0.50 s: connection refused\n"
        "\n"
        "llama3.1:8b, 2.5 s ago, waited 1.25 s -> a: least time\n"
        "  REPLICA   WAIT  PREFILL  SAVED  DECODE  OTHERS  SLOWDOWN    COST  IN FLIGHT  IN MEMORY\n"
        "> a        0.000    0.113  0.400   0.300   0.050      1.00   0.438          3        yes\n"
        "  b        1.500    0.450  0.000   0.750   0.000      1.20  10.250          1         no\n"
    )
    page = json.loads((await corral("explain", "r-2", "--json", "--admin", admin.url)).out)
    assert page["request"]["outcome"] == "ok"
    assert [decision["request"] for decision in page["decisions"]] == ["r-2"]


async def test_one_that_is_not_over_yet_says_so(admin: Admin) -> None:
    assert (await corral("explain", "r-2", "--admin", admin.url)).out.startswith(
        "still under way\n\nllama3.1:8b, 2.5 s"
    )


async def test_one_that_was_refused_and_one_whose_decision_is_forgotten_say_so(admin: Admin) -> None:
    admin.requests.add(ended("refused", "refused_queue_full", None))
    admin.requests.add(ended("old"))
    said = await corral("explain", "refused", "--admin", admin.url)
    assert said.out.endswith("connection refused\nno replica was chosen for it\n")
    said = await corral("explain", "old", "--admin", admin.url)
    assert said.out.endswith("it went to a (least time); what spoke for the others is no longer kept\n")


async def test_an_id_that_nobody_knows_is_an_error_that_says_where_ids_are(admin: Admin) -> None:
    said = await corral("explain", "a b/?&\x1b", "--admin", admin.url)
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("error: no request 'a b/?&?' among the last 500\n  its id is the x-request-id")
