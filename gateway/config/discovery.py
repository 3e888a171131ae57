"""The keys that say where replicas are found that come and go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from corral.gateway.config.owned import StoreName
from corral.gateway.config.patterns import DNS_NAME_PATTERN, LABEL_PATTERN
from corral.gateway.config.places import Address, ReplicaUrl

Port = Annotated[int, Meta(ge=1, le=65_535)]
Label = Annotated[str, Meta(pattern=LABEL_PATTERN)]


class DnsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A name in the DNS: every address that it has is a replica. Needs ``pip install 'corral[discovery]'``."""

    name: Annotated[
        str,
        Meta(
            pattern=DNS_NAME_PATTERN,
            max_length=253,
            description="The name, for instance of a headless Service; one that begins with `_` (`_ollama._tcp.NAME`) "
            "is asked for SRV records, which bring their ports with them.",
        ),
    ]
    port: Annotated[Port, Meta(description="Where each address answers; SRV records say it themselves.")] = 11434
    interval_s: Annotated[
        float,
        Meta(ge=0.1, le=3_600, description="The longest time between two look-ups; sooner where the records expire."),
    ] = 10
    server: (
        Annotated[Address, Meta(description="The DNS server to ask, `host:port`; left out: as the system does.")] | None
    ) = None


class KubernetesConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Service in Kubernetes: every ready endpoint in its EndpointSlices is a replica."""

    service: Annotated[Label, Meta(description="The name of the Service.")]
    namespace: (
        Annotated[Label, Meta(description="Where the Service is; left out: the namespace that Corral runs in.")] | None
    ) = None
    port: (
        Annotated[
            Annotated[int, Meta(ge=1, le=65_535)] | str,
            Meta(
                description="The port, as a number or by its name in the Service; left out: the only one, or `ollama`."
            ),
        ]
        | None
    ) = None
    api: (
        Annotated[
            ReplicaUrl,
            Meta(description="The API server without TLS, as `kubectl proxy` gives it; left out: that of the cluster."),
        ]
        | None
    ) = None
    service_account: Annotated[
        Path, Meta(description="The folder with the token, CA and namespace of the service account.")
    ] = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class DiscoveryConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Replicas that come and go; all that are found have the same settings."""

    dns: Annotated[DnsConfig, Meta(description="Found in the DNS.")] | None = None
    kubernetes: Annotated[KubernetesConfig, Meta(description="Found in Kubernetes.")] | None = None
    weight: Annotated[
        float, Meta(gt=0, le=1_000_000, description="How fast each is beside the replicas that are listed.")
    ] = 1.0
    slots: (
        Annotated[
            int, Meta(ge=1, le=4096, description="Requests that may be in flight per model on each; left out: learned.")
        ]
        | None
    ) = None
    models: Annotated[
        tuple[str, ...], Meta(description="They serve only these models, and no replica without such a list does.")
    ] = ()
    max_loaded: (
        Annotated[
            int, Meta(ge=1, le=4096, description="Models in the memory of each at most; left out: as many as fit.")
        ]
        | None
    ) = None
    store: (
        Annotated[StoreName, Meta(description="The model store that all of them share; left out: each has its own.")]
        | None
    ) = None
    admin_port: (
        Annotated[Port, Meta(description="They are Corrals: where their admin ports answer; left out: Ollamas.")] | None
    ) = None
    leaving_s: Annotated[
        float,
        Meta(
            ge=0,
            le=3_600,
            description="One that is no longer found gets no new requests, and is forgotten after this time.",
        ),
    ] = 60

    @property
    def places(self) -> tuple[str, ...]:
        """Where is looked, for a person."""
        dns = () if self.dns is None else (f"DNS name {self.dns.name}",)
        kubernetes = self.kubernetes
        if kubernetes is None:
            return dns
        where = "" if kubernetes.namespace is None else f" in namespace {kubernetes.namespace}"
        return (*dns, f"Kubernetes Service {kubernetes.service}{where}")
