"""The supervisor with real processes: what starts, what is started again, and that nothing is left."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from corral.errors import OperatorError
from corral.gateway.config.owned import ReplicaLogsConfig, RestartConfig, WarmupConfig
from corral.gateway.run import rotation
from corral.gateway.run import supervisor as module
from corral.gateway.run.keeper import Keeper
from corral.gateway.run.lifecycle import XID_CALM_S
from corral.model import ProcessState
from tests.gateway.run.stage import BRISK, alive, free_port, plan, processes, stage, until

RUNNING, STOPPED, FAILED = ProcessState.RUNNING, ProcessState.STOPPED, ProcessState.FAILED


def environ_of(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(pair.partition("=")[::2] for pair in pairs if pair)


async def test_each_replica_runs_in_a_session_of_its_own_with_its_port_and_environment(state_dir: Path) -> None:
    base = {"PATH": os.environ["PATH"], "SHARED": "1", "NOTIFY_SOCKET": "/run/secret", "OLLAMA_HOST": "0.0.0.0"}
    plans = [plan("a", "GPU-a", CUDA_VISIBLE_DEVICES="GPU-a"), plan("b", "GPU-b", CUDA_VISIBLE_DEVICES="GPU-b")]
    async with stage(state_dir, *plans, environ=base) as on:
        assert on.feed.held.keys() == {"a", "b"}, "held before anything runs"
        await on.running("a", "b")
        assert on.feed.held == {}
        for id, replica in zip("ab", on.supervisor.replicas(), strict=True):
            pid, env = on.pid(id), environ_of(on.pid(id))
            assert os.getsid(pid) == os.getpgid(pid) == pid
            assert replica.gpus == (f"GPU-{id}",)
            assert env["OLLAMA_HOST"] == f"127.0.0.1:{replica.port}"
            assert (env["CUDA_VISIBLE_DEVICES"], env["SHARED"]) == (f"GPU-{id}", "1")
            assert env["CORRAL_REPLICA"].endswith(f":{id}")
            assert "NOTIFY_SOCKET" not in env
            assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
            assert os.readlink(f"/proc/{pid}/fd/1") == os.readlink(f"/proc/{pid}/fd/2") == on.status(id).log
        assert len({replica.port for replica in on.supervisor.replicas()}) == 2
    assert processes(state_dir) == []


async def test_a_replica_is_kept_on_the_cpus_of_its_plan_and_the_gateway_is_not(state_dir: Path) -> None:
    before = os.sched_getaffinity(0)
    one = replace(plan("a"), cpus=(min(before),), numa_node=0)
    async with stage(state_dir, one, plan("b")) as on:
        await on.running("a", "b")
        assert os.sched_getaffinity(on.pid("a")) == {min(before)}
        assert os.sched_getaffinity(on.pid("b")) == os.sched_getaffinity(0) == before


async def test_a_place_that_cannot_be_had_is_told_and_keeps_no_replica_from_starting(
    state_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(state_dir, replace(plan("a"), cpus=(4000,), numa_node=60_000)) as on:
        await on.running("a")
        on.kill("a")
        await until(lambda: on.status("a").restarts == 1)
        await on.running("a")
    problems = [line for line in caplog.messages if line.startswith("replica_hampered")]
    assert len(problems) == 2, "once each, not at every start"


async def test_a_killed_replica_comes_back_and_the_others_never_notice(
    state_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(state_dir, plan("a", FAKE_SAY="my last words"), plan("b")) as on:
        await on.running("a", "b")
        before, other, port = on.pid("a"), on.pid("b"), on.status("a").port
        on.kill("a")
        await on.in_state("a", ProcessState.BACKING_OFF)
        assert "a" in on.feed.held
        await on.running("a")
        assert (on.pid("a") != before, on.status("a").port, on.status("a").restarts) == (True, port, 1)
        assert (on.pid("b"), on.status("b").restarts) == (other, 0)
        assert on.feed.told["b"] == [ProcessState.STARTING, RUNNING]
    line = next(line for line in caplog.messages if line.startswith("replica_exited"))
    assert 'code="signal SIGKILL" said="my last words"' in line


async def test_a_replica_that_logs_prompts_is_not_quoted(state_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with stage(state_dir, plan("a", FAKE_SAY="a prompt", FAKE_EXIT="1", OLLAMA_DEBUG="2")) as on:
        await on.in_state("a", FAILED)
    assert "a prompt" not in caplog.text
    assert 'code="exit code 1" said=""' in caplog.text


async def test_a_crash_loop_ends_as_failed_and_a_restart_takes_it_back(state_dir: Path, tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    async with stage(state_dir, plan("a", FAKE_EXIT="3", FAKE_ONCE=str(mended)), plan("b")) as on:
        await on.in_state("a", FAILED)
        assert on.status("a").reason == "ended 3 times within 60 s, the last: exit code 3"
        assert on.status("a").restarts == 2
        assert (on.state("b"), "a" in on.feed.held) == (RUNNING, True)
        mended.touch()
        on.supervisor.restart("a", "asked for")
        await on.running("a")
        assert on.feed.held == {}


async def test_a_program_that_cannot_be_run_fails_by_the_same_rules(
    state_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    absent = replace(plan("a"), command=("/nowhere/ollama", "serve"))
    too_long = replace(plan("b"), env={"LONG": "x" * 3_000_000})
    senseless = replace(plan("c"), env={"NUL": "a\0b"})
    async with stage(state_dir, absent, too_long, senseless, plan("d")) as on:
        for id in "abc":
            await on.in_state(id, FAILED)
        await on.running("d")
        assert "cannot be started: /nowhere/ollama: No such file or directory" in on.status("a").reason
        assert "Argument list too long" in on.status("b").reason
        assert "null byte" in on.status("c").reason
    assert "Traceback" not in caplog.text


async def test_a_port_that_is_taken_is_left_to_its_owner(state_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = free_port()
    with socket.create_server(("127.0.0.1", first)):
        async with stage(state_dir, plan("a"), first_port=first) as on:
            await on.running("a")
            assert (on.status("a").port or 0) > first


async def test_a_port_taken_while_a_replica_was_down_is_left_and_the_gateway_hears_of_it(state_dir: Path) -> None:
    async with stage(state_dir, plan("a")) as on:
        await on.running("a")
        before = on.status("a").port
        on.supervisor.stop_replica("a", "a moment")
        await on.in_state("a", STOPPED)
        with socket.create_server(("127.0.0.1", before)):
            changes = on.feed.changes
            on.supervisor.start_replica("a", "go on")
            await on.running("a")
            assert (on.status("a").port != before, on.feed.changes > changes) == (True, True)
            assert on.supervisor.replicas()[0].port == on.status("a").port


@pytest.mark.parametrize("where", ["group", "session"])
async def test_what_a_killed_replica_leaves_behind_is_ended_before_it_starts_again(state_dir: Path, where: str) -> None:
    async with stage(state_dir, plan("a", FAKE_CHILD=where)) as on:
        await on.running("a")
        (child,) = on.children("a")
        before = on.kill("a")
        await until(lambda: on.status("a").restarts == 1)
        await on.running("a")
        assert not alive(child)
        assert not alive(before)
        assert len(processes(state_dir)) == 2
    assert processes(state_dir) == []


async def test_one_that_ignores_sigterm_is_killed_with_all_its_children(state_dir: Path) -> None:
    rules = RestartConfig(first_s=0.05, ready_s=15, stop_s=0.3)
    async with stage(state_dir, plan("a", FAKE_DEAF="1", FAKE_CHILD="session"), restart=rules) as on:
        await on.running("a")
        before, (child,) = on.pid("a"), on.children("a")
        on.supervisor.restart("a", "asked for")
        await until(lambda: on.status("a").restarts == 1)
        await on.running("a")
        assert not alive(before)
        assert not alive(child)
    assert processes(state_dir) == [], "nor at the end"


async def test_one_that_does_not_answer_in_time_is_ended_and_started_again(state_dir: Path, tmp_path: Path) -> None:
    rules = RestartConfig(first_s=0.05, max_s=0.1, give_up_after=2, ready_s=0.3, stop_s=0.2)
    async with stage(state_dir, plan("a", FAKE_MUTE="1"), restart=rules) as on:
        await on.in_state("a", FAILED)
        assert on.status("a").reason.endswith("no answer within 0.3 s of its start")
        assert processes(state_dir) == []


async def test_one_that_is_frozen_while_it_starts_is_killed(state_dir: Path) -> None:
    rules = RestartConfig(first_s=0.05, max_s=0.1, ready_s=0.6, stop_s=0.2)
    async with stage(state_dir, plan("a", FAKE_SLOW="0.4"), restart=rules) as on:
        await until(lambda: on.status("a").pid is not None)
        before = on.kill("a", signal.SIGSTOP)
        await until(lambda: not alive(before))
        await until(lambda: on.status("a").restarts >= 1)


async def test_one_that_is_frozen_while_it_runs_is_left_alone(state_dir: Path) -> None:
    rules = RestartConfig(first_s=0.05, ready_s=0.6, stop_s=0.2)
    async with stage(state_dir, plan("a"), restart=rules) as on:
        await on.running("a")
        before = on.kill("a", signal.SIGSTOP)
        await asyncio.sleep(0.8)
        assert (on.state("a"), on.pid("a")) == (RUNNING, before)
        os.kill(before, signal.SIGCONT)


async def test_a_restart_waits_for_requests_in_flight_and_holds_new_ones_at_once(state_dir: Path) -> None:
    async with stage(state_dir, plan("a")) as on:
        await on.running("a")
        on.feed.busy["a"], before = 1, on.pid("a")
        on.supervisor.restart("a", "asked for")
        assert on.feed.held == {"a": "asked for"}
        await asyncio.sleep(0.4)
        assert alive(before)
        on.feed.busy.clear()
        await until(lambda: not alive(before))
        await on.running("a")


async def test_all_are_restarted_one_at_a_time(state_dir: Path) -> None:
    async with stage(state_dir, plan("a"), plan("b"), plan("c")) as on:
        await on.running("a", "b", "c")
        before = {id: on.pid(id) for id in "abc"}
        on.supervisor.restart_all("asked for")
        down: set[int] = set()

        def through() -> bool:
            down.add(sum(status.state is not RUNNING for status in on.supervisor.statuses()))
            return on.supervisor.rolling == () and all(status.restarts == 1 for status in on.supervisor.statuses())

        await until(through)
        await on.running("a", "b", "c")
        assert down == {0, 1}
        assert all(on.pid(id) != pid for id, pid in before.items())


async def test_a_replica_that_fails_ends_the_rolling_restart(
    state_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    once = tmp_path / "once"
    once.touch()
    async with stage(state_dir, plan("a", FAKE_EXIT="1", FAKE_ONCE=str(once)), plan("b")) as on:
        await on.running("a", "b")
        other = on.pid("b")
        once.unlink()
        on.supervisor.restart_all("asked for")
        await on.in_state("a", FAILED)
        await until(lambda: on.supervisor.rolling == ())
        assert (on.state("b"), on.pid("b")) == (RUNNING, other)
    assert 'rolling_restart_stopped replica=a left="b"' in caplog.text


async def test_new_plans_touch_only_what_they_change(state_dir: Path) -> None:
    async with stage(state_dir, plan("a"), plan("b"), plan("c")) as on:
        await on.running("a", "b", "c")
        same, changed, gone = on.pid("a"), on.pid("b"), on.pid("c")
        on.feed.busy["c"] = 1
        on.supervisor.set_plans([plan("d"), replace(plan("a"), weight=3.0), plan("b", NEW="1")])
        assert [replica.id for replica in on.supervisor.replicas()] == ["d", "a", "b", "c"]
        assert "c" in on.feed.held
        await on.running("d")
        await until(lambda: on.status("b").restarts == 1)
        await on.running("b")
        assert environ_of(on.pid("b"))["NEW"] == "1"
        assert (on.pid("a"), on.supervisor.replicas()[1].weight) == (same, 3.0)
        assert (alive(changed), alive(gone)) == (False, True), "what leaves may finish"
        on.feed.busy.clear()
        await until(lambda: [replica.id for replica in on.supervisor.replicas()] == ["d", "a", "b"])
        assert not alive(gone)


async def test_a_replica_that_is_planned_anew_while_it_leaves_comes_back(state_dir: Path) -> None:
    async with stage(state_dir, plan("a")) as on:
        await on.running("a")
        before = on.pid("a")
        on.feed.busy["a"] = 1
        on.supervisor.set_plans([])
        on.supervisor.set_plans([plan("a", NEW="1")])
        on.feed.busy.clear()
        await until(lambda: on.status("a").restarts == 1)
        await on.running("a")
        assert not alive(before)
        assert environ_of(on.pid("a"))["NEW"] == "1"


async def test_nobody_is_held_for_a_replica_that_has_gone(state_dir: Path) -> None:
    """Its name may be another's by then: of one that somebody else runs."""
    async with stage(state_dir, plan("a")) as on:
        await on.running("a")
        on.supervisor.set_plans([])
        assert "a" in on.feed.held
        await until(lambda: on.supervisor.statuses() == ())
        assert on.feed.held == {}


