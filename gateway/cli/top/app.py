"""The terminal's picture of a gateway: keys, mouse, and where each part stands."""

from __future__ import annotations

import asyncio
import signal
import time
from random import Random
from typing import Any, ClassVar, Final

import aiohttp
from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input, Static

from corral.errors import OperatorError
from corral.gateway.cli.exits import EXIT_BUG
from corral.gateway.cli.top import orders, sheets
from corral.gateway.cli.top.command import check
from corral.gateway.cli.top.dialogs import Help, Question
from corral.gateway.cli.top.gpus import gpus
from corral.gateway.cli.top.layout import TALL, heights
from corral.gateway.cli.top.marks import Look
from corral.gateway.cli.top.panel import Panel
from corral.gateway.cli.top.picture import Picture
from corral.gateway.cli.top.stream import Broken, Reader
from corral.gateway.cli.top.summary import advice, foot, freshness, summary
from corral.gateway.cli.top.themes import DARK_THEME, LIGHT_THEME, STYLES
from corral.gateway.cli.top.view import SORTS, View

PANELS: Final = ("gpus", "replicas", "now", "requests", "log")
SAID_S: Final = 6.0
_TICK_S: Final = 0.5


class Top(App[int]):
    """Reads the ``/live`` of ``admin`` until somebody quits."""

    CSS = STYLES
    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = None
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("ctrl+c", "quit", "quit", show=False, priority=True),
        Binding("question_mark", "help", "help"),
        Binding("slash", "filter", "filter"),
        Binding("escape", "unfilter", "everything", show=False),
        Binding("s", "sort", "sort"),
        Binding("space", "freeze", "freeze"),
        Binding("down,j", "choose(1)", "next replica", show=False),
        Binding("up,k", "choose(-1)", "replica before", show=False),
        Binding("pagedown", "page(1)", "older requests", show=False),
        Binding("pageup", "page(-1)", "newer requests", show=False),
        *(Binding(key, f"order('{key}')", order.verb) for key, order in orders.ORDERS.items()),
    ]

    def __init__(self, admin: str, look: Look, *, readonly: bool = False, light: bool = False) -> None:
        super().__init__()
        self.picture = Picture()
        for theme in (DARK_THEME, LIGHT_THEME):
            self.register_theme(theme)
        self.theme = (LIGHT_THEME if light else DARK_THEME).name
        self._admin = admin
        self._look = look
        self._readonly = readonly
        self._chosen: str | None = None
        self._wanted = ""
        self._sort = SORTS[0]
        self._frozen = False
        self._broken: Broken | None = None
        self._broken_at_s = 0.0
        self._said: tuple[float, Text] | None = None
        self._top_line, self._told, self._foot_line = Static(), Static(), Static()
        self._panels = {name: Panel(look, id=name, ends=name == "log") for name in PANELS}
        self._asked = Input(
            placeholder="show only what has this text in it; Enter keeps it, Esc shows all", id="filter"
        )
        self._session: aiohttp.ClientSession | None = None
        self._reading: asyncio.Task[None] | None = None

    def compose(self) -> ComposeResult:
        yield self._top_line
        yield self._told
        yield from self._panels.values()
        yield self._foot_line
        yield self._asked

    # -- the stream

    async def on_mount(self) -> None:
        self.screen.set_class(self._look.marks.is_ascii, "ascii")
        self.set_interval(_TICK_S, self._show_state)
        self._session = aiohttp.ClientSession()
        reader = Reader(
            self._session,
            self._admin,
            begun=self._begin,
            take=self._take,
            broken=self._break_off,
            rng=Random(),
        )
        self._reading = asyncio.create_task(reader.run(), name="reader of the stream")
        self._reading.add_done_callback(self._reading_ended)
        for number in (signal.SIGTERM, signal.SIGHUP):  # else the terminal would be left as it is now
            asyncio.get_running_loop().add_signal_handler(number, self.exit)

    def _reading_ended(self, reading: asyncio.Task[None]) -> None:
        """It never ends by itself, but by a fault of ours or where another version of Corral began to answer."""
        error = None if reading.cancelled() else reading.exception()
        if error is not None:
            code, name = (error.exit_code, "") if isinstance(error, OperatorError) else (EXIT_BUG, type(error).__name__)
            self.exit(code, return_code=code, message=f"error: {name}{name and ': '}{error}")

    async def on_unmount(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        if self._session is not None:
            await self._session.close()

    def _begin(self) -> None:
        self._broken = None
        if not self._frozen:
            self.picture.begin()

    def _take(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "snapshot":
            check(data)
        if self._frozen:
            return
        self.picture.take(kind, data, time.monotonic())
        if kind == "snapshot":
            self.call_later(self._show)  # what comes with it has been taken by then

    def _break_off(self, broken: Broken) -> None:
        self._broken, self._broken_at_s = broken, time.monotonic()

    # -- the picture

    def _show(self) -> None:
        """Draw everything anew."""
        self._show_state()
        page = self.picture.page
        if page is None:
            return
        told = advice(page, self._look)
        self._told.update(told)
        view = View(self._look, self.size.width, self._wanted, self._sort)
        self._arrange(page, has_advice=bool(told))
        shown = {
            "gpus": gpus(page, view, self.picture.busy),
            "now": sheets.under_way(page, view),
            "requests": sheets.requests(self.picture.requests, view, page),
            "log": sheets.log(self.picture.lines, view),
        }
        for name, sheet in shown.items():
            self._panels[name].show(sheet)
        chosen = self._replica_id(page)
        self._panels["replicas"].show(sheets.replicas(page, view, chosen), chosen)

    def _show_state(self) -> None:
        """The first and the last line: they change also while nothing comes."""
        self._top_line.update(self._summary())
        self._foot_line.update(self._foot())

    def _arrange(self, page: dict[str, Any], *, has_advice: bool) -> None:
        lines = self.size.height
        found = heights(lines, gpus=len(page["gpus"]), replicas=len(page["replicas"]), advice=has_advice)
        self._told.display = has_advice
        for name, panel in self._panels.items():
            if name in found:  # the requests have what is left
                panel.display, panel.styles.height = found[name] > 0, found[name]
            panel.styles.margin = (int(lines >= TALL), 0, 0, 0)

    def _replica_id(self, page: dict[str, Any]) -> str | None:
        """The chosen one, or else the first."""
        ids = [replica["id"] for replica in page["replicas"]]
        if self._chosen not in ids:
            self._chosen = ids[0] if ids else None
        return self._chosen

    def _summary(self) -> Text:
        state, page, palette = self._state(), self.picture.page, self._look.palette
        if page is None:
            return Text.assemble((self._look.marks.plain(self._admin), palette.dim), "  ", state)
        now_s = time.monotonic()
        line = summary(page, self._look, self.picture.rates(now_s))
        room = self.size.width - state.cell_len - 1
        line.truncate(max(0, room), overflow=self._look.marks.overflow, pad=True)
        return line + Text(" ") + state

    def _state(self) -> Text:
        now_s = time.monotonic()
        age_s = None if self.picture.page is None else now_s - self.picture.page_at_s
        again_s = None if self._broken is None else self._broken_at_s + self._broken.again_in_s - now_s
        why = "" if self._broken is None else self._broken.why
        return freshness(self._look, age_s, why, again_s, is_frozen=self._frozen)

    def _foot(self) -> Text:
        if self._said is not None and time.monotonic() < self._said[0] + SAID_S:
            return self._said[1]
        view = View(self._look, self.size.width, self._wanted, self._sort)
        return foot(view, None if self._readonly else {key: order.verb for key, order in orders.ORDERS.items()})

    def _say(self, text: str, style: str) -> None:
        self._said = time.monotonic(), self._look.text(text, style)
        self._show()

    def on_resize(self, event: events.Resize) -> None:
        self._show()

    # -- keys and mouse

    def action_help(self) -> None:
        self.push_screen(Help())

    def action_freeze(self) -> None:
        self._frozen = not self._frozen
        self._show()

    def action_sort(self) -> None:
        self._sort = SORTS[(SORTS.index(self._sort) + 1) % len(SORTS)]
        self._show()

    def on_panel_sorted(self, message: Panel.Sorted) -> None:
        self._sort = message.sort
        self._show()

    def action_choose(self, step: int) -> None:
        page = self.picture.page
        if page is None or not page["replicas"]:
            return
        ids = [replica["id"] for replica in page["replicas"]]
        place = ids.index(self._replica_id(page) or ids[0])
        self._chosen = ids[min(len(ids) - 1, max(0, place + step))]
        self._show()

    def on_panel_chosen(self, message: Panel.Chosen) -> None:
        if message.panel.id == "replicas":
            self._chosen = message.key
            self._show()

    def action_page(self, step: int) -> None:
        panel = self._panels["requests"]
        panel.move(step * max(1, panel.room - 1))

    def action_filter(self) -> None:
        self._foot_line.display = False
        self._asked.display = True
        self._asked.value = self._wanted
        self._asked.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._wanted = event.value.strip()
        self._show()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self._close_filter()

    def action_unfilter(self) -> None:
        self._asked.value = ""
        self._wanted = ""
        self._close_filter()

    def _close_filter(self) -> None:
        self._asked.display = False
        self._foot_line.display = True
        self.set_focus(None)
        self._show()

    # -- what is done to a replica

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return not (action == "order" and self._readonly)

    def action_order(self, key: str) -> None:
        page, order, palette = self.picture.page, orders.ORDERS[key], self._look.palette
        replica_id = None if page is None else self._replica_id(page)
        if page is None or replica_id is None:
            return
        replica = next(one for one in page["replicas"] if one["id"] == replica_id)
        why_not = orders.problem(order, replica)
        if why_not is not None:
            self._say(why_not, palette.warn)
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self.run_worker(self._carry_out(order, replica_id), exit_on_error=False)

        self.push_screen(Question(self._look.text(orders.question(order, replica))), answered)

    async def _carry_out(self, order: orders.Order, replica_id: str) -> None:
        assert self._session is not None
        try:
            self._say(await orders.carry_out(self._session, self._admin, order, replica_id), self._look.palette.good)
        except OperatorError as error:
            self._say(str(error), self._look.palette.bad)
