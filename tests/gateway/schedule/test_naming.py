"""Names of the same weights in a scheduler: they share lanes, slots and memory, and changes of that lose nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from corral.gateway.schedule.aliases import Weights
from corral.gateway.schedule.effects import Effect, Load, Unload
from corral.gateway.schedule.scheduler import QueueLimits, Scheduler
from corral.gateway.schedule.ticket import Ticket
from corral.model import (
    Decision,
    Figures,
    InstalledModel,
    LoadedModel,
    OllamaSample,
    Replica,
    ReplicaView,
    RequestKind,
    RouteRequest,
)
from corral.policies import make_policy
from tests.gateway.schedule.history import Stage, words
from tests.gateway.schedule.pool import GIB, Pool, replicas
from tests.gateway.schedule.test_machine import IDS, MODELS, RULES, SIGNATURES, Life


class Placing:
    """The first candidate, under a policy that places models."""

    places = True

    def choose(self, request: RouteRequest, candidates: Sequence[ReplicaView], rng: Random) -> Decision:
        return Decision(candidates[0].id, "first")


def stage(replicas: str = "a:1", *, lists: str = "m=x n=x o", memory: str = "") -> Stage:
    """They list these, and ``memory`` is in memory."""
    made = Stage(replicas, policy=Placing(), known=False)
    for id in [word.partition(":")[0] for word in replicas.split()]:
        made.play(f"probe {id} answered", f"tags {id} {lists}", f"ps {id} {memory}")
    return made


def key_of(on: Stage, number: str) -> tuple[str, str | None]:
    request = on.tickets[number].request
    return request.key, request.asked


def know(on: Stage, digest: str, blobs: str, options: str = "") -> str:
    effects = on.scheduler.know_weights(digest, Weights((blobs,), options), on.now_s)
    return ", ".join(map(words, effects))


def changing(on: Stage) -> str | None:
    return on.scheduler.snapshot(on.now_s).replicas[0].changing


# ---- one runner


def test_whoever_asks_for_an_alias_is_sent_where_its_runner_is() -> None:
    on = stage("a:1 b:1", memory="")
    on.play("ps b m")
    assert on.play("submit 1 n") == "send 1 b"
    assert key_of(on, "1") == ("m:latest", "n:latest")
    assert on.play("submit 2 m") == "load a m"


def test_a_runner_that_is_listed_under_its_alias_is_in_memory() -> None:
    on = stage(memory="n")
    assert on.play("submit 1 m") == "send 1 a"
    [state] = on.scheduler.snapshot(0.0).replicas
    assert state.loaded == ("m:latest",)


def test_aliases_share_slots_and_a_lane_in_order_of_arrival() -> None:
    on = stage(memory="m")
    assert on.play("submit 1 n") == "send 1 a"
    assert on.play("submit 2 m", "submit 3 n", "submit 4 m") == ""
    assert on.scheduler.snapshot(0.0).queued_by_model == {"m:latest": 3}
    assert on.play("finish 1", "finish 2", "finish 3") == "send 2 a, send 3 a, send 4 a"


def test_it_is_loaded_by_the_name_that_stands_for_all() -> None:
    on = stage()
    assert on.play("submit 1 n") == "load a m"
    assert on.play("submit 2 m", "submit 3 n") == ""


def test_options_of_its_file_are_asked_for_like_any() -> None:
    on = stage(lists="m=x n=y")
    know(on, "x", "FROM1")
    know(on, "y", "FROM1", "num_ctx=8192")
    assert on.play("submit 1 n") == "load a m num_ctx=8192"
    assert key_of(on, "1") == ("m:latest num_ctx=8192", "n:latest")


def test_a_client_that_lets_go_of_an_alias_lets_go_of_its_runner_everywhere() -> None:
    on = stage("a:1 b:1", memory="m")
    assert on.play("submit 9 n unload") == "send 9 a"
    effects = on.scheduler.finish(on.tickets["9"], 0.0, ok=True, figures=Figures())
    assert [words(effect) for effect in effects] == ["let go b m"]
    assert [state.loaded for state in on.scheduler.snapshot(0.0).replicas] == [(), ()]


def test_what_is_about_a_name_goes_by_that_name() -> None:
    on = stage("a:1 b:1")
    on.play("submit 1 n show", "submit 2 n store", "submit 3 n blob")
    assert [on.tickets[number].request.model for number in "123"] == ["n:latest"] * 3


def test_what_somebody_else_had_it_let_go_of_is_gone_under_any_name() -> None:
    on = stage(memory="m")
    on.play("left a n")
    assert on.scheduler.snapshot(0.0).replicas[0].loaded == ()


def test_who_asks_how_a_model_is_used_may_use_any_name() -> None:
    on = stage("a:2", memory="n")
    on.play("submit 1 n", "submit 2 m")
    assert on.scheduler.use_of("a", "n:latest") == on.scheduler.use_of("a", "m:latest")
    assert on.scheduler.use_of("a", "n:latest").inflight == 2
    assert on.scheduler.names_of("n:latest") == ("m:latest", "n:latest")


def test_a_decision_is_explained_by_the_name_that_the_client_used() -> None:
    on = stage(memory="m")
    on.play("submit 1 n")
    [choice] = on.scheduler.explain()
    assert (choice.alias, choice.model) == ("n:latest", "m:latest")


def test_what_the_configuration_names_is_what_it_says() -> None:
    made: Scheduler[Ticket] = Scheduler(Placing(), "p", QueueLimits(), Random(1))
    made.set_replicas([Replica("a", "h", 1, pinned=frozenset({"n:latest"}))], 0.0)
    installed = tuple(InstalledModel(f"{name}:latest", "x") for name in "mno")
    made.sampled(OllamaSample("a", 0.0, None, installed, None), 0.0)
    assert made.names_of("n:latest") == ("n:latest",)
    assert made.names_of("m:latest") == ("m:latest", "o:latest")


# ---- it becomes known, or changes


def test_those_that_wait_go_on_in_the_lane_of_the_runner_in_order_of_arrival() -> None:
    on = stage(lists="m=x n=y o", memory="m")
    assert on.play("submit 1 m") == "send 1 a"
    assert on.play("submit 2 n", "submit 3 m", "submit 4 n") == "load a n"
    know(on, "x", "FROM1")
    assert know(on, "y", "FROM1") == ""
    assert on.scheduler.snapshot(0.0).queued_by_model == {"m:latest": 3}
    on.scheduler.load_ended("a", 1, 0.0, ok=True)
    assert on.play("finish 1", "finish 2", "finish 3", "finish 4") == "send 2 a, send 3 a, send 4 a"


def test_a_model_that_was_to_leave_for_its_own_alias_stays() -> None:
    on = stage(lists="m=x n=y", memory="m")
    memory = on.scheduler._roster.members["a"].memory
    memory._count_limit = (1, 1e9)
    assert on.play("submit 1 m", "at 29") == "send 1 a"
    assert on.play("submit 2 n", "at 100", "ps a m", "tick") == ""
    assert changing(on) == "finishes m:latest to load n:latest, for 0 s"
    know(on, "x", "FROM1")
    know(on, "y", "FROM1")
    assert changing(on) is None
    assert on.play("finish 1") == "send 2 a"


def test_what_is_in_flight_holds_its_slots_under_the_new_name() -> None:
    on = stage("a:2", lists="m=x n=y", memory="m n")
    on.play("submit 1 m", "submit 2 n", "first 2")
    know(on, "x", "FROM1")
    know(on, "y", "FROM1")
    [state] = on.scheduler.snapshot(0.0).replicas
    assert (state.inflight_by_model, state.loaded) == ({"m:latest": 2}, ("m:latest",))
    assert on.play("submit 3 n", "at 1") == ""
    assert on.play("finish 2", "fail 1 reset") == "send 3 a, refuse 1 EXHAUSTED"
    assert on.scheduler.snapshot(1.0).replicas[0].inflight_by_model == {"m:latest": 1}


def test_what_comes_apart_again_asks_for_what_its_client_did() -> None:
    on = stage("a:1", lists="m=x n=y", memory="m")
    know(on, "x", "FROM1")
    know(on, "y", "FROM1", "num_ctx=9")
    on.play("submit 1 m", "submit 2 n", "submit 3 m")
    assert key_of(on, "2") == ("m:latest num_ctx=9", "n:latest")
    on.play("tags a m=x n=z")
    assert key_of(on, "2") == ("n:latest", "n:latest")
    assert on.tickets["2"].given is None
    assert on.scheduler.snapshot(0.0).queued_by_model == {"n:latest": 1, "m:latest": 1}


def test_where_the_runner_is_deleted_its_aliases_go_on_with_what_is_in_memory() -> None:
    on = stage("a:1", lists="m=x n=x o", memory="m")
    on.play("submit 1 n", "submit 2 n")
    assert on.play("tags a n=x o") == ""
    assert on.play("finish 1") == "send 2 a"
    assert on.scheduler.snapshot(0.0).replicas[0].loaded == ("n:latest",)


def test_a_frozen_model_keeps_no_alias_of_it_waiting() -> None:
    on = stage("a:1", lists="m=x n=x o=x", memory="m")
    assert on.play("submit 1 m") == "send 1 a"
    assert on.play("submit 2 m", "submit 3 n", "submit 4 m", "submit 5 o") == ""
    assert on.play("freeze m") == "send 3 a"
    assert on.scheduler.snapshot(0.0).queued_by_model == {"m:latest": 2, "n:latest": 1}
    assert on.play("finish 1") == ""
    assert on.play("finish 3") == "send 5 a"
    assert on.play("freeze") == ""
    assert on.scheduler.snapshot(0.0).queued_by_model == {"m:latest": 2}
    assert on.play("finish 5") == "send 2 a"


def test_a_model_that_left_under_its_old_name_teaches_nothing_of_how_much_fits() -> None:
    on = stage(lists="m=x n=x o p", memory="n o")
    assert on.play("submit 1 p") == "load a p"
    on.scheduler.load_ended("a", 1, 0.0, ok=True)
    on.play("tags a m=x n=y o p", "at 1", "ps a n o p")
    memory = on.scheduler._roster.members["a"].memory
    assert set(memory.models) == {"n:latest", "o:latest", "p:latest"}
    assert memory._count_limit is None


def test_a_load_that_is_listed_under_its_new_name_did_not_fail() -> None:
    on = stage(lists="m=x n=y")
    assert on.play("submit 1 n") == "load a n"
    on.scheduler.load_ended("a", 1, 0.0, ok=True)
    know(on, "x", "FROM1")
    know(on, "y", "FROM1")
    on.play("finish 1", "at 1", "ps a n")
    memory = on.scheduler._roster.members["a"].memory
    assert (set(memory.models), memory.failed) == ({"m:latest"}, {})


def test_a_load_that_ends_under_another_name_is_one_of_the_new_name() -> None:
    on = stage(lists="m=x n=y")
    assert on.play("submit 1 n") == "load a n"
    know(on, "x", "FROM1")
    know(on, "y", "FROM1", "num_ctx=9")
    effects = on.scheduler.load_ended("a", 1, 0.0, ok=True)
    assert [words(effect) for effect in effects] == ["send 1 a"]
    assert key_of(on, "1") == ("m:latest num_ctx=9", "n:latest")
    assert on.scheduler._roster.members["a"].memory.models["m:latest"].signature == "num_ctx=9"


def test_a_thousand_aliases_leave_nothing_behind() -> None:
    on = stage()
    for number in range(300):
        on.play(f"tags a m=x n{number}=x", f"submit {number} n{number}", f"cancel {number}")
    on.play("tags a m")
    naming = on.scheduler._naming
    assert (naming.by_name, naming.names("n7:latest")) == ({}, ("n7:latest",))
    assert len(naming._aliases._since) == 1
    assert not on.scheduler._dispatcher.waiting.lanes


# ---- on replicas that do as Ollama does


class Twins(Pool):
    """``m`` and ``n`` are of the same weights: whatever is asked for, a replica has one of them in memory, and lists it
    by the name that it was loaded by. What does not fit it throws out by itself."""

    def __init__(self, *, is_known: bool, most: int = 1) -> None:
        self.most = most
        self.evicted = 0
        super().__init__(replicas("a", slots=2, max_loaded=most), load_s=4.0, service_s=0.2)
        installed = tuple(InstalledModel(f"{name}:latest", f"{name}!") for name in "mno")
        self.do(self.scheduler.sampled(OllamaSample("a", 0.0, None, installed, None), 0.0))
        if is_known:
            self.know()

    def know(self) -> None:
        for name in "mno":
            weights = Weights(("FROM1",) if name in "mn" else ("FROM2",))
            self.do(self.scheduler.know_weights(f"{name}!", weights, self.now_s))

    def _changed(self, change: Load | Unload, id: str, model: str) -> None:
        memory = self.memory[id]
        twin = {"m:latest": "n:latest", "n:latest": "m:latest"}.get(model, "")
        if isinstance(change, Unload):
            memory.pop(twin, None)
        elif twin in memory:
            self.do(self.changes.end(self.scheduler, id, self.now_s, ok=True))
            return
        super()._changed(change, id, model)
        while len(memory) > self.most:
            self.evicted += 1
            del memory[next(iter(memory))]


def test_two_names_of_one_model_do_not_take_turns_where_only_one_fits() -> None:
    pool = Twins(is_known=True)
    for name in "mn":
        pool.keep_asking(name, 1.0, 60.0)
    pool.run(90.0)
    assert (len(pool.loads()), pool.count("unload"), pool.count("refuse")) == (1, 0, 0)


def test_who_does_not_know_has_them_take_turns() -> None:
    pool = Twins(is_known=False)
    for name in "mn":
        pool.keep_asking(name, 1.0, 60.0)
    pool.run(90.0)
    assert len(pool.loads()) > 2


def test_they_stop_taking_turns_when_it_becomes_known_and_nobody_is_lost() -> None:
    pool = Twins(is_known=False)
    for name in "mn":
        pool.keep_asking(name, 1.0, 60.0)
    pool.run(20.0)
    pool.log.append((20.0, "known", "", ""))
    pool.know()
    pool.run(90.0)
    events = [what for _, what, _, _ in pool.log]
    after = events[events.index("known") :]
    assert after.count("load") <= 1
    assert pool.count("send") + pool.count("cold") == 120
    assert pool.count("refuse") == pool.evicted == 0


def test_a_third_model_takes_turns_with_both_as_with_one() -> None:
    pool = Twins(is_known=True)
    for name in "mno":
        pool.keep_asking(name, 1.0, 60.0)
    pool.run(120.0)
    names = [name for _, what, _, name in pool.log if what == "load"]
    assert set(names) == {"m", "o"}
    assert all(one != next_one for one, next_one in pairwise(names))
    assert pool.evicted == 0


# ---- any order of events at all


digests = st.sampled_from(("x", "y", "z"))
OPTIONS = ("", "", "num_ctx=1")


class AliasLife(Life):
    """Replicas list any names of any manifests, and of these anything becomes known."""

    def __init__(self) -> None:
        super().__init__()
        self.digests = dict.fromkeys(MODELS, "x")

    @initialize(policy=st.just("weighted-least-load"), seed=st.integers(0, 100), max_requests=st.integers(0, 6))
    def begin(self, policy: str, seed: int, max_requests: int) -> None:
        self.replicas = {id: Replica(id, "h", at, slots=2, max_loaded=at or None) for at, id in enumerate(IDS)}
        self.is_calm, self.places, self.limits = True, True, QueueLimits(max_requests, 60.0)
        self.scheduler = Scheduler(make_policy(policy), policy, self.limits, Random(seed), RULES)
        self.take(self.scheduler.set_replicas(list(self.replicas.values()), 0.0))
        for id in IDS:
            self.list(id, set(MODELS))
            self.sample_memory(id, set())

    def take(self, effects: Sequence[Effect[Ticket]]) -> None:
        """What was asked for under a name goes on under another, where that is what it is called now."""
        for id, change in self.changes.pending.items():
            swap = self.memory(id).swap
            if swap is not None and swap.number == change.number:
                name = swap.leaving[0] if isinstance(change, Unload) else swap.model
                self.changes.pending[id] = change._replace(model=name)
        super().take(list(effects))

    @rule(model=st.sampled_from(MODELS), digest=digests, ids=st.sets(st.sampled_from(IDS), min_size=1))
    def pull(self, model: str, digest: str, ids: set[str]) -> None:
        """Some see it sooner than others."""
        self.digests[model] = digest
        for id in sorted(ids):
            self.list(id, set(MODELS))

    @rule(id=st.sampled_from(IDS), models=st.sets(st.sampled_from(MODELS), min_size=2))
    def list(self, id: str, models: set[str]) -> None:
        self.has[id] = {f"{model}:latest" for model in models}
        installed = tuple(InstalledModel(f"{model}:latest", self.digests[model]) for model in sorted(models))
        self.take(self.scheduler.sampled(OllamaSample(id, self.now_s, None, installed, None), self.now_s))

    @rule(digest=digests, blob=st.sampled_from("12"), options=st.sampled_from(OPTIONS))
    def know(self, digest: str, blob: str, options: str) -> None:
        self.take(self.scheduler.know_weights(digest, Weights((f"FROM{blob}",), options), self.now_s))

    @rule(model=st.sampled_from(MODELS), signature=st.sampled_from(SIGNATURES), keep=st.sampled_from((None, 0.0, 9.0)))
    def submit_kept(self, model: str, signature: str, keep: float | None) -> None:
        request = RouteRequest(RequestKind.INFERENCE, f"{model}:latest", signature, keep_alive_s=keep)
        ticket = Ticket(request, self.now_s)
        self.submitted.append(ticket)
        effects = self.scheduler.submit(ticket, self.now_s)
        if ticket.queued:
            self.waiting.append(ticket)
        self.take(effects)

    @rule(id=st.sampled_from(IDS), models=st.sets(st.sampled_from(MODELS), max_size=2))
    def read_aliases(self, id: str, models: set[str]) -> None:
        loaded = tuple(LoadedModel(f"{model}:latest", GIB, GIB, None) for model in sorted(models))
        self.take(self.scheduler.sampled(OllamaSample(id, self.now_s, None, None, loaded), self.now_s))

    @precondition(lambda self: self.running)
    @rule(pick=st.integers(0, 1000))
    def finish_with_figures(self, pick: int) -> None:
        ticket = self.release(pick)
        self.end(ticket)
        self.take(self.scheduler.finish(ticket, self.now_s, ok=True, figures=Figures(10, 20)))

    @invariant()
    def everybody_asks_for_what_the_names_mean_now(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for ticket in (*self.waiting, *self.running):
            given = ticket.given or ticket.request
            assert ticket.request == self.scheduler._naming.of(given)
            assert ticket.lease is None or ticket.lease.key in (None, ticket.request.model)

    @invariant()
    def memory_goes_by_the_names_of_runners(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        naming = self.scheduler._naming
        for member in self.scheduler._roster.members.values():
            swap = member.memory.swap
            names = {*member.memory.models, *member.inflight, *((swap.model, *swap.leaving) if swap else ())}
            assert {naming.runner(name) for name in names} == names


AliasLife.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None, derandomize=True)
TestAliasLife = AliasLife.TestCase
