"""EndpointSlices of Kubernetes, read strictly, and what they say together: pure."""

from __future__ import annotations

import msgspec

from corral.gateway.discovery.endpoint import Endpoint

DEFAULT_PORT_NAME = "ollama"


class Conditions(msgspec.Struct):
    ready: bool | None = None
    terminating: bool | None = None


class SliceEndpoint(msgspec.Struct):
    addresses: list[str]
    conditions: Conditions = msgspec.field(default_factory=Conditions)


class SlicePort(msgspec.Struct):
    port: int | None = None
    name: str | None = None


class Metadata(msgspec.Struct):
    name: str = ""
    resourceVersion: str = ""
    continue_: str = msgspec.field(default="", name="continue")
    annotations: dict[str, str] | None = None


class Slice(msgspec.Struct):
    metadata: Metadata
    addressType: str = "IPv4"
    endpoints: list[SliceEndpoint] | None = None
    ports: list[SlicePort] | None = None


class SliceList(msgspec.Struct):
    metadata: Metadata
    items: list[Slice]


class Status(msgspec.Struct):
    """What the API server says of a request that it does not carry out."""

    code: int = 0
    message: str = ""
    reason: str = ""


class WatchEvent(msgspec.Struct):
    type: str
    object: msgspec.Raw


def endpoints_of(slices: list[Slice], port: int | str | None) -> tuple[list[Endpoint], str]:
    """All endpoints that are ready or about to end; and, where a port cannot be found, what is the matter.

    IPv6 addresses only where there are no IPv4 ones: what has both is still one replica.
    """
    problem = ""
    found: dict[tuple[str, int], Endpoint] = {}
    for family in ("IPv4", "IPv6"):
        for each in slices:
            if each.addressType != family:
                continue
            number, trouble = _port(each.ports or [], port)
            problem = problem or (trouble if each.endpoints else "")
            if number is not None:
                _add(each.endpoints or [], number, found)
        if found:
            break
    return [found[place] for place in sorted(found)], problem


def _add(endpoints: list[SliceEndpoint], port: int, found: dict[tuple[str, int], Endpoint]) -> None:
    for endpoint in endpoints:
        leaving = bool(endpoint.conditions.terminating)
        if not leaving and endpoint.conditions.ready is False:
            continue
        for host in endpoint.addresses[:1]:  # all of one endpoint lead to the same place
            before = found.get((host, port))
            # while a slice is being replaced an endpoint may stand in both: who says that it lives is the later one
            found[host, port] = Endpoint(host, port, is_leaving=leaving and (before is None or before.is_leaving))


def _port(ports: list[SlicePort], wanted: int | str | None) -> tuple[int | None, str]:
    if isinstance(wanted, int):
        return wanted, ""
    name = DEFAULT_PORT_NAME if wanted is None else wanted
    for port in ports:
        if port.name == name and port.port is not None:
            return port.port, ""
    if wanted is None and len(ports) == 1 and ports[0].port is not None:
        return ports[0].port, ""
    names = ", ".join(port.name or str(port.port) for port in ports) or "none"
    return None, f"no port {name!r} in its EndpointSlices (there: {names}); set discovery.kubernetes.port"
