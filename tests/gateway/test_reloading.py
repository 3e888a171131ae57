"""A reload is all or nothing, one at a time, and tells what became of it; a changed file is noticed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from corral.errors import ConfigError, OperatorError
from corral.gateway.config import Config
from corral.gateway.config.sources import Sources
from corral.gateway.reloading import Outcome, Reloader
from corral.gateway.watching import PERIOD_S, watch
from corral.model import Policy

TEXT = 'replicas: [{id: a, url: "http://127.0.0.1:21001"}]\n'


class Runs:
    """Notes what it is told; ``fails`` is what this machine has against it, ``gate`` holds up what can fail."""

    def __init__(self) -> None:
        self.used: list[int] = []
        self.counted: list[bool] = []
        self.carrying = 0
        self.checked = 0
        self.fails: OperatorError | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def check(self, config: Config) -> None:
        self.checked += 1
        if self.fails is not None:
            raise self.fails

    async def carry_out(self, config: Config) -> None:
        self.carrying += 1
        assert self.carrying == 1, "two reloads at a time"
        await self.gate.wait()
        self.carrying -= 1
        if self.fails is not None:
            raise self.fails

    def use(self, config: Config, policy: Policy) -> None:
        self.used.append(config.queue.max_requests)

    def reloaded(self, *, ok: bool) -> None:
        self.counted.append(ok)


def reloader(folder: Path, more: str = "") -> tuple[Reloader, Runs, Path]:
    path = folder / "corral.yaml"
    path.write_text(TEXT + more)
    sources, runs = Sources(path, {}), Runs()
    return Reloader(sources, sources.settle(), runs), runs, path


async def test_what_changes_is_told_line_by_line_and_used(tmp_path: Path) -> None:
    made, runs, path = reloader(tmp_path)
    path.write_text(TEXT + "queue: {max_requests: 7}\nlisten: 127.0.0.1:5\n")
    outcome = await made.reload()
    changes = ("listen: 127.0.0.1:11434 → 127.0.0.1:5 (needs a restart)", "queue.max_requests: 512 → 7")
    assert outcome == Outcome(True, changes, ("listen",))
    assert (runs.used, runs.counted) == ([7], [True])
    assert made.settled.config.queue.max_requests == 7
    assert str(made.settled.origin("queue.max_requests")) == f"{path}:2"
    assert await made.reload() == Outcome(True, (), ("listen",))  # it is still to come
    path.write_text(TEXT)
    assert (await made.reload()).needs_restart == () == made.needs_restart


async def test_a_dry_run_tells_the_same_and_changes_nothing(tmp_path: Path) -> None:
    made, runs, path = reloader(tmp_path)
    path.write_text(TEXT + "queue: {max_requests: 7}\n")
    outcome = await made.reload(dry_run=True)
    assert outcome == Outcome(False, ("queue.max_requests: 512 → 7",))
    assert (runs.used, runs.counted, runs.checked) == ([], [], 1)
    assert made.settled.config.queue.max_requests == 512


async def test_a_bad_file_changes_nothing_and_is_told_with_its_places(tmp_path: Path) -> None:
    made, runs, path = reloader(tmp_path)
    path.write_text(TEXT + "queue: {max_request: 7}\n")
    outcome = await made.reload()
    assert not outcome.used
    assert str(outcome.error).startswith(f"{path}:2:9: queue.max_request: unknown key; did you mean 'max_requests'?")
    assert [(each.line, each.column, each.path) for each in outcome.problems] == [(2, 9, "queue.max_request")]
    assert (runs.used, runs.counted) == ([], [False])
    assert made.settled.config.queue.max_requests == 512
    path.unlink()
    assert "no such file" in str((await made.reload(dry_run=True)).error)
    assert runs.counted == [False]


async def test_of_thousands_of_problems_the_log_has_the_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made, _, path = reloader(tmp_path)
    path.write_text(TEXT + "".join(f"no_{number}: 1\n" for number in range(3000)))
    outcome = await made.reload()
    assert len(outcome.problems) == 3000
    (line,) = [record.getMessage() for record in caplog.records]
    assert "no_0: unknown key" in line
    assert len(line) < 2200


async def test_what_this_machine_cannot_carry_out_changes_nothing(tmp_path: Path) -> None:
    made, runs, path = reloader(tmp_path)
    path.write_text(TEXT + "queue: {max_requests: 7}\n")
    runs.fails = ConfigError("gpus[0]: there is no GPU 7")
    for dry_run in (True, False):
        outcome = await made.reload(dry_run=dry_run)
        assert (outcome.error, outcome.problems, outcome.used) == ("gpus[0]: there is no GPU 7", (), False)
    assert (runs.used, runs.counted) == ([], [False])


async def test_a_policy_is_not_made_on_the_event_loop(tmp_path: Path) -> None:
    """Its file is read, and its code runs."""
    made, _, path = reloader(tmp_path)
    text = "import threading\nassert threading.current_thread() is not threading.main_thread()\n"
    (tmp_path / "mine.py").write_text(text + "class Mine:\n    def choose(self, request, candidates, rng): ...\n")
    path.write_text(TEXT + "policy: {path: mine.py, name: Mine}\n")
    assert (await made.reload()).used


async def test_reloads_go_one_after_the_other_and_the_last_file_wins(tmp_path: Path) -> None:
    made, runs, path = reloader(tmp_path)
    runs.gate.clear()
    path.write_text(TEXT + "queue: {max_requests: 1}\n")
    first = asyncio.create_task(made.reload())
    async with asyncio.timeout(5):
        while not runs.carrying:
            await asyncio.sleep(0)
    path.write_text(TEXT + "queue: {max_requests: 2}\n")
    others = [asyncio.create_task(made.reload()) for _ in range(3)]
    runs.gate.set()
    outcomes = await asyncio.gather(first, *others)
    assert [len(outcome.changes) for outcome in outcomes] == [1, 1, 0, 0]
    assert runs.used == [1, 2, 2, 2]


class Ticks:
    """Time for :func:`watch`: a look is taken whenever the test says so."""

    def __init__(self, made: Reloader) -> None:
        self.made = made
        self.reloads: list[bool] = []
        self._asks = asyncio.Queue[None]()
        self._next = asyncio.Queue[None]()
        self.is_over = False
        self._task = asyncio.create_task(watch(lambda: made.settled, self._reload, lambda: self.is_over, self._sleep))

    async def _sleep(self, seconds: float) -> None:
        assert seconds == PERIOD_S
        self._asks.put_nowait(None)
        await self._next.get()

    async def _reload(self) -> Outcome:
        outcome = await self.made.reload()
        self.reloads.append(outcome.used)
        return outcome

    async def look(self, times: int = 1) -> list[bool]:
        """The reloads of so many looks, whether each was used."""
        before = len(self.reloads)
        for _ in range(times):
            await self._asks.get()
            self._next.put_nowait(None)
        await self._asks.get()  # it is done with the last one
        self._asks.put_nowait(None)
        return self.reloads[before:]

    async def close(self) -> None:
        """The gateway is to stop: it ends with its next look."""
        self.is_over = True
        self._next.put_nowait(None)
        await asyncio.wait_for(self._task, 5)


async def test_a_changed_file_is_read_once_it_is_at_rest(tmp_path: Path) -> None:
    made, _, path = reloader(tmp_path)
    ticks = Ticks(made)
    assert await ticks.look(3) == []
    path.write_text(TEXT + "queue: {max_requests: 7")  # half of it
    assert await ticks.look() == []
    path.write_text(TEXT + "queue: {max_requests: 7}\n")
    assert await ticks.look() == []
    assert await ticks.look() == [True]
    assert made.settled.config.queue.max_requests == 7
    assert await ticks.look(3) == []
    await ticks.close()


async def test_a_refused_file_is_read_again_only_when_it_was_changed(tmp_path: Path) -> None:
    made, runs, path = reloader(tmp_path)
    ticks = Ticks(made)
    path.write_text(TEXT + "queue: {max_request: 7}\n")
    assert await ticks.look(5) == [False]
    assert runs.counted == [False]
    path.write_text(TEXT + "queue: {max_requests: 7}\n")
    assert await ticks.look(3) == [True]
    await ticks.close()


async def test_a_refused_file_is_read_again_when_the_policy_that_it_names_was_mended(tmp_path: Path) -> None:
    made, runs, path = reloader(tmp_path)
    ticks = Ticks(made)
    (tmp_path / "mine.py").write_text("class Mine: ...\n")
    path.write_text(TEXT + "policy: {path: mine.py, name: Mine}\n")
    assert await ticks.look(5) == [False]
    (tmp_path / "mine.py").write_text("class Mine:\n    def choose(self, request, candidates, rng): ...\n")
    assert await ticks.look(5) == [True]
    assert runs.counted == [False, True]
    await ticks.close()


async def test_a_file_that_is_gone_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    """Editors rename, and Kubernetes swaps a link to a folder."""
    made, _, path = reloader(tmp_path)
    ticks = Ticks(made)
    path.rename(tmp_path / "corral.yaml~")
    assert await ticks.look(3) == []
    (tmp_path / "new").write_text(TEXT + "queue: {max_requests: 7}\n")
    os.replace(tmp_path / "new", path)
    assert await ticks.look(2) == [True]
    await ticks.close()


async def test_a_swapped_link_and_a_changed_policy_are_noticed(tmp_path: Path) -> None:
    for name, wait in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        more = f"queue: {{max_wait_s: {wait}}}\npolicy: {{path: mine.py, name: Mine}}\n"
        (tmp_path / name / "corral.yaml").write_text(TEXT + more)
    (tmp_path / "data").symlink_to("one")
    (tmp_path / "corral.yaml").symlink_to("data/corral.yaml")
    policy = "class Mine:\n    def choose(self, request, candidates, rng): ...\n"
    (tmp_path / "mine.py").write_text(policy)
    sources = Sources(tmp_path / "corral.yaml", {})
    made = Reloader(sources, sources.settle(), Runs())
    ticks = Ticks(made)
    (tmp_path / "next").symlink_to("two")
    os.replace(tmp_path / "next", tmp_path / "data")
    assert await ticks.look(2) == [True]
    assert made.settled.config.queue.max_wait_s == 2
    (tmp_path / "mine.py").write_text(policy + "\n")
    assert await ticks.look(2) == [True]
    await ticks.close()


async def test_what_changes_while_the_gateway_stops_is_left(tmp_path: Path) -> None:
    made, _, path = reloader(tmp_path)
    ticks = Ticks(made)
    path.write_text(TEXT + "queue: {max_requests: 7}\n")
    assert await ticks.look() == []
    await ticks.close()
    assert ticks.reloads == []


async def test_a_reload_by_hand_is_not_done_once_more(tmp_path: Path) -> None:
    made, _, path = reloader(tmp_path)
    ticks = Ticks(made)
    path.write_text(TEXT + "queue: {max_requests: 7}\n")
    await made.reload()
    assert await ticks.look(4) == []
    await ticks.close()
