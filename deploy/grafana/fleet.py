"""The whole box: what it does now, and who does it."""

from __future__ import annotations

from typing import Final

from common import GOOD_BAD, HERE, R, one, quantiles
from machine import GATEWAY, GPUS, MODELS, PREDICTIONS
from parts import Board, Panel, Query, Row

NOW: Final = Row(
    "Now",
    (
        one(
            "Ready",
            "Whether a replica can serve. Red: every request is refused or waits.",
            "none",
            f"min(corral_ready{{{HERE}}})",
            steps=GOOD_BAD,
            words=(("0", "no", "red"), ("1", "yes", "green")),
        ),
        one("Replicas up", "Healthy replicas.", "none", f"sum(corral_replica_up{{{HERE}}})", decimals=0),
        one("In flight", "Requests with a replica.", "none", f"sum(corral_requests_in_flight{{{HERE}}})", decimals=0),
        one("Waiting", "Requests that wait for a slot.", "none", f"sum(corral_requests_queued{{{HERE}}})", decimals=0),
        one(
            "Longest wait",
            "How long the oldest of them has waited; nothing: none waits.",
            "s",
            f"max(corral_queue_oldest_seconds{{{HERE}}}) or vector(0)",
            steps=((None, "green"), (10.0, "yellow"), (60.0, "red")),
        ),
        one("Requests", "Finished requests a second.", "reqps", f"sum(rate(corral_requests_total{{{HERE}}}[{R}]))"),
        one(
            "Generated",
            "Generated tokens a second, of all replicas together.",
            "tok/s",
            f"sum(rate(corral_output_tokens_total{{{HERE}}}[{R}]))",
            decimals=0,
        ),
        one("Power", "What all GPUs draw.", "watt", f"sum(corral_gpu_power_watts{{{HERE}}})", decimals=0),
    ),
)

REQUESTS: Final = Row(
    "Requests",
    (
        Panel(
            "Requests by outcome",
            "ok, refused by the gateway, broken after the first byte, left by the client, or an error of the replica.",
            "reqps",
            (Query(f"sum by (outcome) (rate(corral_requests_total{{{HERE}}}[{R}]))", "{{outcome}}"),),
            stack=True,
            low=0,
        ),
        Panel(
            "Time to first token",
            "From arrival to the first byte of streamed answers, queue included.",
            "s",
            quantiles("corral_time_to_first_token_seconds"),
            low=0,
        ),
        Panel(
            "Time in the queue",
            "From arrival until a slot was free, of answered requests.",
            "s",
            quantiles("corral_queue_seconds", f'{HERE},result="ok"'),
            low=0,
        ),
        Panel(
            "Whole requests",
            "From arrival to the end of the answer, of answered requests.",
            "s",
            quantiles("corral_request_seconds", f'{HERE},result="ok"'),
            low=0,
        ),
        Panel(
            "Time per output token",
            "Between two tokens of an answer. Reading speed is about 0.1 s.",
            "s",
            quantiles("corral_time_per_output_token_seconds"),
            low=0,
        ),
        Panel(
            "Tokens",
            "As the replicas report them at the end of each answer.",
            "tok/s",
            (
                Query(f"sum(rate(corral_prompt_tokens_total{{{HERE}}}[{R}]))", "prompts"),
                Query(f"sum(rate(corral_output_tokens_total{{{HERE}}}[{R}]))", "generated"),
            ),
            low=0,
        ),
        Panel(
            "Refused",
            "By the gateway itself, by reason.",
            "reqps",
            (Query(f"sum by (reason) (rate(corral_refusals_total{{{HERE}}}[{R}]))", "{{reason}}"),),
            low=0,
        ),
        Panel(
            "Failed attempts",
            "Before the first byte; another replica was tried. stale: an idle connection was closed, no harm.",
            "reqps",
            (Query(f"sum by (fault) (rate(corral_retries_total{{{HERE}}}[{R}]))", "{{fault}}"),),
            low=0,
        ),
        Panel(
            "Broken and left",
            "Answers that broke in the middle, and requests whose client left.",
            "reqps",
            (
                Query(f"sum(rate(corral_broken_streams_total{{{HERE}}}[{R}]))", "broken"),
                Query(f"sum(rate(corral_clients_gone_total{{{HERE}}}[{R}]))", "client left"),
            ),
            low=0,
        ),
    ),
)

REPLICAS: Final = Row(
    "Replicas",
    (
        Panel(
            "Health",
            "Green: up. Red: down or ejected. Nothing: not known yet.",
            "none",
            (Query(f"corral_replica_up{{{HERE}}}", "{{replica}}"),),
            kind="state-timeline",
            steps=GOOD_BAD,
            words=(("0", "down", "red"), ("1", "up", "green")),
        ),
        Panel(
            "In flight by replica",
            "Requests that are with each.",
            "none",
            (Query(f"corral_replica_in_flight{{{HERE}}}", "{{replica}}"),),
            stack=True,
            low=0,
        ),
        Panel(
            "Why there",
            "Choices of a replica, by the policy's reason. `corral explain` shows the last ones in seconds.",
            "ops",
            (Query(f"sum by (reason) (rate(corral_decisions_total{{{HERE}}}[{R}]))", "{{reason}}"),),
            stack=True,
            low=0,
        ),
        Panel(
            "Requests by replica",
            "Finished requests a second that each answered.",
            "reqps",
            (Query(f"sum by (replica) (rate(corral_replica_requests_total{{{HERE}}}[{R}]))", "{{replica}}"),),
            stack=True,
            low=0,
        ),
        Panel(
            "Failures by replica",
            "Attempts that failed there, by what went wrong.",
            "reqps",
            (
                Query(
                    f"sum by (replica, fault) (rate(corral_replica_attempts_failed_total{{{HERE}}}[{R}]))",
                    "{{replica}} {{fault}}",
                ),
            ),
            low=0,
        ),
        Panel(
            "Probes",
            "How long a replica takes to say its version: it is busy or far away where that takes more than some ms.",
            "s",
            (Query(f'corral_probe_last_seconds{{{HERE},part="version"}}', "{{replica}}"),),
            low=0,
        ),
        Panel(
            "Age of readings",
            "Since its models and memory were last read.",
            "s",
            (Query(f"corral_replica_sample_age_seconds{{{HERE}}}", "{{replica}}"),),
            low=0,
        ),
        Panel(
            "Restarts",
            "Starts after the first of the Ollamas that Corral runs, within an hour.",
            "none",
            (Query(f"increase(corral_replica_restarts_total{{{HERE}}}[1h])", "{{replica}}"),),
            low=0,
            decimals=0,
        ),
        Panel(
            "Drained or held",
            "Drained by an operator, or held because its process is not ready.",
            "none",
            (
                Query(f"corral_replica_enabled{{{HERE}}} == 0", "{{replica}} drained"),
                Query(f"corral_replica_held{{{HERE}}} == 1", "{{replica}} held"),
            ),
            kind="state-timeline",
            words=(("0", "drained", "orange"), ("1", "held", "yellow")),
        ),
    ),
)

FLEET: Final = Board(
    "corral-fleet",
    "Corral: fleet",
    "What the box does now, who does it, and how well.",
    (NOW, REQUESTS, REPLICAS, GPUS, MODELS, PREDICTIONS, GATEWAY),
)
