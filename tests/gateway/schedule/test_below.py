"""A replica that is a Corral: what its report means for who is sent where, and what it is told itself."""

from __future__ import annotations

from random import Random

import msgspec
import pytest

from corral.errors import Fault
from corral.gateway.schedule.below import DRAINING, LOOP, Leaf
from corral.gateway.schedule.effects import Effect, Load, Refuse, Send
from corral.gateway.schedule.scheduler import QueueLimits, Scheduler
from corral.gateway.schedule.ticket import Ticket
from corral.model import (
    Figures,
    InstalledModel,
    LeafLoad,
    LoadedModel,
    OllamaSample,
    ProbeResult,
    Replica,
    RequestKind,
    RouteRequest,
    TreeLoad,
)
from corral.policies import make_policy

MODEL = "m:latest"
TOP = "00000000"
HELD = (LoadedModel(MODEL, 1 << 30, 1 << 30, 4096),)


def scheduler(*replicas: Replica) -> Scheduler[Ticket]:
    made: Scheduler[Ticket] = Scheduler(make_policy("weighted-least-load"), "p", QueueLimits(), Random(1))
    made.set_replicas(list(replicas), 0.0)
    for replica in replicas:
        made.probed(replica.id, ProbeResult.ANSWERED, 0.0)
        made.sampled(OllamaSample(replica.id, 0.0, None, (InstalledModel(MODEL, "d"),), HELD), 0.0)
    return made


def corral(id: str, number: int) -> Replica:
    return Replica(id, "10.0.0.1", number, admin=("10.0.0.1", number + 1))


def leaf(id: str, slots: int = 2, *, loaded: bool = True, **more: object) -> LeafLoad:
    return msgspec.structs.replace(LeafLoad(id=id, slots=slots, loaded=HELD if loaded else ()), **more)


def tree(*leaves: LeafLoad, gateway: str = "11111111", **more: object) -> TreeLoad:
    return msgspec.structs.replace(TreeLoad(gateway=gateway, replicas=leaves), **more)


def request(**more: object) -> RouteRequest:
    return msgspec.structs.replace(RouteRequest(RequestKind.INFERENCE, MODEL, text_bytes=100), **more)


def ask(top: Scheduler[Ticket], now_s: float, count: int = 1, **more: object) -> list[Ticket]:
    tickets = [Ticket(request(**more), now_s) for _ in range(count)]
    for ticket in tickets:
        top.submit(ticket, now_s)
    return tickets


def places(tickets: list[Ticket]) -> list[str]:
    """Where each counts: ``queue`` while it waits."""
    return [ticket.lease.leaf.id if ticket.lease and ticket.lease.leaf else "queue" for ticket in tickets]


def known(*trees: tuple[str, TreeLoad]) -> Scheduler[Ticket]:
    top = scheduler(*(corral(id, 1000 + 10 * number) for number, (id, _) in enumerate(trees)))
    for id, each in trees:
        top.tree_read(id, each, TOP, 1.0, 1.0)
    return top


def test_requests_fill_the_slots_below_and_then_wait_above() -> None:
    top = known(("n0", tree(leaf("a"), leaf("b"))), ("n1", tree(leaf("c", 1))))
    found = places(ask(top, 2.0, 7))
    assert sorted(found[:5]) == ["n0/a", "n0/a", "n0/b", "n0/b", "n1/c"]
    assert found[5:] == ["queue", "queue"]


def test_what_ends_below_makes_room_for_what_waits_above() -> None:
    top = known(("n0", tree(leaf("a", 1))))
    first, second = ask(top, 2.0, 2)
    assert places([first, second]) == ["n0/a", "queue"]
    top.first_byte(first, 3.0, "a")
    top.finish(first, 4.0, ok=True, figures=Figures(10, 10))
    assert places([second]) == ["n0/a"]
    assert top.inflight == 1


def test_an_answer_from_elsewhere_counts_there() -> None:
    top = known(("n0", tree(leaf("a", 1), leaf("b", 1))))
    (first,) = ask(top, 2.0)
    other = "b" if places([first]) == ["n0/a"] else "a"
    top.first_byte(first, 2.1, other)
    assert places([first]) == [f"n0/{other}"]
    (second,) = ask(top, 2.2)
    assert places([second]) != places([first])
    top.finish(first, 3.0, ok=True, figures=Figures(10, 10))
    top.spared(second, 3.0)
    assert len(set(places(ask(top, 4.0, 2)))) == 2


def test_slots_that_others_take_below_are_taken() -> None:
    top = known(("n0", tree(leaf("a", in_flight={MODEL: 2}), leaf("b", in_flight={MODEL: 1}))))
    assert places(ask(top, 2.0, 2)) == ["n0/b", "queue"]
    top.tree_read("n0", tree(leaf("a"), leaf("b")), TOP, 3.0, 3.0)
    assert top.queued == 0


