"""Prometheus' text format, written by templates that are kept: a page of thousands of lines has to cost little.

What stays the same between two scrapes (names, labels, edges of buckets) is made once; a scrape fills in numbers, a
histogram at a time. ``tests/gateway/serve/test_textformat.py`` holds it against Prometheus' own Python library.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from math import inf, isfinite
from typing import Final, TypeVar

from corral.gateway.serve.exposition import METRICS
from corral.gateway.serve.series import Histogram

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
MAX_KEPT: Final = 8_192
"""Of one metric, which is more than bounded labels give. Beyond, all are made anew: those of names that went do not
stay for ever."""

Labels = tuple[str, ...]
T = TypeVar("T")


class TextFormat:
    """Writes families of samples, one after the other, into one page."""

    def __init__(self) -> None:
        self._heads = {name: _head(name).encode() for name in METRICS}
        self._starts: dict[str, dict[Labels, bytes]] = {name: {} for name in METRICS}
        self._shown: dict[str, dict[Labels, _Shown]] = {name: {} for name in METRICS}
        self._parts: list[bytes] = []
        # Bytes, because numbers are put into them three times as fast as into a str.

    def begin(self) -> None:
        self._parts.clear()

    def samples(self, name: str, samples: Iterable[tuple[Labels, float | None]]) -> None:
        """A family of (label values, value); what is not known (None) is absent, never a number."""
        parts, starts = self._parts, self._starts[name]
        parts.append(self._heads[name])
        for labels, value in samples:
            if value is not None:
                start = starts.get(labels)
                if start is None:
                    start = f"{name}{_braced(name, labels)} ".encode()
                    _keep(starts, labels, start)
                parts.append(start + (b"%d\n" % value if type(value) is int else _number(value) + b"\n"))

    def histograms(self, name: str, samples: Iterable[tuple[Labels, Histogram]]) -> None:
        parts, shown = self._parts, self._shown[name]
        parts.append(self._heads[name])
        for labels, histogram in samples:
            one = shown.get(labels)
            if one is None:
                one = _Shown(_template(name, labels, histogram.bounds))
                _keep(shown, labels, one)
            if one.count != histogram.count or one.of is not histogram:
                one.of, one.count = histogram, histogram.count
                one.text = one.template % (*accumulate(histogram.counts), histogram.sum, histogram.count)
            parts.append(one.text)

    def more(self, text: bytes) -> None:
        """Families that are written already."""
        self._parts.append(text)

    def page(self) -> bytes:
        """What was written since :meth:`begin`."""
        return b"".join(self._parts)


class _Shown:
    """A histogram as the last page showed it, which is as it still is if nothing was observed since."""

    __slots__ = ("count", "of", "template", "text")

    def __init__(self, template: bytes) -> None:
        self.template = template
        self.of: Histogram | None = None
        self.count = -1
        self.text = b""


def _keep(kept: dict[Labels, T], labels: Labels, made: T) -> None:
    if len(kept) >= MAX_KEPT:
        kept.clear()
    kept[labels] = made


def _head(name: str) -> str:
    spec = METRICS[name]
    text = spec.help.replace("\\", "\\\\").replace("\n", "\\n")
    return f"# HELP {name} {text}\n# TYPE {name} {spec.type}\n"


def _template(name: str, labels: Labels, bounds: tuple[float, ...]) -> bytes:
    """A histogram's lines, with a place for each number."""
    own = _pairs(name, labels).replace("%", "%%")
    before = f"{name}_bucket{{{own}{',' if own else ''}le="
    buckets = "".join(f'{before}"{_number(bound).decode()}"}} %d\n' for bound in (*bounds, inf))
    braced = f"{{{own}}}" if own else ""
    return f"{buckets}{name}_sum{braced} %r\n{name}_count{braced} %d\n".encode()


def _braced(name: str, labels: Labels) -> str:
    return f"{{{_pairs(name, labels)}}}" if labels else ""


def _pairs(name: str, labels: Labels) -> str:
    pairs = zip(METRICS[name].labels, labels, strict=True)
    return ",".join(f'{label}="{_escaped(value)}"' for label, value in pairs)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> bytes:
    """As Prometheus reads it."""
    if isfinite(value):
        return b"%r" % value
    return b"NaN" if value != value else b"+Inf" if value > 0 else b"-Inf"
