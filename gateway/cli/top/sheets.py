"""The parts of the picture: replicas, the queue, requests and the log, each as a sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from rich.text import Text

from corral.gateway.cli.top.marks import Look
from corral.gateway.cli.top.picture import output_tokens, tokens_per_s
from corral.gateway.cli.top.sheet import Column, Row, Rows, Sheet
from corral.gateway.cli.top.view import SORTS, Record, View, clock_time, id_width, number, seconds

CLASSES: Final = ("interactive", "normal", "batch")
_LATE: Final = 1.5
"""Of what was predicted."""


# -- replicas


def replicas(page: Record, view: View, chosen: str | None = None) -> Sheet:
    """``chosen``: the id of the one that keys act upon; None: none is marked."""
    mark = 0 if chosen is None else 2
    columns = [
        Column("REPLICA", mark + id_width(page)),
        Column("STATE", 16),
        Column("BUSY", 11),
        Column("IN MEMORY", None),
    ]
    if view.is_wide:
        columns[3:] = [
            Column("OLLAMA", 8),
            Column("WEIGHT", 6, right=True),
            Column("IN MEMORY", None),
            Column("WHY", None),
        ]
    rows = []
    for replica in page["replicas"]:
        name, *cells = _replica(replica, view)
        marked = f"{view.look.marks.chosen if replica['id'] == chosen else ' ':<{mark}}" if mark else ""
        rows.append(Row((Text(marked, view.look.palette.accent) + name, *cells), replica["id"]))
    return Sheet(tuple(columns), rows, "there are no replicas")


def _replica(replica: Record, view: View) -> list[Text]:
    """On a narrow line why it is in its state stands before its models, where it is not what it should be."""
    look, palette = view.look, view.look.palette
    loaded = replica["loaded"]
    models = look.text("?" if loaded is None else " ".join(_models(replica, loaded)) or "-")
    quiet = replica["health"] == "up" and not replica["held"] and not replica["changing"]
    why = replica["held"] or replica["changing"] or replica["reason"]
    said = look.text(why, palette.dim if quiet else palette.warn)
    cells = [look.text(replica["id"], palette.name), _state(replica, look), _slots(replica, look)]
    if view.is_wide:
        return [*cells, look.text(replica["version"] or "?"), Text(f"{replica['weight']:g}"), models, said]
    return [*cells, models if quiet else Text.assemble(said, "  ", models)]


def _models(replica: Record, loaded: Sequence[str]) -> list[str]:
    """Those in memory, with how many requests each works on."""
    counts = replica["in_flight_by_model"]
    return [f"{name} ({counts[name]})" if counts.get(name) else name for name in loaded]


def state_of(replica: Record) -> str:
    """What an operator calls it."""
    process = replica["process"]
    state: str = replica["health"] if replica["held"] is None else process["state"] if process else "held"
    return state if replica["enabled"] else f"{state}, drained"


def _state(replica: Record, look: Look) -> Text:
    state, palette = state_of(replica), look.palette
    bad = state.startswith(("down", "failed"))
    return look.text(state, palette.bad if bad else palette.good if state == "up" else palette.warn)


def _slots(replica: Record, look: Look) -> Text:
    """How much of what it can do at once it does: its slots count per model."""
    slots, in_flight = replica["slots"], replica["in_flight"]
    room = None if slots is None else slots * max(1, len(replica["in_flight_by_model"]))
    ratio = None if not room else in_flight / room
    return look.bar(ratio, 5, look.palette.accent) + Text(f"{in_flight}/{'?' if room is None else room}".rjust(6))


# -- what goes on now


def under_way(page: Record, view: View) -> Sheet:
    """Who waits, the longest first, then who is with a replica; from a gateway that does not tell them apart: how many
    wait for what."""
    found = page["requests"]
    if found.get("waiting") is None:
        return _by_model(found, view)
    columns = [Column("NOW", 9), Column("MODEL", None), Column("WHERE", None if view.is_wide else 22)]
    columns += [Column("CLASS", 11)] if view.is_wide else []
    columns += [Column("TIME", 7, right=True), Column("PREDICTED", 12 if view.is_wide else 9)]
    rows = [_waits(one, view) for one in found["waiting"] if view.keeps(one["model"], one["need"], *one["replicas"])]
    rows += [_runs(one, view) for one in found["running"] if view.keeps(one["model"], one["replica"])]
    return Sheet(tuple(columns), [Row(tuple(cells)) for cells in rows], view.empty("no request is under way"))


def _waits(one: Record, view: View) -> list[Text]:
    look, palette = view.look, view.look.palette
    where = f"for {one['need']}"
    if view.is_wide and one["replicas"]:
        where += f" on {', '.join(one['replicas'])}"
    cells = [look.text(f"waits {one['position']}", palette.warn), look.text(one["model"] or f"({one['kind']})")]
    cells.append(look.text(where))
    cells += [look.text(_class(one), palette.dim)] if view.is_wide else []
    return [*cells, Text(seconds(one["waited_s"]), palette.warn if one["waited_s"] >= 10 else ""), Text()]


def _runs(one: Record, view: View) -> list[Text]:
    look, palette, predicted_s = view.look, view.look.palette, one["predicted_s"]
    doing = look.text(*(("answers", palette.good) if one["answering"] else ("sent", palette.accent)))
    cells = [doing, look.text(one["model"] or f"({one['kind']})"), look.text(one["replica"])]
    cells += [look.text(_class(one), palette.dim)] if view.is_wide else []
    done = None if not predicted_s else one["for_s"] / predicted_s
    style = palette.warn if done is not None and done > _LATE else palette.accent
    return [*cells, Text(seconds(one["for_s"])), look.bar(done, 12 if view.is_wide else 9, style)]


def _class(one: Record) -> str:
    return CLASSES[one["rank"]] if 0 <= one["rank"] < len(CLASSES) else "?"


def _by_model(found: Record, view: View) -> Sheet:
    columns = (Column("WAITING", 8, right=True), Column("MODEL", None))
    counts = found["queued_by_model"].items()
    rows = [Row((Text(str(count)), view.look.text(name))) for name, count in counts if view.keeps(name)]
    return Sheet(columns, rows, view.empty("nobody waits"))


# -- requests


def requests(found: Iterable[Record], view: View, page: Record) -> Sheet:
    """Those that are over, sorted as ``view`` wants it."""
    columns = [
        Column("ENDED", 8, sort="newest"),
        Column("MODEL", None),
        Column("REPLICA", id_width(page)),
        Column("QUEUE", 7, right=True, sort="queue"),
        Column("1ST BYTE", 9, right=True, sort="first byte"),
        Column("TOTAL", 7, right=True, sort="total"),
        Column("TOK/S", 6, right=True, sort="tokens/s"),
        Column("OUTCOME", 17 if view.is_wide else 13),
    ]
    if view.is_wide:
        columns[1:1] = [Column("ID", 15), Column("KIND", 11)]
        columns[5:5] = [Column("WHY", 17)]
        columns[9:9] = [Column("TOKENS", 9, right=True)]
    titles = tuple(_marked(column, view) for column in columns)
    shown = [request for request in found if view.keeps(*_told(request))]
    shown.reverse()
    if view.sort != SORTS[0]:
        shown.sort(key=_SORT_BY[view.sort], reverse=True)
    return Sheet(
        titles, Rows(shown, lambda request: Row(_request(request, view), request["id"])), view.empty("no request yet")
    )


def _told(request: Record) -> tuple[object, ...]:
    return tuple(request[name] for name in ("id", "kind", "model", "replica", "reason", "outcome", "tenant"))


def _marked(column: Column, view: View) -> Column:
    """With a mark if the rows go by it."""
    is_it = column.sort and column.sort == view.sort != SORTS[0]
    return column._replace(title=f"{column.title}{view.look.marks.down}") if is_it else column


_SORT_BY: Final[dict[str, Callable[[Record], float]]] = {
    "queue": lambda request: request["queue_s"],
    "first byte": lambda request: request["first_byte_s"] or -math.inf,
    "total": lambda request: request["total_s"],
    "tokens/s": lambda request: tokens_per_s(request) or -math.inf,
}


def _request(request: Record, view: View) -> tuple[Text, ...]:
    look, palette = view.look, view.look.palette
    cells = [
        Text(clock_time(request["at"] + request["total_s"]), palette.dim),
        look.text(request["model"] or f"({request['kind']})"),
        look.text(request["replica"] or "-"),
        Text(seconds(request["queue_s"]), palette.warn if request["queue_s"] >= 10 else ""),
        Text(seconds(request["first_byte_s"])),
        Text(seconds(request["total_s"])),
        Text(number(tokens_per_s(request), empty="-")),
        outcome(request, look),
    ]
    if view.is_wide:
        cells[1:1] = [look.text(request["id"], palette.dim), look.text(request["kind"])]
        cells[5:5] = [look.text(request["reason"] or "-", palette.dim)]
        cells[9:9] = [Text(number(output_tokens(request), empty="-"))]
    return tuple(cells)


def outcome(request: Record, look: Look) -> Text:
    """How it ended, and how many replicas had failed it before."""
    palette, said = look.palette, request["outcome"]
    style = palette.good if said == "ok" else palette.dim if said == "client_gone" else palette.bad
    style = palette.warn if said == "error_4xx" else style
    text = look.text(said.replace("_", " "), style)
    return text + Text(f" +{len(request['failed'])}", palette.warn) if request["failed"] else text


# -- the log


def log(lines: Iterable[Record], view: View) -> Sheet:
    columns = (Column("LOG", 8), Column("", None))
    kept = [line for line in lines if view.keeps(line["text"], line["level"])]
    rows = Rows(kept, lambda line: Row(_line(line, view)))
    return Sheet(columns, rows, view.empty("nothing was logged yet"))


def _line(line: Record, view: View) -> tuple[Text, ...]:
    palette = view.look.palette
    style = {"warning": palette.warn, "error": palette.bad, "critical": palette.bad}.get(line["level"], "")
    return Text(clock_time(line["at"]), palette.dim), view.look.text(line["text"], style)
