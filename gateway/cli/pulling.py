"""How far a pull has come: a bar on a terminal, else a line where something changes."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

import click

from corral.errors import OperatorError
from corral.gateway.cli.figures import size
from corral.gateway.cli.messages import visible

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

_STEP = 0.1
"""Of a layer, between two lines."""


class Display(Protocol):
    def show(self, line: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def follow(model: str, lines: Iterable[dict[str, Any]], display: Display) -> None:
    """Show the pull's lines to its end. Raises :class:`OperatorError` unless that is a good one."""
    last: dict[str, Any] = {}
    try:
        for last in lines:
            display.show(last)
    finally:
        display.close()
    if "error" in last:
        raise OperatorError(f"{visible(model)}: {visible(str(last['error']))}")
    if last.get("status") != "success":
        raise OperatorError(f"{visible(model)}: the gateway stopped telling before the pull had ended")


def display_for(model: str) -> Display:
    """What fits standard error, where progress goes."""
    return Bar(model) if sys.stderr.isatty() else Lines()


class _Layers:
    """What was said of each."""

    def __init__(self) -> None:
        self._sizes: dict[str, tuple[int, int]] = {}

    def take(self, line: dict[str, Any]) -> bool:
        """Whether the line is about a layer."""
        digest, total = line.get("digest"), line.get("total")
        if not isinstance(digest, str) or not isinstance(total, int) or total <= 0:
            return False
        completed = line.get("completed", 0)
        self._sizes[digest] = (min(completed if isinstance(completed, int) else 0, total), total)
        return True

    @property
    def completed(self) -> int:
        return sum(completed for completed, _ in self._sizes.values())

    @property
    def total(self) -> int:
        return sum(total for _, total in self._sizes.values())


class Bar:
    """One for all layers that are known by now."""

    def __init__(self, model: str) -> None:
        self._layers = _Layers()
        self._status = ""
        self._bar: ProgressBar[Any] = click.progressbar(
            length=1,
            label=f"pulling {visible(model)}",
            file=sys.stderr,
            item_show_func=lambda _: self._beside,
            show_percent=True,
        )
        self._bar.__enter__()

    @property
    def _beside(self) -> str:
        """How much of it is there; what else is going on, as long as that is."""
        return self._status or f"{size(self._layers.completed)} of {size(self._layers.total)}"

    def show(self, line: dict[str, Any]) -> None:
        self._status = "" if self._layers.take(line) else visible(str(line.get("status", "")))
        self._bar.length = max(1, self._layers.total)
        self._bar.finished = False
        self._bar.make_step(self._layers.completed - self._bar.pos)
        self._bar.render_progress()

    def close(self) -> None:
        self._bar.__exit__(None, None, None)


class Lines:
    """Each status once, and each layer by tenths."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def show(self, line: dict[str, Any]) -> None:
        status, total = visible(str(line.get("status", ""))), line.get("total")
        if not status or "error" in line:
            return
        share = line.get("completed", 0) / total if isinstance(total, int) and total > 0 else 1.0
        before = self._said.get(status)
        if before is not None and share < min(1.0, before + _STEP):
            return
        if before is None or share > before:
            self._said[status] = share
            part = f": {share:.0%} of {size(total)}" if isinstance(total, int) and total > 0 else ""
            click.echo(f"{status}{part}", err=True)

    def close(self) -> None:
        return
