"""Tables, sizes and times as ``ollama`` prints them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

_GAP: Final = "    "
_HOURS: Final = (("days", 24 * 14, 24), ("weeks", 24 * 60, 24 * 7), ("months", 24 * 730, 24 * 30))
_FOREVER_YEARS: Final = 20
_FRACTION: Final = re.compile(r"(\.\d{6})\d+")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, the last one, too."""
    lines = [list(header), *[list(row) for row in rows]] if header else [list(row) for row in rows]
    count = max((len(line) for line in lines), default=0)
    lines = [line + [""] * (count - len(line)) for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in range(count)]
    return "".join(
        "".join(cell.ljust(width) + _GAP for cell, width in zip(line, widths, strict=True)) + "\n" for line in lines
    )


def human_bytes(size: int) -> str:
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size >= factor:
            value = size / factor
            return f"{int(value)} {unit}" if value >= 10 or value == int(value) else f"{value:.1f} {unit}"
    return f"{size} B"


def human_time(stamp: str, now: datetime | None = None) -> str:
    """How long ago, or how long until."""
    moment = moment_of(stamp)
    if moment.year == 1:
        return "Never"
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    if seconds / 3600 / 24 / 365 < -_FOREVER_YEARS:
        return "Forever"
    return f"{_duration(-seconds)} from now" if seconds < 0 else f"{_duration(seconds)} ago"


def moment_of(stamp: str) -> datetime:
    return datetime.fromisoformat(_FRACTION.sub(r"\1", stamp))


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "Less than a second"
    if seconds < 60:
        return "1 second" if int(seconds) == 1 else f"{int(seconds)} seconds"
    if seconds < 3600:
        return "About a minute" if int(seconds) < 120 else f"{int(seconds / 60)} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours < 48:
        return "About an hour" if hours == 1 else f"{hours} hours"
    for unit, below, size in _HOURS:
        if hours < below:
            return f"{hours // size} {unit}"
    return f"{hours // 24 // 365} years"


def go_duration(nanoseconds: int) -> str:
    """As Go's ``time.Duration`` prints itself."""
    for unit, size in (("ns", 1), ("µs", 10**3), ("ms", 10**6)):
        if nanoseconds < size * 1000:
            return f"{_plain(nanoseconds / size)}{unit}"
    minutes, rest = divmod(nanoseconds, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    start = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{start}{_plain(rest / 1e9)}s"


def _plain(number: float) -> str:
    return f"{number:.9f}".rstrip("0").rstrip(".")
