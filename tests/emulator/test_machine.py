"""The emulated scheduler as tables of histories: no clock, no sockets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from corral.emulator.catalog import ModelSpec, gpu_named, model_given, model_named
from corral.emulator.effects import Effect, Gone, Granted, Refused, SlotTaken
from corral.emulator.gpu import load_s, recovery_s, unload_s
from corral.emulator.machine import BUSY, Machine, MachineSpec
from corral.emulator.runner import FOREVER_S, Job, RunnerState, Signature

SMALL = model_given("llama3.2:1b")
OTHER = model_given("llama3.2:3b")
THIRD = model_given("mistral:7b")
EMBEDDING = model_given("all-minilm")


class History:
    """A machine, its time and the numbers of its jobs."""

    def __init__(self, **spec: object) -> None:
        base = MachineSpec(gpu=gpu_named("RTX 4090 24GB"), context_length=4096, load_s=10.0)
        self.machine = Machine(replace(base, **spec))  # type: ignore[arg-type]
        self.now = 0.0
        self._jobs = 0

    def job(self, model: ModelSpec, keep_alive_s: float | None = None, **options: int) -> Job:
        self._jobs += 1
        return Job(self._jobs, model, model.name, Signature(**options), keep_alive_s)  # type: ignore[arg-type]

    def submit(self, job: Job) -> list[Effect]:
        return self.machine.submit(job, self.now)

    def done(self, job: Job) -> list[Effect]:
        return self.machine.done(job.id, self.now)

    def after(self, seconds: float) -> list[Effect]:
        """Let time pass, stopping wherever the machine wants to be advanced."""
        until = self.now + seconds
        effects: list[Effect] = []
        while True:
            due = self.machine.next_event_s()
            if due is None or due > until:
                self.now = until
                return effects
            self.now = max(self.now, due)
            effects += self.machine.advance(self.now)

    def load(self, model: ModelSpec, **options: int) -> Job:
        """A job that has its model."""
        job = self.job(model, **options)
        assert self.submit(job) == []
        assert granted(self.after(10.0)) == [job.id]
        return job

    def idle(self, model: ModelSpec, keep_alive_s: float | None = None) -> None:
        """The model is loaded and no request uses it."""
        job = self.job(model, keep_alive_s)
        self.submit(job)
        self.after(10.0)
        self.done(job)


def granted(effects: list[Effect]) -> list[int]:
    return [effect.job_id for effect in effects if isinstance(effect, Granted)]


def slotted(effects: list[Effect]) -> list[int]:
    return [effect.job_id for effect in effects if isinstance(effect, SlotTaken)]


def loaded(history: History) -> list[str]:
    return [runner.job.name for runner in history.machine.runners.values()]


def test_a_request_waits_until_its_model_is_loaded() -> None:
    history = History()
    job = history.job(SMALL)
    assert history.submit(job) == []
    assert history.after(9.9) == []
    assert granted(history.after(0.1)) == [job.id]


def test_a_loaded_model_is_granted_at_once() -> None:
    history = History()
    history.load(SMALL)
    job = history.job(SMALL)
    assert granted(history.submit(job)) == [job.id]


def test_without_a_given_time_a_load_takes_as_long_as_its_size_says() -> None:
    history = History(load_s=None)
    job = history.job(SMALL)
    history.submit(job)
    assert history.after(load_s(SMALL) - 0.01) == []
    assert granted(history.after(0.02)) == [job.id]


def test_requests_for_a_model_that_is_loading_are_all_served_by_one_load() -> None:
    history = History()
    jobs = [history.job(SMALL) for _ in range(5)]
    for job in jobs:
        history.submit(job)
    assert granted(history.after(10.0)) == [job.id for job in jobs]
    assert history.machine.loads == 1


def test_a_load_blocks_every_other_load_behind_it() -> None:
    history = History()
    first, second = history.job(SMALL), history.job(OTHER)
    history.submit(first)
    history.submit(second)
    assert granted(history.after(10.0)) == [first.id]
    assert granted(history.after(9.9)) == []
    assert granted(history.after(0.1)) == [second.id]


def test_a_loaded_model_is_served_while_another_loads() -> None:
    history = History()
    history.load(SMALL)
    history.submit(history.job(OTHER))
    job = history.job(SMALL)
    assert granted(history.submit(job)) == [job.id]


def test_a_request_waiting_for_an_eviction_blocks_requests_for_models_that_would_fit() -> None:
    history = History(max_loaded=1)
    busy = history.load(SMALL)
    waiting, behind = history.job(OTHER), history.job(THIRD)
    history.submit(waiting)
    history.submit(behind)
    assert history.after(100.0) == []
    history.done(busy)
    assert granted(history.after(unload_s() + recovery_s() + 10.0)) == [waiting.id]


def test_the_queue_for_loads_is_bounded_and_answers_with_two_spaces() -> None:
    history = History(max_queue=2)
    for _ in range(3):
        assert history.submit(history.job(SMALL)) == []
    job = history.job(OTHER)
    assert history.submit(job) == [Refused(job.id, 503, BUSY)]
    assert "try again.  maximum" in BUSY


def test_a_loaded_model_bypasses_the_full_queue() -> None:
    history = History(max_queue=1)
    history.load(SMALL)
    for _ in range(2):
        history.submit(history.job(OTHER))
    assert [granted(history.submit(history.job(SMALL))) for _ in range(50)] == [[4 + n] for n in range(50)]


def test_slots_are_first_come_first_served_and_bounded() -> None:
    history = History(parallel=2)
    first = history.load(SMALL)
    jobs = [first, *[history.job(SMALL) for _ in range(3)]]
    for job in jobs[1:]:
        history.submit(job)
    assert [slotted(history.machine.want_slot(job.id)) for job in jobs] == [[1], [2], [], []]
    assert slotted(history.done(jobs[1])) == [3]
    assert slotted(history.done(jobs[0])) == [4]
    assert history.machine.max_active == {"llama3.2:1b": 2}


def test_a_request_that_leaves_the_slot_queue_is_skipped() -> None:
    history = History()
    first = history.load(SMALL)
    second, third = history.job(SMALL), history.job(SMALL)
    for job in (second, third):
        history.submit(job)
    for job in (first, second, third):
        history.machine.want_slot(job.id)
    history.done(second)
    assert slotted(history.done(first)) == [third.id]


def test_an_embedding_only_model_has_one_slot() -> None:
    history = History(parallel=4)
    history.load(EMBEDDING)
    assert history.machine.runners[EMBEDDING.blob_digest].slots == 1


def test_a_leaked_slot_stays_taken_until_the_runner_leaves() -> None:
    history = History(parallel=2)
    job = history.load(SMALL)
    history.machine.want_slot(job.id)
    history.machine.done(job.id, history.now, leak_slot=True)
    again = [history.job(SMALL) for _ in range(2)]
    for other in again:
        history.submit(other)
    assert [slotted(history.machine.want_slot(other.id)) for other in again] == [[again[0].id], []]


@pytest.mark.parametrize("keep_alive_s", [0.0, 5.0, 300.0])
def test_an_idle_model_leaves_after_its_keep_alive(keep_alive_s: float) -> None:
    history = History()
    history.idle(SMALL, keep_alive_s)
    if keep_alive_s:
        assert history.after(keep_alive_s - 0.1) == []
    gone = history.after(0.2 + unload_s())
    assert [effect for effect in gone if isinstance(effect, Gone)]
    assert loaded(history) == []


def test_a_model_kept_for_ever_does_not_leave_by_itself() -> None:
    history = History()
    history.idle(SMALL, FOREVER_S)
    assert history.machine.next_event_s() is None


def test_keep_alive_stays_as_the_last_request_that_gave_one_set_it() -> None:
    history = History()
    history.idle(SMALL, 50.0)
    plain = history.job(SMALL)
    history.submit(plain)
    history.done(plain)
    assert history.machine.runners[SMALL.blob_digest].session_s == 50.0


def test_unloading_waits_for_the_running_request() -> None:
    history = History()
    job = history.load(SMALL)
    history.machine.expire(SMALL.blob_digest, history.now)
    assert history.after(100.0) == []
    history.done(job)
    assert [type(effect) for effect in history.after(unload_s())] == [Gone]


def test_the_idle_model_with_the_shortest_keep_alive_is_evicted_first() -> None:
    history = History(max_loaded=2)
    history.idle(SMALL, 500.0)
    history.idle(OTHER, 100.0)
    history.submit(history.job(THIRD))
    history.after(unload_s() + recovery_s() + 10.0)
    assert loaded(history) == ["llama3.2:1b", "mistral:7b"]


def test_a_busy_model_is_spared_where_an_idle_one_can_leave() -> None:
    history = History(max_loaded=2)
    history.idle(SMALL, 500.0)
    history.load(OTHER)
    history.submit(history.job(THIRD))
    history.after(unload_s() + recovery_s() + 10.0)
    assert loaded(history) == ["llama3.2:3b", "mistral:7b"]


def test_after_an_eviction_ollama_waits_for_the_memory_to_come_back() -> None:
    history = History(max_loaded=1)
    history.idle(SMALL)
    job = history.job(OTHER)
    history.submit(job)
    assert granted(history.after(unload_s() + recovery_s() + 9.9)) == []
    assert granted(history.after(0.2)) == [job.id]


def test_a_model_that_does_not_fit_beside_another_evicts_it() -> None:
    history = History(context_length=4096)
    history.idle(model_given("a=12"))
    history.submit(history.job(model_given("b=12")))
    history.after(unload_s() + recovery_s() + 10.0)
    assert loaded(history) == ["b:latest"]


def test_only_four_fifths_of_the_free_memory_count() -> None:
    history = History(context_length=4096)
    history.submit(history.job(model_given("big=23.5")))
    history.after(10.0)
    runner = next(iter(history.machine.runners.values()))
    assert runner.bytes_total > 0.8 * history.machine.spec.gpu.vram_bytes
    history.submit(history.job(SMALL))
    assert loaded(history) == ["big:latest"]


def test_what_does_not_fit_at_all_is_split_between_gpu_and_cpu() -> None:
    history = History()
    history.load(model_given("llama3.1:70b"))
    runner = next(iter(history.machine.runners.values()))
    assert 0 < runner.bytes_vram < runner.bytes_total
    assert history.machine.used_bytes() <= history.machine.spec.gpu.vram_bytes


def test_an_automatic_context_shrinks_until_the_model_fits() -> None:
    history = History(context_length=None, parallel=4)
    history.load(model_given("llama3.1:8b"))
    assert next(iter(history.machine.runners.values())).context_tokens == 4096


@pytest.mark.parametrize(
    ("option", "value"),
    [("num_ctx", 8192), ("num_batch", 256), ("num_gpu", 10), ("main_gpu", 1), ("num_thread", 3), ("shift", False)],
)
def test_another_runner_signature_reloads_when_idle(option: str, value: int) -> None:
    history = History()
    busy = history.load(SMALL)
    job = history.job(SMALL, **{option: value})
    assert history.submit(job) == []
    assert granted(history.after(100.0)) == []
    history.done(busy)
    assert granted(history.after(unload_s() + recovery_s() + 10.0)) == [job.id]
    assert history.machine.loads == 2


@pytest.mark.parametrize(("option", "value"), [("num_ctx", 4096), ("num_gpu", -1), ("shift", True)])
def test_options_that_change_nothing_do_not_reload(option: str, value: int) -> None:
    history = History()
    history.load(SMALL)
    job = history.job(SMALL, **{option: value})
    assert granted(history.submit(job)) == [job.id]


def test_clients_that_alternate_num_ctx_reload_each_time() -> None:
    history = History()
    for turn in range(6):
        job = history.job(SMALL, num_ctx=4096 if turn % 2 else 8192)
        history.submit(job)
        assert granted(history.after(20.0)) == [job.id]
        history.done(job)
    assert history.machine.loads == 6


def test_leaving_during_the_load_aborts_it_and_the_next_in_line_starts_again() -> None:
    history = History()
    first, second = history.job(SMALL), history.job(SMALL)
    history.submit(first)
    history.submit(second)
    history.after(9.0)
    history.done(first)
    assert granted(history.after(9.9)) == []
    assert granted(history.after(0.1)) == [second.id]
    assert history.machine.loads == 2


def test_a_crashed_runner_is_loaded_again_by_the_next_request() -> None:
    history = History()
    job = history.load(SMALL)
    assert [type(effect) for effect in history.machine.crash(SMALL.blob_digest, history.now, "died")] == [Gone]
    history.done(job)
    again = history.job(SMALL)
    assert granted(history.submit(again)) == []
    assert granted(history.after(10.0)) == [again.id]


def test_a_load_that_dies_fails_the_request_that_began_it_and_the_next_one_loads_again() -> None:
    history = History()
    first, second = history.job(SMALL), history.job(SMALL)
    for job in (first, second):
        assert history.submit(job) == []
    gone, refused = history.machine.crash(SMALL.blob_digest, history.now, "died")
    assert isinstance(gone, Gone)
    assert refused == Refused(first.id, 500, "died")
    assert history.done(first) == []
    assert granted(history.after(10.0)) == [second.id]
    assert history.machine.loads == 2


def test_without_a_gpu_models_are_held_by_the_host() -> None:
    history = History(gpu=replace(gpu_named("T4"), vram_bytes=0))
    for model in (SMALL, THIRD):
        history.idle(model)
    runners = list(history.machine.runners.values())
    assert [(runner.bytes_vram, runner.context_tokens) for runner in runners] == [(0, 4096), (0, 4096)]


def test_a_crash_fails_the_requests_that_wait_for_a_slot_too() -> None:
    history = History()
    jobs = [history.load(SMALL), history.job(SMALL), history.job(SMALL)]
    for job in jobs[1:]:
        history.submit(job)
    for job in jobs:
        history.machine.want_slot(job.id)
    effects = history.machine.crash(SMALL.blob_digest, history.now, "died")
    assert effects[1:] == [Refused(job.id, 500, "died") for job in jobs[1:]]
    for job in jobs:
        assert history.done(job) == []


def test_out_of_memory_unloads_every_model() -> None:
    history = History()
    history.idle(SMALL)
    history.idle(OTHER)
    history.machine.expire_all(history.now)
    history.after(unload_s())
    assert loaded(history) == []


def test_two_names_of_one_blob_share_a_runner() -> None:
    history = History()
    history.load(SMALL)
    alias = history.job(replace(SMALL, name="mine:latest"))
    assert granted(history.submit(alias)) == [alias.id]
    assert loaded(history) == ["llama3.2:1b"]


@pytest.mark.parametrize(("version", "listed"), [((0, 32, 15), 0), ((0, 24, 0), 1)])
def test_only_the_older_engine_lists_a_model_that_is_loading(version: tuple[int, ...], listed: int) -> None:
    history = History(version=version)
    history.submit(history.job(SMALL))
    assert len(history.machine.listed(history.now)) == listed
    history.after(10.0)
    assert len(history.machine.listed(history.now)) == 1


def test_expiry_slides_until_the_first_idle_time_and_then_stays() -> None:
    history = History(keep_alive_s=100.0)
    job = history.load(SMALL)
    runner = history.machine.runners[SMALL.blob_digest]
    assert runner.shown_expiry_s(history.now) == history.now + 100.0
    history.after(7.0)
    assert runner.shown_expiry_s(history.now) == history.now + 100.0
    history.done(job)
    idle_at = history.now
    again = history.job(SMALL)
    history.submit(again)
    history.after(50.0)
    assert runner.shown_expiry_s(history.now) == idle_at + 100.0


def test_nothing_is_left_behind_whatever_order_requests_end_in() -> None:
    history = History(parallel=2, max_loaded=2)
    jobs = [history.job(model) for model in (SMALL, OTHER, THIRD, SMALL, EMBEDDING) for _ in range(3)]
    for job in jobs:
        for effect in history.submit(job):
            assert isinstance(effect, Granted)
            history.machine.want_slot(job.id)
    for job in reversed(jobs):
        history.done(job)
        history.after(1.0)
    history.after(1000.0)
    machine = history.machine
    assert (machine.pending, loaded(history), machine.next_event_s()) == (0, [], None)
    assert all(runner.state is RunnerState.LOADED for runner in machine.runners.values())


def test_known_names_and_their_default_tags_are_the_same_model() -> None:
    named, default = model_named("llama3.1:8b"), model_named("Llama3.1")
    assert named is not None
    assert default is not None
    assert (default.blob_digest, default.name) == (named.blob_digest, "llama3.1:latest")


def test_the_machine_never_asks_to_be_advanced_at_a_time_that_is_past() -> None:
    history = History()
    history.idle(SMALL, keep_alive_s=3.0)
    history.submit(history.job(OTHER))
    for _ in range(20):  # the small one leaves, and its memory is back, while the other one is being loaded
        due = history.machine.next_event_s()
        if due is None:
            break
        assert due > history.now
        history.now = due
        history.machine.advance(due)
    assert loaded(history) == [OTHER.name]
