"""The lines around the picture: what the gateway is and has to do, advice, and the keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rich.text import Text

from corral.gateway.cli.top.marks import Look
from corral.gateway.cli.top.view import Record, View

STALE_S: Final = 2.5
"""A picture that is older says nothing of now."""
_NARROW: Final = 100


def summary(page: Record, look: Look, rates: tuple[float, float] | None = None) -> Text:
    """``rates``: requests and tokens a second, where they are known."""
    palette, requests = look.palette, page["requests"]
    ready = (
        ("ready", palette.good) if page["ready"] else (look.marks.plain(f"not ready: {page['reason']}"), palette.bad)
    )
    parts = [
        (f"Corral {page['version']}", palette.name),
        ready,
        (f"{requests['in_flight']} in flight", ""),
        (f"{requests['queued']} waiting{_oldest(requests)}", palette.warn if requests["queued"] else ""),
    ]
    if rates is not None:
        parts += [(f"{rates[0]:.1f} req/s", ""), (f"{rates[1]:.0f} tok/s", "")]
    parts.append((look.marks.plain(page["policy"]), palette.dim))
    return Text("  ", no_wrap=True, overflow=look.marks.overflow).join(Text(*part) for part in parts)


def _oldest(requests: Record) -> str:
    oldest_s = requests["oldest_wait_s"]
    return "" if oldest_s is None else f", oldest {oldest_s:.0f} s"


def freshness(look: Look, age_s: float | None, why: str, again_s: float | None, *, is_frozen: bool) -> Text:
    """How old the picture is; None: there is none. ``again_s``: in so many seconds the stream, which broke off
    (``why``), is tried again; None: it goes on."""
    palette = look.palette
    if is_frozen:
        return Text("frozen", palette.warn)
    stale = "no picture yet" if age_s is None else f"stale {age_s:.0f} s"
    if again_s is not None:
        return Text(f"{stale}: {look.marks.plain(why)}, again in {max(0.0, again_s):.0f} s", palette.bad)
    is_live = age_s is not None and age_s < STALE_S
    return Text("live", palette.good) if is_live else Text(stale, palette.warn)


def advice(page: Record, look: Look) -> Text:
    """The first piece of it, and how much more there is; empty: none."""
    found = page["advice"]
    if not found:
        return Text()
    more = f" (+{len(found) - 1})" if len(found) > 1 else ""
    return look.text(f"advice: {found[0]}{more}", look.palette.warn)


def foot(view: View, orders: Mapping[str, str] | None) -> Text:
    """The keys, as far as there is room. ``orders``: by key what may be done to a replica; None: nothing may."""
    look, palette, is_narrow = view.look, view.look.palette, view.width < _NARROW
    keys = {"q": "quit", "?": "help", "/": "filter", "s": "sort" if is_narrow else f"sort: {view.sort}"}
    keys |= {} if is_narrow else {"space": "freeze"}
    hints = [
        Text.assemble((key, palette.accent), (f" {what}", palette.dim))
        for key, what in (keys | dict(orders or {})).items()
    ]
    if orders is None:
        hints.append(Text("read only", palette.dim))
    if view.wanted:
        hints.insert(0, look.text(f"only {view.wanted!r}", palette.warn))
    return Text(" " if is_narrow else "  ", no_wrap=True, overflow=look.marks.overflow).join(hints)
