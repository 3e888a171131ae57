"""Corral runs the Ollamas itself: one per GPU, whatever happens to processes, ports, GPUs and the gateway."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from corral.emulator.nvml.machines import alike, eight_mixed, four_unequal
from corral.emulator.nvml.state import find, hang, lose, report
from tests.e2e.box import MODEL, Box, box, gone, is_alive, kill, loaded
from tests.e2e.processes import ask, until
from tests.gateway.cli.shell import corral

FOUR = ("gpu0", "gpu1", "gpu2", "gpu3")


async def pids(owned: Box) -> dict[str, int]:
    return {row["id"]: row["process"]["pid"] for row in (await owned.gateway.snapshot())["replicas"]}


def tell(what: str, since_s: float) -> None:
    """A figure for docs/benchmarks.md; shown with ``-s``."""
    print(f"\n{what} after {time.monotonic() - since_s:.2f} s")  # noqa: T201


async def in_memory(owned: Box) -> list[list[str]]:
    """The models that each replica has loaded."""
    ports = [(await owned.process(id))["port"] for id in await pids(owned)]
    return [[model["name"] for model in await loaded(port)] for port in ports]


async def spread(owned: Box, ids: tuple[str, ...], within_s: float = 15) -> None:
    """Chat until each of these replicas has answered."""
    seen: set[str] = set()
    deadline_s = time.monotonic() + within_s
    while not seen >= set(ids):
        assert time.monotonic() < deadline_s, f"only {seen} answered"
        seen |= set(await asyncio.gather(*(owned.chat(tokens=300) for _ in range(5 * len(ids)))))


@pytest.mark.parametrize(("machine", "count"), [(four_unequal(), 4), (eight_mixed(), 8)])
async def test_without_a_file_each_gpu_has_its_own_ollama_and_requests_flow(
    tmp_path: Path, machine: Any, count: int
) -> None:
    async with box(tmp_path, machine) as owned:
        ids = tuple(f"gpu{number}" for number in range(count))
        await owned.running(*ids)
        page = await owned.gateway.snapshot()
        contexts, ports = set(), set()
        for number, row in enumerate(page["replicas"]):
            process = psutil.Process(row["process"]["pid"])
            environ = process.environ()
            assert environ["CUDA_VISIBLE_DEVICES"] == owned.uuids[number]
            assert (environ["OLLAMA_VULKAN"], environ["OLLAMA_NOPRUNE"], environ["OLLAMA_KEEP_ALIVE"]) == (
                "0",
                "1",
                "-1",
            )
            assert environ["OLLAMA_HOST"] == f"127.0.0.1:{row['process']['port']}"
            assert int(environ["OLLAMA_NUM_PARALLEL"]) == row["slots"]
            assert os.getsid(process.pid) == process.pid, "it has a session of its own"
            contexts.add(environ["OLLAMA_CONTEXT_LENGTH"])
            ports.add(row["process"]["port"])
        assert len(contexts) == 1, "the same request means the same on each"
        assert len(ports) == count
        await spread(owned, ids)


async def test_serve_needs_no_file_at_all(tmp_path: Path) -> None:
    made = Box(tmp_path, alike(2))
    made.config.unlink()
    made.gateway.arguments = ("serve",)
    taken = psutil.net_connections("tcp4")
    if any(each.laddr and each.laddr.port in (11434, 11435) for each in taken):
        pytest.skip("Ollama's own port is taken on this machine")
    try:
        made.gateway.begin()
        await made.gateway.ready()
        await made.running("gpu0", "gpu1")
        assert await made.chat() in ("gpu0", "gpu1")
        assert (made.state / "corral" / "replicas.json").exists()
    finally:
        made.end()


async def test_requests_wait_for_the_first_replica_instead_of_being_refused(tmp_path: Path) -> None:
    async with box(tmp_path, alike(1)) as owned:
        assert await owned.chat() == "gpu0"


async def test_an_ollama_that_is_killed_is_started_again_and_the_others_never_notice(tmp_path: Path) -> None:
    async with box(tmp_path, four_unequal()) as owned:
        await owned.running(*FOUR)
        before = await pids(owned)
        await spread(owned, FOUR)
        children = psutil.Process(before["gpu1"]).children(recursive=True)
        assert children, "its model is held by a process of its own"
        killed_s = time.monotonic()
        kill(before["gpu1"])
        answers = await asyncio.gather(*(owned.chat() for _ in range(20)))
        assert "gpu1" not in answers[8:] or (await pids(owned))["gpu1"] != before["gpu1"]
        await owned.until_process("gpu1", lambda process: process["restarts"] == 1, 10)
        await owned.running(*FOUR)
        tell("a killed Ollama takes requests again", killed_s)
        after = await pids(owned)
        assert after["gpu1"] != before["gpu1"]
        assert {id: pid for id, pid in after.items() if id != "gpu1"} == {
            id: pid for id, pid in before.items() if id != "gpu1"
        }
        await gone(children)
        await spread(owned, FOUR)
        assert "said=" in owned.gateway.said(), "its last words are in the gateway's log"


async def test_the_death_of_a_runner_costs_its_model_but_not_the_ollama(tmp_path: Path) -> None:
    async with box(tmp_path, alike(1)) as owned:
        await owned.chat()
        before = await pids(owned)
        (runner,) = psutil.Process(before["gpu0"]).children(recursive=True)
        kill(runner.pid)
        await until(lambda: not is_alive(runner), 5, "the end of the runner")
        assert await owned.chat() == "gpu0"
        assert await pids(owned) == before


async def test_a_stop_leaves_no_process(tmp_path: Path) -> None:
    async with box(tmp_path, four_unequal()) as owned:
        await owned.running(*FOUR)
        await spread(owned, FOUR)
        processes = owned.ollamas()
        assert len(processes) >= 8
        told_s = time.monotonic()
        owned.gateway.signal(signal.SIGTERM)
        assert await owned.gateway.ended() == 0
        tell("after SIGTERM everything has ended", told_s)
        assert not [each for each in processes if is_alive(each)]
        assert owned.ollamas() == []


async def test_the_next_gateway_adopts_what_a_killed_one_left(tmp_path: Path) -> None:
    async with box(tmp_path, four_unequal()) as owned:
        await owned.running(*FOUR)
        await spread(owned, FOUR)
        before = await pids(owned)
        models = await in_memory(owned)
        owned.gateway.end()
        assert all(is_alive(psutil.Process(pid)) for pid in before.values())
        killed_s = time.monotonic()
        await owned.start()
        await owned.running(*FOUR)
        tell("four Ollamas are adopted and serve", killed_s)
        assert await pids(owned) == before
        assert all([(await owned.process(id))["adopted"] for id in FOUR])
        assert await in_memory(owned) == models == [[MODEL]] * 4, "the models stayed in memory"
        await spread(owned, FOUR)
        kill(before["gpu2"])
        await owned.until_process("gpu2", lambda process: process["pid"] not in (None, before["gpu2"]), 10)
        await owned.running(*FOUR)
        owned.gateway.signal(signal.SIGTERM)
        assert await owned.gateway.ended() == 0
        assert owned.ollamas() == []


async def test_what_a_killed_gateway_left_is_ended_where_it_does_not_fit_any_more(tmp_path: Path) -> None:
    async with box(tmp_path, alike(2)) as owned:
        await owned.running("gpu0", "gpu1")
        await owned.chat()
        old = owned.ollamas()
        owned.gateway.end()
        owned.configure("ollama: {parallel: 7}\n")
        await owned.start()
        await owned.running("gpu0", "gpu1")
        assert not [each for each in old if is_alive(each)]
        assert [row["slots"] for row in (await owned.gateway.snapshot())["replicas"]] == [7, 7]


async def test_orphans_without_their_ollama_are_found_too(tmp_path: Path) -> None:
    async with box(tmp_path, alike(1)) as owned:
        await owned.running("gpu0")
        await owned.chat()
        leader = psutil.Process((await pids(owned))["gpu0"])
        runners = leader.children(recursive=True)
        owned.gateway.end()
        kill(leader.pid)
        await until(lambda: not is_alive(leader), 5, "the end of the Ollama")
        assert all(is_alive(each) for each in runners)
        await owned.start()
        await owned.running("gpu0")
        await gone(runners)
        assert await owned.chat() == "gpu0"


async def test_a_lost_gpu_takes_its_own_replica_only_and_brings_it_back(tmp_path: Path) -> None:
    async with box(tmp_path, four_unequal()) as owned:
        await owned.running(*FOUR)
        before = await pids(owned)
        lost_s = time.monotonic()
        lose(owned.nvml, 1)
        await owned.gateway.until(lambda page: page["replicas"][1]["held"] is not None, 10, "a hold")
        tell("a lost GPU gets no new requests", lost_s)
        await owned.until_process("gpu1", lambda process: process["state"] == "stopped", 10)
        row = await owned.gateway.replica("gpu1")
        assert "lost" in row["held"].lower()
        assert (await owned.gpu(1))["condition"] == "lost"
        assert "gpu1" not in await asyncio.gather(*(owned.chat() for _ in range(12)))
        assert {id: pid for id, pid in (await pids(owned)).items() if id != "gpu1"} == {
            id: pid for id, pid in before.items() if id != "gpu1"
        }
        assert not is_alive(psutil.Process(before["gpu1"])) if psutil.pid_exists(before["gpu1"]) else True
        found_s = time.monotonic()
        find(owned.nvml, 1)
        await owned.running(*FOUR)
        tell("a GPU that is back serves", found_s)
        await spread(owned, FOUR)


async def test_a_driver_that_hangs_makes_readings_old_and_stops_nothing(tmp_path: Path) -> None:
    async with box(tmp_path, four_unequal()) as owned:
        await owned.running(*FOUR)
        before = await pids(owned)
        hang(owned.nvml, 2)

        def only_one_hangs(page: dict[str, Any]) -> bool:
            return [gpu["condition"] for gpu in page["gpus"]] == ["ok", "ok", "hung", "ok"]

        await owned.gateway.until(only_one_hangs, 10, "one GPU that hangs")
        await spread(owned, FOUR)
        for number in (0, 1, 3):
            hang(owned.nvml, number)

        def all_hang(page: dict[str, Any]) -> bool:
            return all(gpu["condition"] in ("hung", "stale") for gpu in page["gpus"])

        await owned.gateway.until(all_hang, 15, "all GPUs that hang")
        await spread(owned, FOUR)
        _, metrics = await ask(owned.gateway.admin_port, "GET", "/metrics")
        assert "\ncorral_gpu_utilisation_ratio{" not in metrics, "what is not known is absent, not idle"
        assert await pids(owned) == before
        for number in range(4):
            hang(owned.nvml, number, hangs=False)

        def all_are_read(page: dict[str, Any]) -> bool:
            return all(gpu["condition"] == "ok" for gpu in page["gpus"])

        await owned.gateway.until(all_are_read, 10, "readings again")
        owned.gateway.signal(signal.SIGTERM)
        assert await owned.gateway.ended() == 0


async def test_a_gateway_stops_also_while_the_driver_hangs(tmp_path: Path) -> None:
    async with box(tmp_path, alike(2)) as owned:
        await owned.running("gpu0", "gpu1")
        hang(owned.nvml, 0)
        hang(owned.nvml, 1)
        await owned.gateway.until(lambda page: page["gpus"][0]["condition"] == "hung", 10, "a GPU that hangs")
        owned.gateway.signal(signal.SIGTERM)
        assert await owned.gateway.ended(15) == 0
        assert owned.ollamas() == []


async def test_an_error_of_the_gpu_restarts_its_replica_and_a_programs_own_does_not(tmp_path: Path) -> None:
    async with box(tmp_path, alike(2)) as owned:
        await owned.running("gpu0", "gpu1")
        before = await pids(owned)
        report(owned.nvml, 1, 31)  # a program's own fault
        await owned.gateway.until(lambda page: page["gpus"][1]["xid"] == 31, 10, "the error")
        assert await pids(owned) == before
        report(owned.nvml, 1, 95)  # memory that cannot be trusted
        await owned.until_process("gpu1", lambda process: process["state"] in ("stopping", "stopped"), 10)
        assert await owned.chat() == "gpu0"
        await owned.running("gpu0", "gpu1")
        after = await pids(owned)
        assert (after["gpu0"], after["gpu1"] != before["gpu1"]) == (before["gpu0"], True)


def wrap_ollama(owned: Box, case: str) -> None:
    """Put ``case`` (shell) before what the executable does."""
    path = owned.folder / "bin" / "ollama"
    text = path.read_text()
    path.write_text(text.replace("#!/bin/sh\n", f"#!/bin/sh\n{case}\n", 1))


async def test_a_crash_loop_is_given_up_visibly_and_taken_back_by_hand(tmp_path: Path) -> None:
    made = Box(tmp_path, alike(2), "restart: {first_s: 0.05, max_s: 0.1, give_up_after: 3, window_s: 60}\n")
    made.config.write_text(
        made.config.read_text().replace(
            "restart: {first_s: 0.1, max_s: 0.5, window_s: 60, ready_s: 20, stop_s: 3}\n", ""
        )
    )
    broken = tmp_path / "broken"
    broken.touch()
    wrap_ollama(
        made,
        f'if [ "$1" = serve ] && [ -e {broken} ] && [ "$CUDA_VISIBLE_DEVICES" = {made.uuids[1]} ]; then\n'
        "  echo 'Error: no kernel image is available' >&2; exit 3\nfi",
    )
    try:
        await made.start()
        await made.running("gpu0")
        await made.until_process("gpu1", lambda process: process["state"] == "failed", 20)
        process = await made.process("gpu1")
        assert process["restarts"] == 2
        row = await made.gateway.replica("gpu1")
        assert row["held"].startswith("failed: ")
        assert "no kernel image is available" in made.gateway.said()
        assert set(await asyncio.gather(*(made.chat() for _ in range(6)))) == {"gpu0"}
        await asyncio.sleep(0.5)
        assert (await made.process("gpu1"))["restarts"] == 2, "it is not tried any more"
        broken.unlink()
        ended = await corral("restart", "gpu1", "--admin", f"http://127.0.0.1:{made.gateway.admin_port}")
        assert (ended.code, ended.err) == (0, "")
        await made.running("gpu0", "gpu1")
    finally:
        made.end()


async def test_a_port_that_is_taken_is_passed_over(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        async with box(tmp_path, alike(2), f"ollama: {{first_port: {port}}}\n") as owned:
            await owned.running("gpu0", "gpu1")
            ports = [(await owned.process(id))["port"] for id in ("gpu0", "gpu1")]
            assert port not in ports
            assert all(each > port for each in ports)
            await spread(owned, ("gpu0", "gpu1"))


async def test_a_replica_that_fell_back_to_the_cpu_is_restarted_once(tmp_path: Path) -> None:
    made = Box(tmp_path, alike(1))
    blind = tmp_path / "blind"
    blind.touch()
    wrap_ollama(
        made, f'if [ "$1" = serve ] && [ -e {blind} ]; then rm {blind}; export CUDA_VISIBLE_DEVICES=GPU-gone; fi'
    )
    try:
        await made.start()
        await made.running("gpu0")
        first = (await pids(made))["gpu0"]
        await made.chat()
        await made.until_process("gpu0", lambda process: process["pid"] not in (None, first), 20)
        await made.running("gpu0")
        assert "replica_fell_back_to_cpu replica=gpu0 model=llama3.2:1b" in made.gateway.said()
        await made.chat()
        (model,) = await loaded((await made.process("gpu0"))["port"])
        assert model["size_vram"] == model["size"]
    finally:
        made.end()


async def test_a_rolling_restart_keeps_serving(tmp_path: Path) -> None:
    async with box(tmp_path, alike(3)) as owned:
        ids = ("gpu0", "gpu1", "gpu2")
        await owned.running(*ids)
        before = await pids(owned)
        status, page = await ask(owned.gateway.admin_port, "POST", "/restart")
        assert (status, page["restarting"]) == (200, list(ids))
        away = 0

        def all_new(page: dict[str, Any]) -> bool:
            nonlocal away
            held = [row for row in page["replicas"] if row["held"] is not None]
            away = max(away, len(held))
            return not held and all(row["process"]["pid"] != before[row["id"]] for row in page["replicas"])

        done = asyncio.create_task(owned.gateway.until(all_new, 60, "three new Ollamas"))
        while not done.done():
            await owned.chat()
        await done
        assert away == 1, "one at a time"


async def test_a_replica_is_stopped_to_free_its_gpu_and_started_again(tmp_path: Path) -> None:
    async with box(tmp_path, alike(2)) as owned:
        await owned.running("gpu0", "gpu1")
        admin = f"http://127.0.0.1:{owned.gateway.admin_port}"
        pid = (await pids(owned))["gpu1"]
        assert (await corral("stop", "gpu1", "--admin", admin)).code == 0
        await owned.until_process("gpu1", lambda process: process["state"] == "stopped", 10)
        await until(lambda: not psutil.pid_exists(pid) or not is_alive(psutil.Process(pid)), 5, "its end")
        assert set(await asyncio.gather(*(owned.chat() for _ in range(6)))) == {"gpu0"}
        assert (await corral("start", "gpu1", "--admin", admin)).code == 0
        await owned.running("gpu0", "gpu1")


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether that process does with this signal what it wants."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


async def test_a_gateway_that_is_told_to_stop_while_a_driver_holds_up_its_start_stops(tmp_path: Path) -> None:
    made = Box(tmp_path, alike(2))
    hang(made.nvml, 0)
    hang(made.nvml, 1)
    try:
        made.gateway.begin()
        await until(lambda: handles(made.gateway.pid, signal.SIGTERM), 20, "a gateway that listens to signals")
        began_s = time.monotonic()
        made.gateway.signal(signal.SIGTERM)
        assert await made.gateway.ended(5) == 0
        assert time.monotonic() - began_s < 5
        assert made.ollamas() == []
    finally:
        made.end()


async def test_models_are_warm_before_a_replica_takes_requests(tmp_path: Path) -> None:
    async with box(tmp_path, alike(1), "warmup: {models: [llama3.2:1b, not-here], seconds: 0.5}\n") as owned:
        await owned.running("gpu0")
        assert [each["name"] for each in await loaded((await owned.process("gpu0"))["port"])] == ["llama3.2:1b"]
        assert "not-here" in owned.gateway.said()


async def test_a_reload_changes_what_runs(tmp_path: Path) -> None:
    async with box(tmp_path, alike(3), "gpus: [0, 1]\n") as owned:
        await owned.running("gpu0", "gpu1")
        before = await pids(owned)
        owned.configure("gpus: [0, {gpus: [2], slots: 3}]\n")
        owned.gateway.signal(signal.SIGHUP)
        await owned.gateway.until(
            lambda page: [row["id"] for row in page["replicas"]] == ["gpu0", "gpu2"], 15, "the new set"
        )
        await owned.running("gpu0", "gpu2")
        assert (await pids(owned))["gpu0"] == before["gpu0"]
        assert not psutil.pid_exists(before["gpu1"]) or not is_alive(psutil.Process(before["gpu1"]))
        owned.configure("gpus: [0, 9]\n")
        owned.gateway.signal(signal.SIGHUP)
        await owned.gateway.says("reload_refused")
        assert "there is no GPU 9 on this machine" in owned.gateway.said()
        await owned.chat()


async def test_a_second_gateway_on_the_same_state_says_who_has_it(tmp_path: Path) -> None:
    async with box(tmp_path, alike(1)) as owned:
        await owned.running("gpu0")
        ended = await corral("serve", "--config", str(owned.config), **_own(owned))
        assert ended.code == 1
        assert f"in use by the gateway with process number {owned.gateway.pid}" in ended.err
        assert await owned.chat() == "gpu0"


async def test_without_the_program_it_is_said_what_to_do(tmp_path: Path) -> None:
    made = Box(tmp_path, alike(1), "ollama: {binary: /nowhere/ollama}\n")
    ended = await corral("serve", "--config", str(made.config), **_own(made))
    assert ended.code == 1
    assert "error: the program '/nowhere/ollama' was not found" in ended.err


def _own(owned: Box) -> dict[str, str]:
    """The box's environment, as far as it differs from this process's."""
    return {name: value for name, value in owned.environ.items() if os.environ.get(name) != value}


async def test_the_plan_is_what_serve_starts(tmp_path: Path) -> None:
    async with box(tmp_path, four_unequal()) as owned:
        await owned.running(*FOUR)
        ended = await corral("plan", "--config", str(owned.config), **_own(owned))
        assert (ended.code, ended.err) == (0, "")
        for id in FOUR:
            assert id in ended.out
        ended = await corral("doctor", "--config", str(owned.config), **_own(owned))
        assert ended.code in (0, 1, 2)
        assert "570.86.15" in ended.out
