"""The start-up card on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from rich.box import ROUNDED, SIMPLE_HEAD
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from corral.gateway.cli.card import Row

_WIDEST: Final = 1000


def print_boxes(title: str, url: str, admin_url: str, rows: Sequence[Row]) -> bool:
    """False, and nothing printed, where the terminal is too narrow for it: boxes of broken lines help nobody."""
    places = Table.grid(padding=(0, 2))
    places.add_row("clients", Text(url, style="bold cyan"))
    places.add_row("web page", Text(f"{admin_url}/", style="cyan"))
    panel = Panel(Group(places, _replicas(rows)), title=Text(title, style="bold green"), box=ROUNDED, expand=False)
    console = Console(highlight=False, emoji=False, markup=False)
    if console.measure(panel, options=console.options.update(max_width=_WIDEST)).maximum > console.width:
        return False
    console.print(panel)
    return True


def _replicas(rows: Sequence[Row]) -> Table:
    """From the GPU to the models; columns of which nothing is known are left out."""
    columns = [
        ("GPU", [row.gpu.removeprefix("GPU ") for row in rows]),
        ("replica", [row.replica for row in rows]),
        ("answers on", [row.url for row in rows]),
        ("weight", [row.weight for row in rows]),
        ("slots", [row.slots for row in rows]),
        ("models in", [row.folder for row in rows]),
    ]
    shown = [(head, cells) for head, cells in columns if any(cells)]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head, _ in shown:
        table.add_column(head, overflow="fold")
    for cells in zip(*(cells for _, cells in shown), strict=True):
        table.add_row(*(Text(cell or "-") for cell in cells))
    return table
