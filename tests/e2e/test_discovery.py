"""A gateway whose replicas come and go: found in the DNS, added and removed under load, and no request is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.e2e.processes import Emulator, Gateway, emulators, gateway
from tests.e2e.shapes import CHAT, STREAMS, Verdict
from tests.e2e.streaming import MODEL, SLOW, WHOLE_AND_SAID, Open, streams
from tests.e2e.traffic import once
from tests.gateway.discovery.api_server import api_server, endpoint, slice_of
from tests.gateway.discovery.dns_server import DnsServer, dns_server

NAME = "_ollama._tcp.nodes.test"
HOST = "all.nodes.test"
QUICK = ("--model", MODEL, "--rate", "400", "--load-seconds", "0.05", "--parallel", "4", "--context-length", "4096")


def publish(server: DnsServer, replicas: Iterable[Emulator]) -> None:
    """Name exactly these; one SRV record each, since all have one address."""
    server.have(HOST, "A", "127.0.0.1")
    server.have(NAME, "SRV", *(f"0 0 {replica.port} {HOST}." for replica in replicas))


def id_of(replica: Emulator) -> str:
    return f"127.0.0.1-{replica.port}"


def configuration(folder: Path, server: DnsServer) -> Path:
    path = folder / "corral.yaml"
    path.write_text(
        "listen: 127.0.0.1:0\nadmin_listen: 127.0.0.1:0\n"
        "discovery:\n"
        f"  dns: {{name: {NAME}, interval_s: 0.1, server: '127.0.0.1:{server.port}'}}\n"
        "  slots: 4\n  leaving_s: 1\n"
    )
    return path


async def until_serving(front: Gateway, replicas: Iterable[Emulator]) -> None:
    await until_ids_serve(front, *map(id_of, replicas))


async def until_ids_serve(front: Gateway, *ids: str) -> None:
    wanted = sorted(ids)

    def is_so(page: dict[str, list[dict[str, object]]]) -> bool:
        serving = [each["id"] for each in page["replicas"] if each["health"] == "up" and each["held"] is None]
        return sorted(map(str, serving)) == wanted

    await front.until(is_so, 15, f"{wanted} in service")


async def test_replicas_come_and_go_under_load_and_no_request_is_lost(tmp_path: Path) -> None:
    async with dns_server() as server, emulators(tmp_path, 3, *QUICK) as (r0, r1, r2):
        publish(server, [r0, r1])
        async with gateway(configuration(tmp_path, server)) as front:
            await until_serving(front, [r0, r1])
            met: Counter[str] = Counter()
            verdicts: Counter[Verdict] = Counter()
            done = asyncio.Event()

            async def client(number: int) -> None:
                shapes = list(STREAMS)
                while not done.is_set():
                    answer = await once(front.port, shapes[number % len(shapes)], MODEL, tokens=12)
                    verdicts[answer.verdict] += 1
                    met[answer.header("x-corral-replica")] += 1

            clients = [asyncio.create_task(client(number)) for number in range(8)]
            publish(server, [r0, r1, r2])
            await until_serving(front, [r0, r1, r2])
            publish(server, [r1, r2])
            await until_serving(front, [r1, r2])
            await front.until(lambda page: len(page["replicas"]) == 2, 10, "the removed one forgotten")
            r0.kill()
            before = verdicts.total()
            while verdicts.total() < before + 20:
                await asyncio.sleep(0.02)
            done.set()
            await asyncio.gather(*clients)
            assert verdicts == {Verdict.COMPLETE: verdicts.total()}
            assert id_of(r0) in met
            assert {each["found_by"] for each in (await front.snapshot())["replicas"]} == {f"dns {NAME}"}


async def test_streams_of_a_replica_that_leaves_end_whole(tmp_path: Path) -> None:
    async with dns_server() as server, emulators(tmp_path, 2, *SLOW) as (r0, r1):
        publish(server, [r0])
        async with gateway(configuration(tmp_path, server)) as front:
            await until_serving(front, [r0])
            begun = await streams(front.port, 60)
            publish(server, [r1])
            await until_serving(front, [r1])
            answer = await once(front.port, CHAT, MODEL, tokens=3)
            assert answer.header("x-corral-replica") == id_of(r1)
            assert [await each.end() for each in begun] == [WHOLE_AND_SAID] * len(begun)
            await front.until_idle()


async def test_pods_come_and_go_and_one_that_terminates_finishes_what_it_does(tmp_path: Path) -> None:
    async with api_server() as api, emulators(tmp_path, 1, *SLOW, "--listen", "127.0.0.2:0") as (one,):
        ports = [{"name": "ollama", "port": one.port}]
        other = emulators(tmp_path, 1, *SLOW, "--listen", f"127.0.0.3:{one.port}", first=1)
        api.put(slice_of("a", endpoint("127.0.0.2"), ports=ports))
        path = tmp_path / "corral.yaml"
        path.write_text(
            "listen: 127.0.0.1:0\nadmin_listen: 127.0.0.1:0\n"
            "discovery:\n  slots: 8\n  kubernetes:\n"
            f"    {{service: corral-nodes, namespace: corral, service_account: {tmp_path},\n"
            f"     api: 'http://127.0.0.1:{api.port}'}}\n"
        )
        async with other, gateway(path) as front:
            await until_ids_serve(front, "127.0.0.2")
            begun = await Open(front.port, CHAT, 60).begin()
            terminating = endpoint("127.0.0.2", ready=False, terminating=True)
            api.put(slice_of("a", terminating, endpoint("127.0.0.3"), ports=ports))
            await until_ids_serve(front, "127.0.0.3")
            answer = await once(front.port, CHAT, MODEL, tokens=2)
            assert (answer.verdict, answer.header("x-corral-replica")) == (Verdict.COMPLETE, "127.0.0.3")
            assert begun.replica == "127.0.0.2"
            assert await begun.end() == WHOLE_AND_SAID
