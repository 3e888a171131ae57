"""The terminal's picture, with Textual's own harness, against a stream of real records."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from textual.events import MouseScrollUp
from textual.pilot import Pilot

from corral.gateway.cli.top.app import Top
from corral.gateway.cli.top.marks import ASCII, DARK, LIGHT, Look
from corral.gateway.cli.top.panel import Panel
from tests.gateway.cli.top.fake_admin import FakeAdmin, fake_admin

LIMIT_S = 30.0


class Watched:
    """The app as a person sees it."""

    def __init__(self, app: Top, pilot: Pilot[int]) -> None:
        self.app = app
        self.pilot = pilot

    @property
    def lines(self) -> list[str]:
        strips = self.app.screen._compositor.render_strips()
        return ["".join(segment.text for segment in strip).rstrip() for strip in strips]

    def part(self, name: str) -> list[str]:
        """The lines of one panel."""
        region = self.app.query_one(f"#{name}", Panel).region
        return self.lines[region.y : region.y + region.height]

    async def until(self, holds: Callable[[], bool]) -> None:
        ends_s = time.monotonic() + LIMIT_S
        while not holds():
            assert time.monotonic() < ends_s, "\n".join(self.lines)
            await self.pilot.pause(0.02)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()


@pytest_asyncio.fixture
async def admin() -> AsyncIterator[FakeAdmin]:
    async with fake_admin() as made:
        yield made


@asynccontextmanager
async def watched(
    admin: FakeAdmin, size: tuple[int, int] = (80, 24), look: Look | None = None, *, readonly: bool = False
) -> AsyncIterator[Watched]:
    app = Top(admin.url, look or Look(palette=DARK), readonly=readonly)
    async with app.run_test(size=size) as pilot:
        made = Watched(app, pilot)
        await made.until(lambda: "live" in made.lines[0] and len(app.picture.lines) == len(admin.records["log"]))
        await made.until(lambda: not any("no request yet" in line for line in made.lines))
        yield made


@pytest.mark.parametrize("size", [(80, 24), (160, 50)])
async def test_it_shows_gpus_replicas_what_is_under_way_requests_and_the_log(
    admin: FakeAdmin, size: tuple[int, int]
) -> None:
    admin.page["advice"] = ["gpu1 is small, and so on" + " and on" * 10]
    async with watched(admin, size) as top:
        assert top.lines[0].startswith("Corral 0.1.0  ready  6 in flight  18 waiting")
        assert top.lines[1].startswith("advice: gpu1 is small, and so on and on and on")
        assert top.lines[1].endswith("…") == (size[0] == 80)
        assert [line[:13].split()[:3] for line in top.part("gpus")[1:4]] == [
            ["0", "RTX", "3060"],
            ["1", "RTX", "4090"],
            ["2", "RTX", "5090"],
        ]
        assert top.part("replicas")[1].startswith("▸ rtx-3060  up               ━━━━━   2/2")
        assert top.part("now")[1].startswith("waits 1   qwen2.5:7b")
        newest = admin.records["requests"][-1]
        assert newest["model"][:14] in top.part("requests")[1]
        assert "model_loaded" in top.part("log")[1]
        assert all(len(line) <= size[0] for line in top.lines)


async def test_it_follows_the_size_of_the_terminal(admin: FakeAdmin) -> None:
    async with watched(admin) as top:
        assert "OLLAMA" not in top.part("replicas")[0]
        await top.pilot.resize_terminal(160, 50)
        await top.until(lambda: "OLLAMA" in top.part("replicas")[0])
        await top.pilot.resize_terminal(80, 12)
        await top.until(lambda: len(top.lines) == 12 and top.lines[0].startswith("Corral"))
        await top.until(lambda: any("rtx-3060" in line for line in top.lines))


async def test_a_gateway_of_another_version_in_its_place_ends_it_with_what_to_do(
    admin: FakeAdmin,
) -> None:
    async with watched(admin) as top:
        admin.records["snapshot"] = {"schema": 99, "version": "7.0"}
        await top.until(lambda: top.app.return_code is not None)
        assert top.app.return_code == 1


async def test_new_requests_and_lines_appear(admin: FakeAdmin) -> None:
    async with watched(admin) as top:
        request = admin.records["requests"][0] | {"model": "brand-new:1b", "number": 999}
        admin.say("request", request)
        admin.say("log", {"number": 9, "at": 1.0, "level": "error", "source": "x", "text": "gpu_lost gpu=1"})
        await top.until(lambda: "brand-new:1b" in top.part("requests")[1])
        assert "gpu_lost gpu=1" in top.part("log")[-1]


async def test_a_replica_is_drained_after_a_yes(admin: FakeAdmin) -> None:
    async with watched(admin) as top:
        await top.press("down", "d")
        await top.until(lambda: any("Drain rtx-4090?" in line for line in top.lines))
        await top.press("y")
        await top.until(lambda: any("rtx-4090 is drained" in line for line in top.lines))
        assert admin.ordered == ["drain rtx-4090"]


@pytest.mark.parametrize("key", ["n", "escape", "enter"])
async def test_nothing_is_done_after_anything_else(admin: FakeAdmin, key: str) -> None:
    async with watched(admin) as top:
        await top.press("d")
        await top.until(lambda: any("Drain rtx-3060?" in line for line in top.lines))
        await top.press(key)
        await top.until(lambda: top.lines[0].startswith("Corral"))
        assert admin.ordered == []


async def test_what_the_gateway_refuses_is_said(admin: FakeAdmin) -> None:
    admin.refusal = "rtx-3060 is about to end for good"
    async with watched(admin) as top:
        await top.press("d", "y")
        await top.until(lambda: top.lines[-1] == admin.refusal)


async def test_orders_to_processes_are_not_asked_for_where_corral_runs_none(admin: FakeAdmin) -> None:
    async with watched(admin) as top:
        for key, verb in (("R", "restart"), ("x", "stop"), ("a", "start")):
            await top.press(key)
            said = f"rtx-3060 is not run by Corral; whoever runs it can {verb} it"
            await top.until(lambda said=said: top.lines[-1] == said)  # type: ignore[misc]
        await top.press("r")
        await top.until(lambda: top.lines[-1] == "rtx-3060 is not drained")


async def test_the_ollama_of_a_replica_is_restarted_stopped_and_started(admin: FakeAdmin) -> None:
    admin.page["replicas"][0]["process"] = {"state": "running", "reason": "answers", "restarts": 0}
    async with watched(admin) as top:
        for key, verb in (("R", "restart"), ("x", "stop"), ("a", "start")):
            await top.pilot.press(key, "y")
            await top.until(lambda verb=verb: f"{verb} rtx-3060" in admin.ordered)  # type: ignore[misc]


async def test_readonly_does_nothing_to_a_replica(admin: FakeAdmin) -> None:
    async with watched(admin, readonly=True) as top:
        await top.press("d", "y", "R", "y")
        assert top.lines[0].startswith("Corral")
        assert top.lines[-1].endswith("read only")
        assert admin.ordered == []


async def test_only_what_has_the_text_in_it_is_shown_until_escape(admin: FakeAdmin) -> None:
    async with watched(admin, (160, 50)) as top:
        await top.press("slash", *"MINILM", "enter")
        await top.until(lambda: all("all-minilm" in line for line in top.part("requests")[1:] if line))
        assert top.lines[-1].startswith("only 'MINILM'")
        assert "nothing has 'MINILM' in it" in top.part("now")[1]
        await top.press("escape")
        await top.until(lambda: any("llama3.1:8b" in line for line in top.part("requests")))


async def test_requests_are_sorted_by_key_and_by_a_click_on_a_title(admin: FakeAdmin) -> None:
    longest = max(admin.records["requests"], key=lambda request: request["total_s"])
    async with watched(admin, (160, 50)) as top:
        for _ in range(3):
            await top.press("s")
        await top.until(lambda: longest["id"] in top.part("requests")[1])
        assert "TOTAL▼" in top.part("requests")[0]
        titles = top.part("requests")[0]
        await top.pilot.click("#requests", offset=(titles.index("QUEUE"), 0))
        await top.until(lambda: "QUEUE▼" in top.part("requests")[0])


async def test_a_click_chooses_a_replica(admin: FakeAdmin) -> None:
    async with watched(admin) as top:
        await top.pilot.click("#replicas", offset=(4, 3))
        await top.until(lambda: top.part("replicas")[3].startswith("▸ rtx-5090"))


async def test_the_requests_are_paged_through_and_any_part_moves_with_the_wheel(admin: FakeAdmin) -> None:
    newest, oldest = admin.records["requests"][-1]["id"], admin.records["requests"][0]["id"]
    async with watched(admin, (160, 24)) as top:
        assert newest in top.part("requests")[1]
        await top.press("pagedown", "pagedown", "pagedown")
        await top.until(lambda: oldest in top.part("requests")[-1])
        await top.press("pageup", "pageup", "pageup")
        await top.until(lambda: newest in top.part("requests")[1])
        before = top.part("log")
        await top.pilot._post_mouse_events([MouseScrollUp], "#log")
        await top.until(lambda: top.part("log")[1:] != before[1:])


async def test_a_record_that_is_not_as_expected_ends_it_with_a_message(admin: FakeAdmin) -> None:
    async with watched(admin) as top:
        admin.say("snapshot", admin.page | {"gpus": [{}]})
        await top.until(lambda: top.app.return_code == 70)


async def test_frozen_it_stands_still_until_it_is_let_go_on(admin: FakeAdmin) -> None:
    async with watched(admin) as top:
        await top.press("space")
        await top.until(lambda: top.lines[0].endswith("frozen"))
        admin.page["version"] = "9.9.9"
        await top.pilot.pause(0.3)
        assert "9.9.9" not in top.lines[0]
        await top.press("space")
        await top.until(lambda: top.lines[0].startswith("Corral 9.9.9"))


async def test_a_stream_that_broke_off_is_told_and_taken_up_again_without_showing_anything_twice(
    admin: FakeAdmin,
) -> None:
    async with watched(admin, (160, 50)) as top:
        admin.is_shut = True
        admin.cut()
        await top.until(lambda: "stale" in top.lines[0] and "again in" in top.lines[0])
        await top.until(lambda: "503" in top.lines[0])
        admin.is_shut = False
        await top.until(lambda: top.lines[0].endswith("live"))
        assert admin.streams == 2
        await top.until(lambda: len(top.app.picture.lines) == len(admin.records["log"]))
        assert len(top.app.picture.requests) == len(admin.records["requests"])


async def test_keys_are_explained_and_any_key_closes_that(admin: FakeAdmin) -> None:
    async with watched(admin) as top:
        for key in ("q", "d"):
            await top.press("question_mark")
            await top.until(lambda: any("freeze the picture" in line for line in top.lines))
            await top.press(key)
            await top.until(lambda: top.lines[0].startswith("Corral"))
        assert admin.ordered == []


async def test_names_that_clients_made_up_do_not_steer_the_terminal(admin: FakeAdmin) -> None:
    name = "\x1b]0;mine\x07[red]b\u202eold[/red]"
    for request in admin.records["requests"]:
        request["model"] = name
    admin.page["requests"]["waiting"][0]["model"] = name
    async with watched(admin, (160, 50)) as top:
        await top.until(lambda: "?]0;mine?[red]b?old[/red]" in top.part("requests")[1])
        assert "?]0;mine?[red]b?old[/red]" in top.part("now")[1]
        assert all(letter.isprintable() for line in top.lines for letter in line)


async def test_ascii_stays_ascii(admin: FakeAdmin) -> None:
    admin.page["advice"] = ["something long " * 20]
    admin.page["requests"]["waiting"][0]["model"] = "größe:7b"
    async with watched(admin, (160, 50), Look(ASCII, LIGHT)) as top:
        await top.press("s", "s")
        await top.until(lambda: "TOTALv" in top.part("requests")[0] or "1ST BYTEv" in top.part("requests")[0])
        assert "\n".join(top.lines).isascii()
        assert "gr??e:7b" in top.part("now")[1]


async def test_a_gpu_that_is_not_read_says_why_and_shows_no_numbers(admin: FakeAdmin) -> None:
    admin.page["gpus"][1] |= {"condition": "lost", "reason": "fell off the bus"}
    async with watched(admin) as top:
        line = top.part("gpus")[2]
        assert "lost" in line
        assert "fell off the bus" in line
        assert "%" not in line


async def test_q_quits(admin: FakeAdmin) -> None:
    async with watched(admin) as top:
        await top.press("q")
        await top.until(lambda: not top.app.is_running or top.app._exit)
