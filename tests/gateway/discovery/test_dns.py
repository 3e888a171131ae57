"""Discovery in the DNS, against a small server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random

import pytest

from corral.errors import OperatorError
from corral.gateway.config.discovery import DiscoveryConfig, DnsConfig
from corral.gateway.config.places import Address
from corral.gateway.discovery import dns as discovery_dns
from corral.gateway.discovery.discovery import GONE, Discovery
from corral.probes.ollama import probe_session
from tests.gateway.discovery.dns_server import DnsServer, dns_server
from tests.gateway.discovery.stage import Notes, until

NAME = "nodes.test"


@asynccontextmanager
async def looking(
    server: DnsServer, name: str = NAME, interval_s: float = 0.1, leaving_s: float = 60
) -> AsyncIterator[tuple[Discovery, Notes]]:
    notes = Notes()
    dns = DnsConfig(name=name, interval_s=interval_s, server=Address("127.0.0.1", server.port))
    async with probe_session() as session:
        discovery = Discovery(notes, session, asyncio.get_running_loop().time, Random(1))
        discovery.use(DiscoveryConfig(dns=dns, leaving_s=leaving_s))
        try:
            yield discovery, notes
        finally:
            await discovery.close()


async def rounds(server: DnsServer, count: int, kind: str = "A") -> None:
    """Wait for so many further questions."""
    wanted = sum(asked == kind for _, asked in server.asked) + count
    await until(lambda: sum(asked == kind for _, asked in server.asked) >= wanted)


async def test_the_addresses_of_a_name_are_replicas_and_follow_it() -> None:
    async with dns_server() as server:
        server.have(NAME, "A", "10.0.0.1", "10.0.0.2")
        async with looking(server) as (discovery, notes):
            await until(discovery.looked.is_set)
            assert notes.ids == ["10.0.0.1", "10.0.0.2"]
            assert notes.replicas[0].port == 11434
            assert notes.replicas[0].found_by == "dns nodes.test"
            server.have(NAME, "A", "10.0.0.2", "10.0.0.3")
            await until(lambda: notes.serving == ["10.0.0.2", "10.0.0.3"])
            assert notes.holds == {"10.0.0.1": GONE}


async def test_one_that_left_is_forgotten_and_one_that_comes_back_serves() -> None:
    async with dns_server() as server:
        server.have(NAME, "A", "10.0.0.1", "10.0.0.2")
        async with looking(server, leaving_s=1.0) as (_, notes):
            await until(lambda: notes.ids == ["10.0.0.1", "10.0.0.2"])
            server.have(NAME, "A", "10.0.0.2")
            await until(lambda: notes.serving == ["10.0.0.2"])
            server.have(NAME, "A", "10.0.0.1", "10.0.0.2")
            await until(lambda: notes.serving == ["10.0.0.1", "10.0.0.2"])
            server.have(NAME, "A", "10.0.0.2")
            await until(lambda: notes.ids == ["10.0.0.2"])


@pytest.mark.parametrize("trouble", ["is_silent", "fails"])
async def test_a_server_in_trouble_takes_no_replica_away(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery_dns, "LOOKUP_S", 0.1)
    async with dns_server() as server:
        server.have(NAME, "A", "10.0.0.1")
        async with looking(server) as (_, notes):
            await until(lambda: notes.serving == ["10.0.0.1"])
            setattr(server, trouble, True)
            await rounds(server, 6)
            assert notes.serving == ["10.0.0.1"]
            server.have(NAME, "A", "10.0.0.1", "10.0.0.2")
            setattr(server, trouble, False)
            await until(lambda: notes.serving == ["10.0.0.1", "10.0.0.2"])


async def test_a_name_that_is_gone_is_believed_only_when_it_is_said_again_and_again() -> None:
    async with dns_server() as server:
        server.have(NAME, "A", "10.0.0.1")
        async with looking(server) as (_, notes):
            await until(lambda: notes.serving == ["10.0.0.1"])
            server.records.clear()
            await rounds(server, 1)
            assert notes.serving == ["10.0.0.1"]
            await until(lambda: notes.serving == [])
            assert sum(asked == "AAAA" for _, asked in server.asked) >= 3


async def test_an_answer_that_is_cut_off_is_asked_for_over_tcp() -> None:
    async with dns_server() as server:
        addresses = [f"10.0.{number // 200}.{number % 200}" for number in range(600)]
        server.have(NAME, "A", *addresses)
        server.truncates = True
        async with looking(server) as (_, notes):
            await until(lambda: len(notes.ids) == 600)
        assert server.over_tcp >= 1


async def test_ipv6_addresses_count_only_where_there_are_no_others() -> None:
    async with dns_server() as server:
        server.have(NAME, "AAAA", "fd00::1")
        async with looking(server) as (_, notes):
            await until(lambda: notes.ids == ["fd00--1"])
            assert notes.replicas[0].host == "fd00::1"
            server.have(NAME, "A", "10.0.0.1")
            await until(lambda: notes.serving == ["10.0.0.1"])


async def test_srv_records_bring_their_ports() -> None:
    async with dns_server() as server:
        server.have("_ollama._tcp.nodes.test", "SRV", "0 0 31000 a.nodes.test.", "0 0 31001 a.nodes.test.")
        server.have("a.nodes.test", "A", "10.0.0.7")
        async with looking(server, "_ollama._tcp.nodes.test") as (_, notes):
            await until(lambda: notes.ids == ["10.0.0.7-31000", "10.0.0.7-31001"])
            assert sorted(replica.port for replica in notes.replicas) == [31000, 31001]


async def test_records_that_last_are_not_asked_for_again_before_the_interval() -> None:
    async with dns_server() as server:
        server.have(NAME, "A", "10.0.0.1", ttl=300)
        async with looking(server, interval_s=0.4) as (discovery, _):
            await until(discovery.looked.is_set)
            first = len(server.asked)
            begun_s = asyncio.get_running_loop().time()
            await rounds(server, 2)
            assert asyncio.get_running_loop().time() - begun_s >= 2 * 0.4 * 0.9 - 0.1
            assert len(server.asked) <= first + 3


async def test_a_changed_configuration_keeps_what_is_known_until_it_is_read_anew() -> None:
    async with dns_server() as server:
        server.have(NAME, "A", "10.0.0.1")
        async with looking(server) as (discovery, notes):
            await until(lambda: notes.serving == ["10.0.0.1"])
            dns = DnsConfig(name=NAME, interval_s=0.2, server=Address("127.0.0.1", server.port))
            discovery.use(DiscoveryConfig(dns=dns, weight=3.0))
            assert notes.serving == ["10.0.0.1"]
            assert notes.replicas[0].weight == 3.0
            discovery.use(None)
            assert notes.ids == []


async def test_a_server_is_named_by_its_address() -> None:
    async with probe_session() as session:
        discovery = Discovery(Notes(), session, asyncio.get_running_loop().time, Random(1))
        with pytest.raises(OperatorError, match=r"ns\.example is no IP address"):
            discovery.sources(DiscoveryConfig(dns=DnsConfig(name=NAME, server=Address("ns.example", 53))))


async def test_without_the_library_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dns.asyncresolver", None)
    async with probe_session() as session:
        discovery = Discovery(Notes(), session, asyncio.get_running_loop().time, Random(1))
        with pytest.raises(OperatorError, match=r"pip install 'corral\[discovery\]'"):
            discovery.sources(DiscoveryConfig(dns=DnsConfig(name=NAME)))


class Stubborn:
    """A source that does not hear of its end the first time."""

    name = "stubborn"
    is_final = False

    async def run(self, found: object) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()


async def test_a_source_that_swallows_its_end_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async with probe_session() as session:
        discovery = Discovery(Notes(), session, asyncio.get_running_loop().time, Random(1))
        monkeypatch.setattr(discovery, "_source", lambda wanted: Stubborn())
        discovery.use(DiscoveryConfig(dns=DnsConfig(name=NAME)))
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await discovery.close()
