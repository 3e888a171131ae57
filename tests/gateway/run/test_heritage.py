"""What the next gateway does about the processes of one that was killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from corral.gateway.config.owned import RestartConfig
from corral.gateway.run.ledger import LedgerEntry
from corral.gateway.run.processes import boot_id, identify
from corral.model import ProcessState
from tests.gateway.run.stage import COMMAND, alive, free_port, home_of, plan, processes, stage, until

ROOT = Path(__file__).parents[3]
RUNNING = ProcessState.RUNNING


@asynccontextmanager
async def killed_gateway(state_dir: Path, *words: str) -> AsyncIterator[dict[str, LedgerEntry]]:
    """Run a gateway until its replicas serve, and kill it; yields what it had noted."""
    line = [sys.executable, "-m", "tests.gateway.run.lone_gateway", str(state_dir), str(free_port()), *words]
    gateway = await asyncio.create_subprocess_exec(*line, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert gateway.stdout is not None
        assert await asyncio.wait_for(gateway.stdout.readline(), 30) == b"running\n"
    finally:
        gateway.kill()
        await gateway.communicate()
    yield noted(state_dir)


def noted(state_dir: Path) -> dict[str, LedgerEntry]:
    page = json.loads((state_dir / "replicas.json").read_text())
    return {line["id"]: LedgerEntry(**line) for line in page["replicas"]}


def change(state_dir: Path, id: str, **values: object) -> None:
    """Falsify what is noted of one replica."""
    path = state_dir / "replicas.json"
    page = json.loads(path.read_text())
    next(line for line in page["replicas"] if line["id"] == id).update(values)
    path.write_text(json.dumps(page))


async def test_what_still_fits_is_kept_as_it_is_and_the_rest_ends_first(state_dir: Path) -> None:
    async with killed_gateway(state_dir, "same", "changed,FAKE_CHILD=session", "gone") as old:
        pids = {id: entry.pid or 0 for id, entry in old.items()}
        assert all(map(alive, pids.values())), "they outlive their gateway"
        plans = [plan("same"), plan("changed", NEW="1"), plan("new")]
        async with stage(state_dir, *plans, restart=RestartConfig(first_s=0.05, stop_s=0.5)) as on:
            assert (on.state("same"), on.status("same").adopted) == (RUNNING, True)
            assert (on.pid("same"), on.status("same").port) == (pids["same"], old["same"].port)
            assert "same" not in on.feed.held
            await on.running("changed", "new")
            assert not alive(pids["changed"])
            assert not alive(pids["gone"])
            assert {p.token for p in processes(state_dir)} == {entry.token for entry in noted(state_dir).values()}
    assert processes(state_dir) == []


async def test_a_kept_replica_is_watched_and_started_again_like_any_other(state_dir: Path) -> None:
    async with (
        killed_gateway(state_dir, "a,FAKE_CHILD=group") as old,
        stage(state_dir, plan("a", FAKE_CHILD="group")) as on,
    ):
        assert on.pid("a") == old["a"].pid
        (child,) = on.children("a")
        on.kill("a")
        await until(lambda: on.status("a").restarts == 1)
        await on.running("a")
        assert (alive(child), on.status("a").adopted, on.status("a").port) == (False, False, old["a"].port)


async def test_a_kept_replica_can_be_restarted(state_dir: Path) -> None:
    async with killed_gateway(state_dir, "a") as old, stage(state_dir, plan("a")) as on:
        on.supervisor.restart("a", "asked for")
        await until(lambda: on.status("a").restarts == 1)
        await on.running("a")
        assert not alive(old["a"].pid or 0)


async def test_those_that_wait_for_the_end_of_old_ones_are_not_told_to_be_stopped(state_dir: Path) -> None:
    """Else requests would be refused that only have to wait."""
    async with (
        killed_gateway(state_dir, "gone,FAKE_DEAF=1"),
        stage(state_dir, plan("a"), restart=RestartConfig(first_s=0.05, stop_s=0.5)) as on,
    ):
        await on.running("a")
        assert on.feed.told["a"] == [ProcessState.STARTING, RUNNING]


async def test_one_that_does_not_answer_any_more_is_not_kept(state_dir: Path) -> None:
    async with killed_gateway(state_dir, "a") as old:
        os.kill(old["a"].pid or 0, signal.SIGSTOP)
        async with stage(state_dir, plan("a"), restart=RestartConfig(first_s=0.05, stop_s=0.2)) as on:
            await on.running("a")
            assert (on.status("a").adopted, alive(old["a"].pid or 0)) == (False, False)


async def test_a_gateway_killed_between_start_and_note_leaves_nothing_unfound(state_dir: Path) -> None:
    async with killed_gateway(state_dir, "a") as old:
        change(state_dir, "a", pid=None, start_ticks=None)
        async with stage(state_dir, plan("a")) as on:
            assert on.pid("a") == old["a"].pid


async def test_without_a_readable_ledger_what_was_left_is_found_by_its_mark_and_ended(
    state_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with killed_gateway(state_dir, "a,FAKE_CHILD=session") as old:
        (state_dir / "replicas.json").write_text('{"version": 1, "replicas": [{"id"')
        rules = RestartConfig(first_s=0.05, stop_s=0.3)
        async with stage(state_dir, plan("a", FAKE_CHILD="session"), restart=rules) as on:
            await on.running("a")
            assert not alive(old["a"].pid or 0)
            assert len(processes(state_dir)) == 2
    assert (state_dir / "replicas.json.bad").exists()
    assert "ledger_put_aside" in caplog.text


async def test_a_noted_number_that_a_stranger_has_now_is_never_signalled(state_dir: Path) -> None:
    stranger = subprocess.Popen([*COMMAND], env={"FAKE_MUTE": "1"}, start_new_session=True)
    try:
        async with stage(state_dir, plan("a")) as on:
            await on.running("a")
            entry = noted(state_dir)["a"]
        id = identify(stranger.pid)
        assert id is not None
        lines = [
            replace_entry(entry, "a", id.pid, id.start_ticks + 1, boot_id()),
            replace_entry(entry, "b", id.pid, id.start_ticks, "another boot"),
            # Even a perfect match lacks the mark.
            replace_entry(entry, "c", id.pid, id.start_ticks, boot_id()),
        ]
        (state_dir / "replicas.json").write_text(json.dumps({"version": 1, "replicas": lines}))
        async with stage(state_dir, plan("a"), plan("b")) as on:
            await on.running("a", "b")
            assert not any(status.adopted for status in on.supervisor.statuses())
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def replace_entry(entry: LedgerEntry, id: str, pid: int, start_ticks: int, boot: str) -> dict[str, object]:
    return {
        "id": id,
        "token": entry.token,
        "signature": plan(id).signature,
        "port": entry.port,
        "boot": boot,
        "pid": pid,
        "start_ticks": start_ticks,
    }


async def test_a_copied_folder_does_not_claim_the_processes_of_the_original(state_dir: Path, tmp_path: Path) -> None:
    async with stage(state_dir, plan("a")) as on:
        await on.running("a")
        copy = tmp_path / "copy"
        copy.mkdir()
        for name in ("lock", "replicas.json"):
            (copy / name).write_bytes((state_dir / name).read_bytes())
        async with stage(copy, plan("b")) as other:
            await other.running("b")
            assert home_of(copy) != home_of(state_dir)
            assert alive(on.pid("a"))
        assert on.state("a") is RUNNING
        assert alive(on.pid("a"))


async def test_the_ledger_says_what_runs(state_dir: Path) -> None:
    one = replace(plan("a"), weight=2.0)
    async with stage(state_dir, one) as on:
        await on.running("a")
        entry = noted(state_dir)["a"]
        assert (entry.pid, entry.port, entry.signature) == (on.pid("a"), on.status("a").port, one.signature)
        assert entry.process == identify(on.pid("a"))
        assert (state_dir / "replicas.json").stat().st_mode & 0o777 == 0o600
        assert state_dir.stat().st_mode & 0o777 == 0o700
