"""The GPUs of the picture: what their sensors say, and how busy they were."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from rich.text import Text

from corral.gateway.cli.top.marks import Look
from corral.gateway.cli.top.picture import reading
from corral.gateway.cli.top.sheet import Column, Row, Sheet
from corral.gateway.cli.top.view import Record, View, id_width, number

GIB: Final = 1 << 30


def gpus(page: Record, view: View, busy: Callable[[str], Iterable[float | None]] | None) -> Sheet:
    """One line each: what its sensors say, and how busy it was, where that is known; where they say nothing: why."""
    owners = {uuid: replica["id"] for replica in page["replicas"] for uuid in replica["gpus"]}
    bar = 12 if view.is_wide else 5 if view.width < 100 else 8
    columns = [Column("GPU", 3), Column("NAME", 22 if view.is_wide else 13)]
    if view.is_wide:
        columns.append(Column("REPLICA", id_width(page)))
    columns += [
        Column("BUSY", bar + 5),
        Column("MEMORY", bar + (14 if view.is_wide else 7)),
        Column("TEMP", (bar + 7) if view.is_wide else 6),
        Column("POWER", (bar + 11) if view.is_wide else 5, right=not view.is_wide),
        Column("HISTORY" if busy else "", None),
    ]
    room = Sheet(tuple(columns), ()).widths(view.width)[-1]
    rows = []
    for gpu in page["gpus"]:
        sparkline = view.look.spark(busy(gpu["uuid"]) if busy else (), room, view.look.palette.accent)
        rows.append(Row(tuple(_gpu(gpu, view, owners, bar, sparkline)), gpu["uuid"]))
    return Sheet(tuple(columns), rows, "no GPU is read")


def _gpu(gpu: Record, view: View, owners: dict[str, str], bar: int, past: Text) -> list[Text]:
    look, palette = view.look, view.look.palette
    name = gpu["name"].removeprefix("NVIDIA ").removeprefix("GeForce ")
    cells = [look.text(gpu["gpu"], palette.name), look.text(name)]
    if view.is_wide:
        cells.append(look.text(owners.get(gpu["uuid"], "-")))
    if gpu["condition"] != "ok" or gpu["sample"] is None:
        style = palette.dim if gpu["condition"] == "unknown" else palette.bad
        return [*cells, look.text(gpu["condition"], style), Text(), Text(), Text(), look.text(gpu["reason"], style)]
    sensors = (_busy(gpu, look, bar), _memory(gpu, view, bar), _heat(gpu, view, bar), _power(gpu, view, bar))
    slowed = ", ".join(gpu["sample"]["throttles"] or ())
    return [*cells, *sensors, look.text(slowed, palette.warn) if slowed else past]


def _busy(gpu: Record, look: Look, bar: int) -> Text:
    ratio = reading(gpu, "utilisation_ratio")
    return look.bar(ratio, bar, look.palette.accent) + _percent(ratio)


def _percent(ratio: float | None) -> Text:
    return Text(f"{'?' if ratio is None else f'{ratio:.0%}':>5}")


def _memory(gpu: Record, view: View, bar: int) -> Text:
    used, total = reading(gpu, "memory_used_bytes"), reading(gpu, "memory_total_bytes")
    ratio = used / total if used is not None and total else None
    drawn = view.look.bar(ratio, bar, view.look.by(ratio, 0.85, 0.95))
    if view.is_wide:
        return drawn + Text(f"{number(used, 1 / GIB, '.1f')}/{number(total, 1 / GIB, '.0f')} GiB".rjust(14))
    return drawn + Text(f"{number(used, 1 / GIB, '.0f')}/{number(total, 1 / GIB, '.0f')}G".rjust(7))


def _heat(gpu: Record, view: View, bar: int) -> Text:
    now, limit = reading(gpu, "temperature_celsius"), reading(gpu, "slowdown_celsius")
    ratio = now / limit if now is not None and limit else None
    style = view.look.by(ratio, 0.9, 0.97)
    unit = "C" if view.look.marks.is_ascii else "°C"
    text = Text(f"{number(now)}{unit}".rjust(6), "" if style == view.look.palette.good else style)
    return view.look.bar(ratio, bar, style) + Text(" ") + text if view.is_wide else text


def _power(gpu: Record, view: View, bar: int) -> Text:
    now, limit = reading(gpu, "power_watts"), reading(gpu, "power_limit_watts")
    if not view.is_wide:
        return Text(f"{number(now)}W")
    ratio = now / limit if now is not None and limit else None
    return view.look.bar(ratio, bar, view.look.palette.accent) + Text(f"{number(now)}/{number(limit)} W".rjust(11))
