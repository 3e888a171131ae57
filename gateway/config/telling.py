"""The keys that say what Corral tells of single requests, and of its load, to others than its admin port."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from corral.gateway.config.patterns import COLLECTOR_PATTERN

LoadReport = Annotated[
    Literal["off", "asked", "always"],
    Meta(
        description="Answers tell a proxy in front how busy this gateway is (ORCA, header `endpoint-load-metrics`): "
        "`asked`, where the request has `endpoint-load-metrics-format: TEXT`, `JSON` or `BIN`; `always`, as TEXT too "
        "where it has not."
    ),
]


class AccessLogConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line for each request that is over."""

    format: Annotated[
        Literal["text", "json", "off"],
        Meta(
            description="One line for each request, as `text` or `json`, without prompts and keys; `off`: none (the "
            "last 500 are at `/requests` all the same)."
        ),
    ] = "off"
    path: (
        Annotated[
            Path,
            Meta(description="The file that gets these lines, opened anew when it was moved away; left out: stderr."),
        ]
        | None
    ) = None


class TracingConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Traces of requests. Needs ``pip install 'corral[otel]'``."""

    endpoint: (
        Annotated[
            str,
            Meta(
                pattern=COLLECTOR_PATTERN,
                max_length=1024,
                description="Where an OpenTelemetry collector takes traces (OTLP over HTTP): `http://host:4318`, "
                "`/v1/traces` is added where no path is given. Left out: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or "
                "OTEL_EXPORTER_OTLP_ENDPOINT of the environment, else no traces.",
            ),
        ]
        | None
    ) = None
    sample_ratio: (
        Annotated[
            float,
            Meta(
                ge=0,
                le=1,
                description="The share of traces that begin here and are kept; what a client began is as the client "
                "decided. Left out: OTEL_TRACES_SAMPLER of the environment, else all.",
            ),
        ]
        | None
    ) = None
    service_name: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=256,
                description="The name of this gateway in traces; left out: OTEL_SERVICE_NAME of the environment, "
                "else `corral`.",
            ),
        ]
        | None
    ) = None
