"""The lower part of the fleet's dashboard: GPUs, memory, predictions, and the gateway itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from common import HERE, R, quantiles
from parts import Panel, Query, Row


def named(what: str, query: Query) -> Query:
    return replace(query, legend=f"{what}, {query.legend}")


GPUS: Final = Row(
    "GPUs",
    (
        Panel(
            "Utilisation",
            "Share of the last moments in which anything ran on it.",
            "percentunit",
            (Query(f"corral_gpu_utilisation_ratio{{{HERE}}}", "GPU {{gpu}}"),),
            low=0,
            high=1,
        ),
        Panel(
            "Memory in use",
            "Of all its memory, without what the driver keeps for itself.",
            "percentunit",
            (
                Query(
                    f"corral_gpu_memory_used_bytes{{{HERE}}} / corral_gpu_memory_total_bytes{{{HERE}}}", "GPU {{gpu}}"
                ),
            ),
            low=0,
            high=1,
        ),
        Panel(
            "Joules per generated token",
            "Energy of a replica's GPUs by its tokens, with idle watts; of replicas with metered GPUs of their own.",
            "joule",
            (Query(f"instance_replica:corral_output_token_joules:ratio5m{{{HERE}}}", "{{replica}}"),),
            low=0,
        ),
        Panel(
            "Temperature",
            "The board of one GPU shows at which it slows down.",
            "celsius",
            (Query(f"corral_gpu_temperature_celsius{{{HERE}}}", "GPU {{gpu}}"),),
        ),
        Panel(
            "Power",
            "What each draws.",
            "watt",
            (Query(f"corral_gpu_power_watts{{{HERE}}}", "GPU {{gpu}}"),),
            stack=True,
            low=0,
        ),
        Panel(
            "Condition and throttling",
            "Red: it cannot be read or is lost. Yellow: it runs slower than it could.",
            "none",
            (
                Query(f"corral_gpu_up{{{HERE}}}", "GPU {{gpu}} is read"),
                Query(f'corral_gpu_throttled{{{HERE},reason!="power cap"}} * 2', "GPU {{gpu}}: {{reason}}"),
            ),
            kind="state-timeline",
            words=(("0", "no", "red"), ("1", "yes", "green"), ("2", "throttled", "yellow")),
        ),
    ),
)

MODELS: Final = Row(
    "Models in memory",
    (
        Panel(
            "Copies",
            "Replicas that hold each model in memory.",
            "none",
            (Query(f"sum by (model) (corral_model_copies{{{HERE}}}) > 0", "{{model}}"),),
            stack=True,
            low=0,
            decimals=0,
        ),
        Panel(
            "Loads and evictions",
            "Models that the gateway had loaded, and had let go of to make room.",
            "ops",
            (
                Query(f"sum by (outcome) (rate(corral_model_loads_total{{{HERE}}}[{R}]))", "loads {{outcome}}"),
                Query(f"sum by (outcome) (rate(corral_model_unloads_total{{{HERE}}}[{R}]))", "evictions {{outcome}}"),
            ),
            low=0,
        ),
        Panel(
            "Time to load",
            "Of loads that went well.",
            "s",
            quantiles("corral_model_load_seconds"),
            low=0,
        ),
    ),
)

PREDICTIONS: Final = Row(
    "Predictions",
    (
        Panel(
            "Taken to predicted",
            "What requests took, divided by what was predicted; 1 is right, below it they were quicker.",
            "none",
            (
                *(named("whole", query) for query in quantiles("corral_predicted_ratio", f'{HERE},part="end"')[:2]),
                named("first byte", quantiles("corral_predicted_ratio", f'{HERE},part="first_byte"')[0]),
            ),
            width=12,
            low=0,
        ),
        Panel(
            "Error of predictions",
            "By how much they were off, as a share of what requests took.",
            "percentunit",
            (Query(f"instance_replica:corral_predicted_error:ratio15m{{{HERE}}}", "{{replica}}"),),
            width=12,
            low=0,
        ),
    ),
)

GATEWAY: Final = Row(
    "The gateway itself",
    (
        Panel(
            "Event loop lag",
            "How late its timers are: every token waits as long.",
            "s",
            (
                *quantiles("corral_event_loop_lag_seconds"),
                Query(f"max(corral_event_loop_lag_max_seconds{{{HERE}}})", "max"),
            ),
            width=6,
            low=0,
        ),
        Panel(
            "CPU",
            "Cores in use; one is all it can use.",
            "none",
            (Query(f"rate(process_cpu_seconds_total{{{HERE}}}[{R}])", "{{instance}}"),),
            width=6,
            low=0,
        ),
        Panel(
            "Memory",
            "Resident.",
            "bytes",
            (Query(f"process_resident_memory_bytes{{{HERE}}}", "{{instance}}"),),
            width=6,
            low=0,
        ),
        Panel(
            "File descriptors",
            "Two for each stream.",
            "none",
            (
                Query(f"process_open_fds{{{HERE}}}", "{{instance}} open"),
                Query(f"process_max_fds{{{HERE}}}", "{{instance}} limit"),
            ),
            width=6,
            low=0,
            log=True,
        ),
        Panel(
            "Held open",
            "Tasks and connections; what grows while the load does not is not given back.",
            "none",
            (Query(f"corral_held_open{{{HERE}}}", "{{instance}} {{kind}}"),),
            width=24,
            low=0,
        ),
    ),
)