def test_a_leaf_that_may_not_be_sent_to_counts_for_nothing() -> None:
    top = known(("n0", tree(leaf("a", is_usable=False), leaf("b", 1))))
    assert places(ask(top, 2.0, 2)) == ["n0/b", "queue"]


def test_a_leaf_that_was_slow_gets_nothing_while_a_quick_one_is_idle() -> None:
    top = known(("n0", tree(leaf("a", 4))), ("n1", tree(leaf("b", 4))))
    for number in range(30):
        now_s = 10.0 + 20.0 * number
        for ticket in ask(top, now_s, 2):
            lease = ticket.lease
            assert lease is not None
            assert lease.leaf is not None
            slow = lease.leaf.id == "n0/a"
            top.first_byte(ticket, now_s + 0.1)
            top.finish(
                ticket,
                now_s + (9.0 if slow else 1.0),
                ok=True,
                figures=Figures(100, 100, decode_s=8.0 if slow else 0.9),
            )
    for number in range(4):
        (ticket,) = ask(top, 1000.0 + number)
        assert places([ticket]) == ["n1/b"]
        top.spared(ticket, 1000.5 + number)


def test_a_queue_below_is_waited_for_in_the_prediction() -> None:
    top = known(("n0", tree(leaf("a", 4))), ("n1", tree(leaf("b", 4))))
    for ticket in ask(top, 2.0, 2):
        top.first_byte(ticket, 2.5)
        top.finish(ticket, 3.0, ok=True, figures=Figures(100, 10, prefill_s=0.4, decode_s=0.5))
    top.tree_read("n0", tree(leaf("a", 4), queue_s={MODEL: 30.0}), TOP, 4.0, 4.0)
    assert places(ask(top, 5.0, 3)) == ["n1/b"] * 3


def test_a_corral_that_stops_or_leads_back_here_is_sent_nothing() -> None:
    for bad, why in ((tree(leaf("a"), is_draining=True), DRAINING), (tree(leaf("a"), gateways=(TOP,)), LOOP)):
        top = known(("n0", bad), ("n1", tree(leaf("b"))))
        assert set(places(ask(top, 2.0, 3))) <= {"n1/b", "queue"}
        held = {state.id: state.held for state in top.snapshot(2.0).replicas}
        assert held == {"n0": why, "n1": None}
        top.tree_read("n0", tree(leaf("a")), TOP, 3.0, 3.0)
        assert top.queued == 0


def test_a_model_that_is_nowhere_below_is_asked_for_on_one_leaf_and_nothing_is_told_to_leave() -> None:
    full = LoadedModel("other:latest", 1 << 30, 1 << 30, 4096)
    top = scheduler(corral("n0", 1000))
    empty = OllamaSample("n0", 1.0, None, (InstalledModel(MODEL, "d"),), ())
    top.sampled(empty, 1.0)
    top.tree_read("n0", tree(leaf("a", loaded=False, max_loaded=1)), TOP, 1.0, 1.0)
    top.tree_read("n0", tree(msgspec.structs.replace(leaf("a", max_loaded=1), loaded=(full,))), TOP, 2.0, 2.0)
    ticket = Ticket(request(), 3.0)
    effects: list[Effect[Ticket]] = top.submit(ticket, 3.0)
    (load,) = [effect for effect in effects if not isinstance(effect, Send | Refuse)]
    assert isinstance(load, Load)
    assert (load.replica.id, load.replica.port, load.model) == ("n0/a", 1000, MODEL)
    effects = top.load_ended("n0/a", load.number, 5.0, ok=True)
    assert [type(effect) for effect in effects] == [Send]
    assert places([ticket]) == ["n0/a"]


def test_a_report_leaves_out_what_who_asks_has_sent() -> None:
    node = scheduler(Replica("gpu0", "10.0.0.2", 1, slots=4), Replica("gpu1", "10.0.0.2", 2, slots=4))
    ask(node, 1.0, 3, via=TOP)
    ask(node, 1.0, 2)
    for_top = node.tree_load("22222222", TOP, 2.0, draining=False)
    for_other = node.tree_load("22222222", "99999999", 2.0, draining=False)
    assert sum(each.in_flight.get(MODEL, 0) for each in for_top.replicas) == 2
    assert sum(each.in_flight.get(MODEL, 0) for each in for_other.replicas) == 5
    assert [each.id for each in for_top.replicas] == ["gpu0", "gpu1"]
    assert [model.name for model in for_top.replicas[0].loaded] == [MODEL]


def test_a_report_of_a_corral_above_corrals_tells_of_every_leaf_by_its_path() -> None:
    middle = known(("n0", tree(leaf("a", in_flight={MODEL: 1}), gateway="33333333")))
    ask(middle, 2.0, via=TOP)
    report = middle.tree_load("44444444", TOP, 3.0, draining=False)
    assert [(each.id, each.in_flight) for each in report.replicas] == [("n0/a", {MODEL: 1})]
    assert report.gateways == ("33333333",)
    assert msgspec.json.decode(msgspec.json.encode(report), type=TreeLoad) == report


