"""A request finds its decisions by the id that its client knows it by."""

from __future__ import annotations

from tests.gateway.wire.conftest import Start
from tests.gateway.wire.harness import CHAT, post
from tests.gateway.wire.test_failures import busy, fail_first


async def test_each_attempt_is_a_decision_under_the_id_that_the_answer_names(start: Start) -> None:
    gateway = await start(2)
    asked = await fail_first(gateway, busy)
    status, headers, _ = await gateway.ask(post("/api/chat", CHAT))
    assert status == 200
    choices = [choice for choice in gateway.gateway.explain() if choice.id == headers["x-request-id"]]
    assert [choice.decision.replica_id for choice in choices] == [f"r{gateway.replicas.index(one)}" for one in asked]
    assert len(choices) == 2


async def test_a_clients_own_id_is_taken(start: Start) -> None:
    gateway = await start(1)
    await gateway.ask(post("/api/chat", CHAT, "X-Request-Id: mine-7"))
    assert [choice.id for choice in gateway.gateway.explain()] == ["mine-7"]


async def test_requests_whose_clients_name_none_are_told_apart(start: Start) -> None:
    gateway = await start(1)
    for _ in range(3):
        await gateway.ask(post("/api/chat", CHAT))
    assert len({choice.id for choice in gateway.gateway.explain()}) == 3
