"""One model: who asks for it, how quick it is, and where it lives."""

from __future__ import annotations

from typing import Final

from common import HERE, R, one, quantiles
from parts import Board, Panel, Query, Row, Variable

M: Final = f'{HERE},model=~"$model"'

MODEL: Final = Board(
    "corral-model",
    "Corral: one model",
    "Who asks for a model, how quick its answers are, and in whose memory it lives.",
    (
        Row(
            "Now",
            (
                one(
                    "In flight",
                    "Requests with a replica.",
                    "none",
                    f"sum(corral_model_in_flight{{{M}}}) or vector(0)",
                    decimals=0,
                ),
                one(
                    "Waiting",
                    "Requests that wait for it.",
                    "none",
                    f"sum(corral_model_queued{{{M}}}) or vector(0)",
                    decimals=0,
                ),
                one("Longest wait", "Of these.", "s", f"max(corral_model_queue_oldest_seconds{{{M}}}) or vector(0)"),
                one(
                    "Copies", "Replicas that hold it in memory.", "none", f"sum(corral_model_copies{{{M}}})", decimals=0
                ),
                one(
                    "Slots",
                    "Requests for it that these run at a time.",
                    "none",
                    f"sum(corral_model_slots{{{M}}})",
                    decimals=0,
                ),
                one("Requests", "Finished, a second.", "reqps", f"sum(rate(corral_requests_total{{{M}}}[{R}]))"),
                one(
                    "Generated",
                    "Tokens a second.",
                    "tok/s",
                    f"sum(rate(corral_output_tokens_total{{{M}}}[{R}]))",
                    decimals=0,
                ),
                one(
                    "Answer length",
                    "Generated tokens per finished request.",
                    "none",
                    f"sum(rate(corral_output_tokens_total{{{M}}}[{R}])) / sum(rate(corral_requests_total{{{M}}}[{R}]))",
                    decimals=0,
                ),
            ),
        ),
        Row(
            "Requests",
            (
                Panel(
                    "Requests by outcome",
                    "ok, refused by the gateway, broken after the first byte, left by the client, or an error.",
                    "reqps",
                    (Query(f"sum by (outcome) (rate(corral_requests_total{{{M}}}[{R}]))", "{{outcome}}"),),
                    stack=True,
                    low=0,
                ),
                Panel(
                    "Requests by kind",
                    "By the route they came on.",
                    "reqps",
                    (Query(f"sum by (kind) (rate(corral_requests_total{{{M}}}[{R}]))", "{{kind}}"),),
                    stack=True,
                    low=0,
                ),
                Panel(
                    "Waiting and in flight",
                    "With whatever options.",
                    "none",
                    (
                        Query(f"sum by (model) (corral_model_in_flight{{{M}}})", "{{model}} in flight"),
                        Query(f"sum by (model) (corral_model_queued{{{M}}})", "{{model}} waiting"),
                    ),
                    low=0,
                ),
                Panel(
                    "Tokens",
                    "As the replicas report them at the end of each answer.",
                    "tok/s",
                    (
                        Query(f"sum(rate(corral_prompt_tokens_total{{{M}}}[{R}]))", "prompts"),
                        Query(f"sum(rate(corral_output_tokens_total{{{M}}}[{R}]))", "generated"),
                    ),
                    low=0,
                ),
                Panel(
                    "Lines streamed",
                    "Lines or events of streamed answers.",
                    "ops",
                    (Query(f"sum by (kind) (rate(corral_streamed_lines_total{{{M}}}[{R}]))", "{{kind}}"),),
                    low=0,
                ),
                Panel(
                    "Requests by class",
                    "interactive, normal or batch, as X-Corral-Class says.",
                    "reqps",
                    (Query(f"sum by (class) (rate(corral_class_requests_total{{{M}}}[{R}]))", "{{class}}"),),
                    stack=True,
                    low=0,
                ),
            ),
        ),
        Row(
            "How quick it is",
            (
                Panel(
                    "Time to first token",
                    "From arrival to the first byte of streamed answers, queue included.",
                    "s",
                    quantiles("corral_time_to_first_token_seconds", M),
                    width=6,
                    low=0,
                ),
                Panel(
                    "Time per output token",
                    "Between two tokens of an answer.",
                    "s",
                    quantiles("corral_time_per_output_token_seconds", M),
                    width=6,
                    low=0,
                ),
                Panel(
                    "Time in the queue",
                    "From arrival until a slot was free, of answered requests.",
                    "s",
                    quantiles("corral_queue_seconds", f'{M},result="ok"'),
                    width=6,
                    low=0,
                ),
                Panel(
                    "Whole requests",
                    "From arrival to the end of the answer, of answered requests.",
                    "s",
                    quantiles("corral_request_seconds", f'{M},result="ok"'),
                    width=6,
                    low=0,
                ),
            ),
        ),
        Row(
            "Where it lives",
            (
                Panel(
                    "In memory of",
                    "The replicas that hold it.",
                    "none",
                    (Query(f"corral_replica_model_loaded{{{M}}}", "{{model}} in {{replica}}"),),
                    kind="state-timeline",
                    words=(("1", "loaded", "blue"),),
                ),
                Panel(
                    "Loads",
                    "That the gateway asked for, by replica, within an hour.",
                    "none",
                    (Query(f"increase(corral_model_loads_total{{{M}}}[1h])", "{{replica}} {{outcome}}"),),
                    low=0,
                    decimals=0,
                ),
                Panel(
                    "Evictions",
                    "It was let go of to make room for another, by replica, within an hour.",
                    "none",
                    (Query(f"increase(corral_model_unloads_total{{{M}}}[1h])", "{{replica}} {{outcome}}"),),
                    low=0,
                    decimals=0,
                ),
            ),
        ),
    ),
    (Variable("model", "Model", 'label_values(corral_requests_total{instance=~"$instance"}, model)'),),
)
