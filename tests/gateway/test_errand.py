"""Errands: requests of the gateway's own under leases of the scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from corral.errors import Fault, Refusal
from corral.gateway.errand import Errand, Failed, Refused
from corral.gateway.schedule.ticket import Lease
from corral.model import ProbeResult, RequestKind, RouteRequest
from tests.gateway.wire.conftest import Start, start
from tests.gateway.wire.harness import RunningGateway, until

__all__ = ["start"]


@pytest_asyncio.fixture
async def running(start: Start) -> AsyncIterator[RunningGateway]:
    """Two replicas, r0 and r1."""
    yield await start(2)


def errand(running: RunningGateway, kind: RequestKind = RequestKind.STORE, model: str | None = None) -> Errand:
    gateway = running.gateway
    return Errand(gateway.carrier, RouteRequest(kind, model), gateway.clock())


async def test_the_work_is_done_under_a_lease_that_goes_back(running: RunningGateway) -> None:
    async def work(lease: Lease) -> str:
        assert running.scheduler.inflight_on(lease.replica.id) == 1
        return lease.replica.id

    assert await errand(running).run(work) == "r0"
    running.assert_nothing_held()


async def test_work_that_failed_is_done_elsewhere(running: RunningGateway) -> None:
    tried = []

    async def work(lease: Lease) -> None:
        tried.append(lease.replica.id)
        if len(tried) == 1:
            raise Failed(Fault.CONNECT)

    await errand(running).run(work)
    assert tried == ["r0", "r1"]
    running.assert_nothing_held()


async def test_where_nobody_could_do_it_that_is_said(running: RunningGateway) -> None:
    async def work(lease: Lease) -> None:
        raise Failed(Fault.CONNECT)

    with pytest.raises(Refused) as refused:
        await errand(running).run(work)
    assert refused.value.refusal is Refusal.EXHAUSTED
    running.assert_nothing_held()


async def test_what_may_have_been_done_is_not_done_again(running: RunningGateway) -> None:
    tried = []

    async def work(lease: Lease) -> None:
        tried.append(lease.replica.id)
        raise Failed(Fault.RESET)

    with pytest.raises(Refused):
        await errand(running).run(work)
    assert tried == ["r0"]


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_however_the_work_ends_the_lease_goes_back(running: RunningGateway, error: type[BaseException]) -> None:
    async def work(lease: Lease) -> None:
        raise error

    with pytest.raises(error):
        await errand(running).run(work)
    running.assert_nothing_held()


async def test_who_is_cancelled_ends_the_work_and_gives_the_lease_back(running: RunningGateway) -> None:
    entered, ended = asyncio.Event(), asyncio.Event()

    async def work(lease: Lease) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.create_task(errand(running).run(work))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(ended.wait(), 5)
    running.assert_nothing_held()


async def test_who_is_cancelled_while_it_waits_waits_no_more(running: RunningGateway) -> None:
    running.gateway.carrier.apply(running.scheduler.freeze(frozenset({"m:latest"}), running.gateway.clock()))
    waiting = errand(running, RequestKind.SHOW, "m:latest")

    async def work(lease: Lease) -> None:
        raise AssertionError

    task = asyncio.create_task(waiting.run(work))
    await until(lambda: running.scheduler.queued == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    running.assert_nothing_held()


async def test_work_at_a_replica_that_goes_down_is_interrupted_and_done_elsewhere(running: RunningGateway) -> None:
    tried = []

    async def work(lease: Lease) -> None:
        tried.append(lease.replica.id)
        if len(tried) > 1:
            return
        for _ in range(3):
            running.gateway.probed(lease.replica.id, ProbeResult.REFUSED)
        await asyncio.Event().wait()

    await asyncio.wait_for(errand(running, RequestKind.OTHER).run(work), 5)
    assert sorted(tried) == ["r0", "r1"]
    running.assert_nothing_held()


async def test_a_replica_that_goes_down_before_the_work_begins_gets_none(running: RunningGateway) -> None:
    tried = []

    async def work(lease: Lease) -> None:
        tried.append(lease.replica.id)

    asked = errand(running, RequestKind.OTHER)
    task = asyncio.create_task(asked.run(work))
    while asked.lease is None:
        await asyncio.sleep(0)
    first = asked.lease.replica.id
    asked.interrupt(Fault.HUNG)
    await asyncio.wait_for(task, 5)
    assert tried != [first]
    assert len(tried) == 1
    running.assert_nothing_held()
