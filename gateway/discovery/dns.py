"""Replicas in the DNS: the addresses of a name, looked up again and again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple

from corral.errors import OperatorError
from corral.gateway.config.discovery import DnsConfig
from corral.gateway.discovery.endpoint import Endpoint

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver

log: Final = logging.getLogger("corral.gateway")

LOOKUP_S: Final = 4.0
"""What one look-up may take, with all servers and tries."""
_LEAST_S: Final = 1.0
"""Records that expire sooner are asked for no more often."""


class Answer(NamedTuple):
    """What a name has; nothing where it is said that there is none of it."""

    values: tuple[tuple[str, int], ...]
    """Addresses with port 0; of SRV records, targets with their ports."""
    ttl_s: float


class Unanswered(Exception):
    """The servers did not say; in a few words why."""


class DnsSource:
    """Looks one name up. :meth:`run` ends only when its task is cancelled."""

    is_final: Final = False
    """What a name server says may be half of it."""

    def __init__(self, config: DnsConfig, rng: Random) -> None:
        self._config = config
        self._rng = rng
        self._resolver = _resolver(config)
        self._trouble = ""
        self.name = f"dns {config.name}"

    async def run(self, found: Callable[[Sequence[Endpoint]], None]) -> None:
        while True:
            wait_s = await self._look(found)
            await asyncio.sleep(wait_s * self._rng.uniform(0.9, 1.0))

    async def _look(self, found: Callable[[Sequence[Endpoint]], None]) -> float:
        """One look-up; how many seconds to wait until the next. Where nobody answers, what is known stays."""
        longest_s = self._config.interval_s
        try:
            endpoints, ttl_s = await self._endpoints()
        except Unanswered as trouble:
            if str(trouble) != self._trouble:
                log.warning('discovery_failed source="%s" consequence="known ones stay" error="%s"', self.name, trouble)
            self._trouble = str(trouble)
            return longest_s
        if self._trouble:
            log.info('discovery_recovered source="%s"', self.name)
            self._trouble = ""
        found(endpoints)
        return min(longest_s, max(ttl_s, min(_LEAST_S, longest_s)))

    async def _endpoints(self) -> tuple[list[Endpoint], float]:
        if not self._config.name.startswith("_"):
            answer = await self._addresses(self._config.name)
            return [Endpoint(host, self._config.port) for host, _ in answer.values], answer.ttl_s
        records = await self._ask(self._config.name, "SRV")
        endpoints, ttl_s = [], records.ttl_s
        for target, port in records.values:
            answer = await self._addresses(target)
            ttl_s = min(ttl_s, answer.ttl_s)
            endpoints += [Endpoint(host, port, names_port=True) for host, _ in answer.values]
        return endpoints, ttl_s

    async def _addresses(self, name: str) -> Answer:
        """IPv6 only where there is no IPv4: a machine that has both is still one replica."""
        answer = await self._ask(name, "A")
        return answer if answer.values else await self._ask(name, "AAAA")

    async def _ask(self, name: str, kind: str) -> Answer:
        """Raises Unanswered."""
        import dns.exception
        import dns.resolver

        try:
            answer = await self._resolver.resolve(
                name, kind, raise_on_no_answer=False, lifetime=LOOKUP_S, search=self._config.server is None
            )
        except dns.resolver.NXDOMAIN:
            return Answer((), self._config.interval_s)
        except dns.resolver.LifetimeTimeout:
            raise Unanswered("no answer in time") from None
        except (dns.exception.DNSException, OSError, EOFError) as error:
            raise Unanswered(str(error).partition("\n")[0] or type(error).__name__) from error
        if answer.rrset is None:
            return Answer((), self._config.interval_s)
        if kind == "SRV":
            values = [(record.target.to_text(), record.port) for record in answer.rrset]
        else:
            values = [(record.address, 0) for record in answer.rrset]
        return Answer(tuple(sorted(values)), float(answer.rrset.ttl))


def _resolver(config: DnsConfig) -> Resolver:
    """Raises OperatorError where the library is missing, or the system knows no server."""
    try:
        from dns.asyncresolver import Resolver
        from dns.resolver import NoResolverConfiguration
    except ImportError:
        raise OperatorError("discovery.dns needs the library dnspython\n  pip install 'corral[discovery]'") from None
    try:
        resolver = Resolver(configure=config.server is None)
    except NoResolverConfiguration:
        raise OperatorError("discovery.dns: this system names no DNS server; give it one with server:") from None
    if config.server is not None:
        try:
            resolver.nameservers, resolver.port = [config.server.host], config.server.port
        except ValueError:
            raise OperatorError(f"discovery.dns.server: {config.server.host} is no IP address") from None
    resolver.cache = None
    return resolver
