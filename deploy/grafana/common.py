"""What the dashboards ask for in the same way."""

from __future__ import annotations

from typing import Final

from parts import Panel, Query

HERE: Final = 'instance=~"$instance"'
R: Final = "$__rate_interval"
GOOD_BAD: Final = ((None, "red"), (1.0, "green"))


def quantiles(metric: str, labels: str = HERE) -> tuple[Query, ...]:
    """p50, p95 and p99 of a histogram."""
    return tuple(
        Query(f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket{{{labels}}}[{R}])))", f"p{q * 100:.0f}")
        for q in (0.5, 0.95, 0.99)
    )


def one(title: str, description: str, unit: str, expr: str, **more: object) -> Panel:
    """A number of now."""
    return Panel(title, description, unit, (Query(expr),), kind="stat", width=3, height=4, **more)  # type: ignore[arg-type]