def test_a_replica_that_is_asked_for_gets_the_request_while_it_has_room() -> None:
    node = scheduler(Replica("gpu0", "10.0.0.2", 1, slots=2), Replica("gpu1", "10.0.0.2", 2, slots=2))
    tickets = ask(node, 1.0, 4, via=TOP, prefer="gpu1")
    assert [ticket.lease.replica.id for ticket in tickets if ticket.lease] == ["gpu1", "gpu1", "gpu0", "gpu0"]
    assert tickets[0].decision is not None
    assert tickets[0].decision.reason == "as asked"


def test_a_load_that_is_asked_for_happens_on_that_replica_though_another_holds_the_model() -> None:
    node = scheduler(Replica("gpu0", "10.0.0.2", 1, slots=2), Replica("gpu1", "10.0.0.2", 2, slots=2))
    node.sampled(OllamaSample("gpu1", 1.0, None, None, ()), 1.0)
    ticket = Ticket(request(via=TOP, prefer="gpu1", text_bytes=0), 2.0)
    (load,) = node.submit(ticket, 2.0)
    assert isinstance(load, Load)
    assert load.replica.id == "gpu1"
    others = ask(node, 2.5, 1)
    assert [each.lease.replica.id for each in others if each.lease] == ["gpu0"]
    node.load_ended("gpu1", load.number, 4.0, ok=True)
    assert ticket.lease is not None
    assert ticket.lease.replica.id == "gpu1"


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_every_leaf_is_empty_in_the_end(seed: int) -> None:
    """Reports come and go, leaves too; answers come from elsewhere, fail, break, or their clients leave."""
    rng = Random(seed)
    top = known(("n0", tree(leaf("a"), leaf("b"))), ("n1", tree(leaf("c", 1), gateway="22222222")))
    seen: set[Leaf[Ticket]] = set()
    live: list[Ticket] = []
    now_s = 2.0

    def happen() -> None:
        effects: list[Effect[Ticket]] = []
        what = rng.randrange(8)
        if what < 3:
            live.append(Ticket(request(prefix=(rng.randrange(3),)), now_s))
            effects += top.submit(live[-1], now_s)
        elif what == 3:
            number, leaves = rng.randrange(2), [leaf(id, rng.randrange(1, 3)) for id in "abc" if rng.random() < 0.7]
            own = tree(*leaves, is_draining=rng.random() < 0.2, gateway=f"{number + 1}" * 8)
            effects += top.tree_read(f"n{number}", own, TOP, now_s, now_s)
        elif live:
            effects += _end_one(top, live, rng, now_s)
        for effect in effects:
            if isinstance(effect, Refuse) and effect.ticket in live:
                live.remove(effect.ticket)
        for member in top._roster.members.values():
            assert member.below is not None
            seen.update(member.below.leaves.values())
            sent_below = sum(lease.leaf is not None for lease in member.leases.values())
            assert sum(len(each.leases) for each in seen if each.above is member) == sent_below

    for _ in range(120):
        now_s += rng.random()
        happen()
    _end_all(top, live, now_s)
    assert {(len(each.leases), each.taken, tuple(each.inflight), each.decoding) for each in seen} == {(0, 0, (), 0)}


def _end_all(top: Scheduler[Ticket], live: list[Ticket], now_s: float) -> None:
    for ticket in live:
        if ticket.lease is None:
            top.cancel(ticket)
        else:
            top.spared(ticket, now_s)
    while top.inflight:  # those that went when others made room
        for ticket in [each for each in live if each.lease is not None]:
            top.spared(ticket, now_s)


def _end_one(top: Scheduler[Ticket], live: list[Ticket], rng: Random, now_s: float) -> list[Effect[Ticket]]:
    """The next thing that happens to one of them, wherever it is."""
    ticket = rng.choice(live)
    lease = ticket.lease
    if lease is None:
        live.remove(ticket)
        top.cancel(ticket)
        return []
    if not lease.committed and rng.random() < 0.6:
        top.first_byte(ticket, now_s, rng.choice(["", "a", "b", "c", "nobody"]))
        return []
    if not lease.committed and rng.random() < 0.5:
        return top.failed(ticket, Fault.RESET, now_s)
    live.remove(ticket)
    if rng.random() < 0.3:
        return top.spared(ticket, now_s)
    return top.finish(ticket, now_s, ok=rng.random() < 0.8, figures=Figures(50, 20))


def test_a_leaf_where_others_prompts_wait_is_left_for_one_where_none_do() -> None:
    top = known(("n0", tree(leaf("a", 4), leaf("b", 4))))
    for ticket in ask(top, 2.0, 2):
        top.first_byte(ticket, 2.5)
        top.finish(ticket, 3.0, ok=True, figures=Figures(100, 10, prefill_s=0.4, decode_s=0.5))
    top.tree_read("n0", tree(leaf("a", 4, wait_s=20.0), leaf("b", 4)), TOP, 4.0, 4.0)
    (ticket,) = ask(top, 5.0)
    assert places([ticket]) == ["n0/b"]
