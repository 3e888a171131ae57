"""The classes of tenants: who waits for whom."""

from __future__ import annotations

from typing import Final

from common import HERE, R
from parts import Board, Panel, Query, Row, Variable

C: Final = f'{HERE},class=~"$class"'
FAILED: Final = 'outcome=~"broken|error_5xx|refused_.*"'
ALL: Final = f"sum by (class) (rate(corral_class_requests_total{{{C}}}[{R}]))"
ABOUT: Final = (
    "Every request belongs to a class: **interactive** goes before **normal**, normal before **batch** (the header "
    "`X-Corral-Class`; without it, normal). Within a class tenants share fairly. Tenants are no labels here, "
    "because their number has no bound and their keys are nobody's business: `corral requests` and the page on the "
    "admin port show the last requests, each with a digest of its tenant."
)


def p95(metric: str, labels: str = C) -> Query:
    return Query(f"histogram_quantile(0.95, sum by (class, le) (rate({metric}_bucket{{{labels}}}[{R}])))", "{{class}}")


CLASSES: Final = Board(
    "corral-tenants",
    "Corral: tenants",
    "The three classes that tenants' requests belong to: how much each is given, and how long each waits.",
    (
        Row(
            "What is shown",
            (
                Panel(
                    "Classes and tenants",
                    "How to read this board.",
                    "none",
                    (),
                    kind="text",
                    width=24,
                    height=4,
                    content=ABOUT,
                ),
            ),
        ),
        Row(
            "What each is given",
            (
                Panel(
                    "Requests",
                    "Finished requests a second.",
                    "reqps",
                    (Query(f"sum by (class) (rate(corral_class_requests_total{{{C}}}[{R}]))", "{{class}}"),),
                    stack=True,
                    low=0,
                ),
                Panel(
                    "Generated tokens",
                    "What each class gets of the GPUs, about.",
                    "tok/s",
                    (Query(f"sum by (class) (rate(corral_output_tokens_total{{{C}}}[{R}]))", "{{class}}"),),
                    stack=True,
                    low=0,
                ),
                Panel(
                    "Prompt tokens",
                    "What each class has the GPUs read.",
                    "tok/s",
                    (Query(f"sum by (class) (rate(corral_prompt_tokens_total{{{C}}}[{R}]))", "{{class}}"),),
                    stack=True,
                    low=0,
                ),
                Panel(
                    "Models asked for",
                    "Requests a second, by class and model.",
                    "reqps",
                    (
                        Query(
                            f"sum by (class, model) (rate(corral_class_requests_total{{{C}}}[{R}]))",
                            "{{class}} {{model}}",
                        ),
                    ),
                    low=0,
                ),
                Panel(
                    "Failed",
                    "Share of requests that were refused, broke, or ended with a 5xx.",
                    "percentunit",
                    (
                        Query(
                            f"(sum by (class) (rate(corral_class_requests_total{{{C},{FAILED}}}[{R}])) or {ALL} * 0)"
                            f" / {ALL}",
                            "{{class}}",
                        ),
                    ),
                    low=0,
                    high=1,
                ),
                Panel(
                    "Refused",
                    "By the gateway itself, by class and reason.",
                    "reqps",
                    (
                        Query(
                            "sum by (class, outcome) "
                            f'(rate(corral_class_requests_total{{{C},outcome=~"refused_.*"}}[{R}]))',
                            "{{class}} {{outcome}}",
                        ),
                    ),
                    low=0,
                ),
            ),
        ),
        Row(
            "How long each waits",
            (
                Panel(
                    "Time in the queue, p95",
                    "One request in twenty waits longer for its slot.",
                    "s",
                    (p95("corral_queue_seconds", f'{C},result="ok"'),),
                    width=6,
                    low=0,
                ),
                Panel(
                    "Time to first token, p95",
                    "One in twenty waits longer for its first byte.",
                    "s",
                    (p95("corral_time_to_first_token_seconds"),),
                    width=6,
                    low=0,
                ),
                Panel(
                    "Time per output token, p95",
                    "One answer in twenty comes slower.",
                    "s",
                    (p95("corral_time_per_output_token_seconds"),),
                    width=6,
                    low=0,
                ),
                Panel(
                    "Whole requests, p95",
                    "One in twenty takes longer.",
                    "s",
                    (p95("corral_request_seconds", f'{C},result="ok"'),),
                    width=6,
                    low=0,
                ),
            ),
        ),
    ),
    (Variable("class", "Class", 'label_values(corral_class_requests_total{instance=~"$instance"}, class)'),),
)