async def test_a_new_plan_takes_a_failure_back(state_dir: Path) -> None:
    async with stage(state_dir, plan("a", FAKE_EXIT="1")) as on:
        await on.in_state("a", FAILED)
        on.supervisor.set_plans([plan("a")])
        await on.running("a")


async def test_a_lost_gpu_stops_its_own_replica_and_its_return_starts_it(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOST_DRAIN_S", 0.2)
    async with stage(state_dir, plan("a", "GPU-a"), plan("b", "GPU-b")) as on:
        await on.running("a", "b")
        on.feed.busy["a"], other = 1, on.pid("b")
        on.supervisor.gpu_lost("GPU-a", "fell off the bus")
        assert "a" in on.feed.held
        await on.in_state("a", STOPPED)
        assert on.status("a").reason == "GPU lost: fell off the bus"
        on.supervisor.restart("a", "asked for")
        on.supervisor.set_plans([plan("a", "GPU-a"), plan("b", "GPU-b"), plan("c", "GPU-a")])
        await asyncio.sleep(0.3)
        assert (on.state("a"), on.state("c"), on.pid("b")) == (STOPPED, STOPPED, other)
        on.feed.busy.clear()
        on.supervisor.gpu_back("GPU-a")
        await on.running("a", "c")
        assert on.feed.told["b"] == [ProcessState.STARTING, RUNNING]


async def test_nothing_starts_on_a_gpu_that_was_lost_before_there_were_plans(state_dir: Path) -> None:
    async with stage(state_dir, plan("a", "GPU-a"), plan("b", "GPU-b"), lost=["GPU-a"]) as on:
        await on.running("b")
        assert (on.state("a"), on.status("a").reason) == (STOPPED, "GPU lost: gone")
        assert ProcessState.STARTING not in on.feed.told["a"]
        on.supervisor.gpu_back("GPU-a")
        await on.running("a")


async def test_a_plan_on_other_gpus_need_not_wait_for_the_lost_one(state_dir: Path) -> None:
    async with stage(state_dir, plan("a", "GPU-a")) as on:
        await on.running("a")
        on.supervisor.gpu_lost("GPU-a", "gone")
        await on.in_state("a", STOPPED)
        on.supervisor.set_plans([plan("a", "GPU-b", NEW="1")])
        await on.running("a")


async def test_a_critical_xid_makes_a_new_process_and_one_of_a_program_none(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corral.gateway.run.lifecycle.XID_CALM_S", 0.1)
    assert XID_CALM_S == 10
    async with stage(state_dir, plan("a", "GPU-a"), plan("b", "GPU-b")) as on:
        await on.running("a", "b")
        before = on.pid("a")
        for code in (13, 31, 43, 45, 63, 154, 4711):
            on.supervisor.gpu_xid("GPU-a", code)
        assert (on.state("a"), on.feed.held) == (RUNNING, {})
        on.supervisor.gpu_xid("GPU-a", 48)
        on.supervisor.gpu_xid("GPU-a", 48)
        await on.in_state("a", STOPPED)
        assert (on.status("a").reason, alive(before)) == ("Xid 48: double-bit memory error", False)

        def read_well() -> bool:
            on.supervisor.gpu_read("GPU-a")
            return on.state("a") is RUNNING

        await until(read_well)
        assert (on.status("a").restarts, on.status("b").restarts) == (1, 0)


async def test_models_are_loaded_before_a_replica_serves(
    state_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = tmp_path / "record"
    warm = WarmupConfig(models=("talker", "missing", "embedder", "elsewhere"), seconds=0.2)
    own = replace(plan("b"), models=frozenset({"elsewhere:latest"}))
    async with stage(state_dir, plan("a", FAKE_RECORD=str(record)), own, warmup=warm) as on:
        await on.running("a", "b")
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line for line in lines if "prompt" not in line[1]] == [
        ["/api/generate", {"model": "talker", "stream": False}],
        ["/api/generate", {"model": "missing", "stream": False}],
        ["/api/generate", {"model": "embedder", "stream": False}],
        ["/api/embed", {"model": "embedder", "input": ""}],
    ]
    prompts = [asked for _, asked in lines if "prompt" in asked]
    assert prompts
    assert all((asked["model"], asked["options"]) == ("talker", {"num_predict": 8}) for asked in prompts)
    assert "warmup_failed replica=a model=missing error=\"model 'missing' not found\"" in caplog.text


async def test_the_log_of_a_chatty_replica_stays_small(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "ROTATE_EVERY_S", 0.05)
    small = ReplicaLogsConfig(max_bytes=8192, files=2)
    async with stage(state_dir, plan("a", FAKE_CHATTY="1"), logs=small) as on:
        path = Path(on.status("a").log)
        older = path.with_name("a.log.2")
        await until(older.exists)
        await on.running("a")
        sizes = [path.stat().st_size, path.with_name("a.log.1").stat().st_size]
        assert max(sizes) < 500_000
        assert not path.with_name("a.log.3").exists()
        assert b"\0" not in path.read_bytes(), "no hole where it was emptied"
        assert on.status("a").restarts == 0


async def test_a_second_supervisor_on_the_same_folder_is_told_whose_it_is(state_dir: Path) -> None:
    async with stage(state_dir, plan("a")) as on:
        await on.running("a")
        with pytest.raises(OperatorError, match=rf"in use by .* process number {os.getpid()}; .*state_dir:"):
            async with stage(state_dir, plan("a")):
                pass
        assert on.state("a") is RUNNING


async def test_a_failing_feed_does_not_end_the_supervision(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(state_dir, plan("a")) as on:
        await on.running("a")
        with monkeypatch.context() as broken:
            broken.setattr(Keeper, "tick", lambda self: 1 / 0)
            await until(lambda: "supervisor_failed" in caplog.text)
            await asyncio.sleep(0.3)
        assert caplog.text.count("supervisor_failed") == 1
        on.kill("a")
        await until(lambda: on.status("a").restarts == 1)
        await on.running("a")


async def test_whatever_is_asked_in_whatever_order_each_replica_has_one_process_or_none(state_dir: Path) -> None:
    rng, gpus = Random(3), {id: f"GPU-{id}" for id in "abc"}
    rules = RestartConfig(first_s=0.02, max_s=0.05, give_up_after=1000, ready_s=15, stop_s=1)
    plans = [plan(id, uuid, FAKE_CHILD="group") for id, uuid in gpus.items()]
    async with stage(state_dir, *plans, restart=rules, drain_s=0.05) as on:
        supervisor = on.supervisor
        for number in range(150):
            id = rng.choice("abc")
            match rng.randrange(9):
                case 0:
                    supervisor.restart(id, "asked for")
                case 1:
                    supervisor.stop_replica(id, "asked for")
                case 2:
                    supervisor.start_replica(id, "asked for")
                case 3:
                    supervisor.gpu_lost(gpus[id], "lost")
                case 4:
                    supervisor.gpu_back(gpus[id])
                case 5:
                    supervisor.gpu_xid(gpus[id], 48)
                case 6:
                    supervisor.restart_all("asked for")
                case 7:
                    plans = [replace(each, env={**each.env, "N": str(number)}) for each in plans]
                    supervisor.set_plans([])
                    supervisor.set_plans(plans)
                case 8 if on.status(id).pid is not None:
                    on.kill(id)
            on.feed.busy = {id: rng.randrange(2) for id in "abc"}
            await asyncio.sleep(rng.random() * 0.04)
        on.feed.busy.clear()
        for id in "abc":
            supervisor.gpu_back(gpus[id])
            supervisor.start_replica(id, "asked for")
        await until(lambda: supervisor.rolling == ())
        await on.running("a", "b", "c")
        await until(lambda: len(processes(state_dir)) == 6)
        assert {process.id.pid for process in processes(state_dir) if process.leads} == {on.pid(id) for id in "abc"}
        assert on.feed.held == {}
    assert processes(state_dir) == []


async def test_close_ends_starting_failing_and_deaf_ones_alike_and_leaves_nothing(
    state_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    plans = [
        plan("deaf", FAKE_DEAF="1", FAKE_CHILD="session"),
        plan("mute", FAKE_MUTE="1", FAKE_CHILD="group"),
        plan("broken", FAKE_EXIT="1", FAKE_CHILD="group"),
        plan("good"),
    ]
    async with stage(state_dir, *plans, restart=RestartConfig(first_s=0.05, ready_s=30, stop_s=0.3)) as on:
        await on.running("deaf", "good")
    assert processes(state_dir) == []
    assert json.loads((state_dir / "replicas.json").read_text())["replicas"] == []
    assert {status.state for status in on.supervisor.statuses()} == {STOPPED}


async def test_what_is_asked_during_the_end_starts_nothing(state_dir: Path) -> None:
    async with stage(state_dir, plan("a", FAKE_DEAF="1"), plan("b"), close=False) as on:
        await on.running("a", "b")
        ending = asyncio.create_task(on.supervisor.close())
        await until(lambda: on.state("a") is not RUNNING)
        while not ending.done():
            on.supervisor.restart_all("asked for")
            with pytest.raises(KeyError):
                on.supervisor.restart("b", "asked for")
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert processes(state_dir) == []


async def test_close_right_after_start_leaves_nothing(state_dir: Path) -> None:
    async with stage(state_dir, plan("a", FAKE_CHILD="group"), plan("b"), restart=BRISK):
        pass
    assert processes(state_dir) == []


async def test_a_new_replica_waits_for_the_one_that_leaves_its_gpu(state_dir: Path) -> None:
    async with stage(state_dir, plan("a", "GPU-1"), drain_s=30) as on:
        await on.running("a")
        on.feed.busy = {"a": 1}
        on.supervisor.set_plans([plan("b", "GPU-1"), plan("c", "GPU-2")])
        await on.running("c")
        assert on.status("b").pid is None, "the one that leaves is still answering a request"
        on.feed.busy.clear()
        await on.running("b")
        assert [status.id for status in on.supervisor.statuses()] == ["b", "c"]
