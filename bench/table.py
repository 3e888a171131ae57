"""The report of the wire benchmark: medians with their ranges, targets beside them, as Markdown."""
# ruff: noqa: RUF001 - the multiplication sign and the dash are meant

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

QUIET_PCT = 10.0
"""Share of a core that others may use before a measurement is called noisy."""
Results = Mapping[str, Mapping[str, Sequence[float]]]
"""contender -> figure -> one value per round."""


@dataclass(frozen=True, slots=True)
class Row:
    figure: str
    title: str
    scale: float = 1
    digits: int = 1


@dataclass(frozen=True, slots=True)
class Target:
    """A limit for Corral, absolute or relative to another contender's median."""

    figure: str
    limit: float
    versus: str | None = None

    def text(self, scale: float) -> str:
        return f"≤ {self.limit:g} × {self.versus}" if self.versus else f"≤ {self.limit * scale:g}"


ROWS = (
    Row("line_cpu_us", "CPU per streamed line, lines in steps of 1 ms, µs", digits=2),
    Row("lines_per_s", "lines/s relayed (200 streams × 100)", digits=0),
    Row("lone_line_cpu_us", "the same, no two lines together, µs", digits=2),
    Row("small_cpu_us", "CPU per small request, 32 connections, µs"),
    Row("small_per_s", "small requests/s, 32 connections", digits=0),
    Row("small_p50_us", "its p50, µs", digits=0),
    Row("small_p99_us", "its p99, µs", digits=0),
    Row("added_p50_us", "added p50, 1 connection, µs"),
    Row("stream_bytes", "memory per open stream, KB", 1 / 1000, 2),
    Row("idle_bytes", "memory before them, MB", 1e-6),
    Row("ready_s", "start-up to ready, s", digits=3),
)
TARGETS = (
    Target("line_cpu_us", 1.3, "nginx"),
    Target("line_cpu_us", 0.6, "aiohttp"),
    Target("small_cpu_us", 2.5, "nginx"),
    Target("added_p50_us", 2.0, "nginx"),
    Target("stream_bytes", 6000),
    Target("ready_s", 1.0),
)
NOISE = (
    Row("scattered_others_pct", "scattered: others on the cores, %"),
    Row("streams_others_pct", "streams: others on the cores, %"),
    Row("line_load_core_pct", "streams: load's core busy, %", digits=0),
    Row("small_others_pct", "small: others on the cores, %"),
    Row("small_load_core_pct", "small: load's core busy, %", digits=0),
    Row("direct_p50_us", "p50 without a proxy, 1 connection, µs"),
)


def spread(values: Sequence[float], row: Row) -> str:
    """Median, and the least and greatest round behind it."""
    if not values:
        return "–"
    scaled = [value * row.scale for value in values]
    middle = f"{median(scaled):,.{row.digits}f}"
    return middle if len(scaled) == 1 else f"{middle} ({min(scaled):,.{row.digits}f}–{max(scaled):,.{row.digits}f})"


def ratio(results: Results, figure: str, name: str, versus: str) -> tuple[float, str] | None:
    """Ratio of the medians, and the range of the ratios within rounds."""
    own, other = results.get(name, {}).get(figure, ()), results.get(versus, {}).get(figure, ())
    if not own or not other:
        return None
    middle = median(own) / median(other)
    within = [a / b for a, b in zip(own, other, strict=False)]
    return middle, f"{middle:.2f} ({min(within):.2f}–{max(within):.2f})" if len(within) > 1 else f"{middle:.2f}"


def verdict(results: Results, target: Target, scale: float) -> tuple[bool | None, str]:
    """Whether Corral meets a target; None where it was not measured."""
    values = results.get("corral", {}).get(target.figure, ())
    if target.versus:
        compared = ratio(results, target.figure, "corral", target.versus)
        reached = compared[0] if compared else None
    else:
        reached = median(values) if values else None
    met = None if reached is None else reached <= target.limit
    return met, target.text(scale) + {None: "", True: ": met", False: ": **missed**"}[met]


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


def render(results: Results, titles: Mapping[str, str], failed: Mapping[str, int]) -> str:
    """All tables. A contender with a failed round says so in its heading."""
    heads = [title + (f" (**{failed[name]} failed**)" if failed.get(name) else "") for name, title in titles.items()]
    lines: list[list[str]] = []
    for row in ROWS:
        if not any(results.get(name, {}).get(row.figure) for name in titles):
            continue
        targets = [target for target in TARGETS if target.figure == row.figure]
        absolute = [verdict(results, target, row.scale)[1] for target in targets if target.versus is None]
        lines.append(
            [row.title, *(spread(results.get(name, {}).get(row.figure, ()), row) for name in titles), "".join(absolute)]
        )
        lines += [_ratio_line(results, titles, target) for target in targets if target.versus]
    noise = [
        [row.title, *(spread(results.get(name, {}).get(row.figure, ()), row) for name in titles)]
        for row in NOISE
        if any(results.get(name, {}).get(row.figure) for name in titles)
    ]
    main = _markdown(["median (least–greatest round)", *heads, "target for Corral"], lines)
    return main + ("\n\n" + _markdown(["to judge the noise", *heads], noise) if noise else "")


def _ratio_line(results: Results, titles: Mapping[str, str], target: Target) -> list[str]:
    assert target.versus is not None
    ratios = [ratio(results, target.figure, name, target.versus) for name in titles]
    versus = titles.get(target.versus, target.versus)
    return [f"– × {versus}", *("–" if found is None else found[1] for found in ratios), verdict(results, target, 1)[1]]


def noisy(results: Results) -> list[str]:
    """What cannot be compared: measurements whose cores others used too much in some round, after all tries."""
    return [
        f"{name} {figure.removesuffix('_others_pct')}: others used a core in {loud} of {len(values)} rounds"
        for name, figures in results.items()
        for figure, values in figures.items()
        if figure.endswith("_others_pct") and (loud := sum(value > QUIET_PCT for value in values))
    ]
