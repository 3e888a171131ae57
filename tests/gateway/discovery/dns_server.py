"""A small DNS server on loopback, over UDP and TCP, whose records can be changed while it runs."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset


class DnsServer(asyncio.DatagramProtocol):
    """Answers from :attr:`records`; a name that is not there does not exist."""

    def __init__(self) -> None:
        self.port = 0
        self.records: dict[tuple[str, str], tuple[int, list[str]]] = {}
        """(name, kind) → (time to live, values)."""
        self.is_silent = False
        self.fails = False
        self.truncates = False
        self.asked: list[tuple[str, str]] = []
        self.over_tcp = 0
        self._transport: asyncio.DatagramTransport | None = None

    def have(self, name: str, kind: str, *values: str, ttl: int = 0) -> None:
        self.records[f"{name}.", kind] = ttl, list(values)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self._answer(data, may_truncate=True)
        if answer is not None and self._transport is not None:
            self._transport.sendto(answer, addr)

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            length = int.from_bytes(await reader.readexactly(2), "big")
            answer = self._answer(await reader.readexactly(length), may_truncate=False)
            self.over_tcp += 1
            if answer is not None:
                writer.write(len(answer).to_bytes(2, "big") + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(self, data: bytes, *, may_truncate: bool) -> bytes | None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, kind = question.name.to_text(), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        if self.is_silent:
            return None
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        if self.fails:
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif self.truncates and may_truncate:
            answer.flags |= dns.flags.TC
        elif (name, kind) in self.records:
            ttl, values = self.records[name, kind]
            if values:
                answer.answer.append(dns.rrset.from_text(name, ttl, "IN", kind, *values))
        elif not any(known == name for known, _ in self.records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer.to_wire()


@asynccontextmanager
async def dns_server() -> AsyncIterator[DnsServer]:
    """One that listens on the same free port over both."""
    server, loop = DnsServer(), asyncio.get_running_loop()
    tcp = await asyncio.start_server(server.stream, "127.0.0.1", 0)
    server.port = tcp.sockets[0].getsockname()[1]
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setblocking(False)
    udp.bind(("127.0.0.1", server.port))
    transport, _ = await loop.create_datagram_endpoint(lambda: server, sock=udp)
    try:
        yield server
    finally:
        transport.close()
        tcp.close()
        await tcp.wait_closed()
