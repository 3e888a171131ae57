"""A gateway whose replicas are gateways: two of them, each with two emulated replicas, all real processes."""

from __future__ import annotations

import asyncio
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.e2e.processes import Emulator, Gateway, ask, emulators, gateway, write_config
from tests.e2e.shapes import CHAT, STREAMS, Verdict
from tests.e2e.streaming import MODEL, WHOLE_AND_SAID, Open
from tests.e2e.traffic import Answer, once

RATE = ("--model", MODEL, "--load-seconds", "0.05", "--context-length", "4096", "--rate")
QUICK = (*RATE, "400", "--parallel", "4")
SLOW = (*RATE, "40", "--parallel", "4")


class Tree:
    """The gateway above, and those below by name."""

    def __init__(self, top: Gateway, nodes: dict[str, Gateway], leaves: Sequence[Emulator]) -> None:
        self.top = top
        self.nodes = nodes
        self.leaves = leaves

    async def ask(self, count: int, tokens: int = 8) -> list[Answer]:
        return list(await asyncio.gather(*(once(self.top.port, CHAT, MODEL, tokens=tokens) for _ in range(count))))

    async def warm(self) -> None:
        """Every replica below holds the model, and the gateway above knows."""
        for leaf in self.leaves:
            await once(leaf.port, CHAT, MODEL, tokens=1)
        for node in self.nodes.values():
            await node.until(lambda page: all(each["loaded"] for each in page["replicas"]), 10, "loaded models")
        await self.top.until(lambda page: all(each["loaded"] for each in page["replicas"]), 10, "loaded models")


@asynccontextmanager
async def tree(folder: Path, *options: str, slots: tuple[int, int] = (4, 4)) -> AsyncIterator[Tree]:
    async with emulators(folder, 4, *options) as leaves:
        below = [leaves[:2], leaves[2:]]
        configs = [node_config(folder / f"n{number}", below[number], slots[number]) for number in (0, 1)]
        async with gateway(configs[0]) as n0, gateway(configs[1]) as n1:
            nodes = {"n0": n0, "n1": n1}
            async with gateway(top_config(folder / "top", nodes)) as top:
                await top.until(
                    lambda page: all(each["below"] and each["installed"] for each in page["replicas"]),
                    15,
                    "a known tree",
                )
                running = Tree(top, nodes, leaves)
                await running.warm()
                yield running


def node_config(folder: Path, leaves: Sequence[Emulator], slots: int) -> Path:
    folder.mkdir()
    return write_config(folder / "corral.yaml", leaves, slots)


def top_config(folder: Path, nodes: dict[str, Gateway]) -> Path:
    folder.mkdir()
    listed = "".join(
        f'  - {{id: {name}, url: "http://127.0.0.1:{node.port}", admin: "http://127.0.0.1:{node.admin_port}"}}\n'
        for name, node in nodes.items()
    )
    config = folder / "corral.yaml"
    config.write_text(f"listen: 127.0.0.1:0\nadmin_listen: 127.0.0.1:0\nreplicas:\n{listed}")
    return config


async def test_a_tree_serves_as_one(tmp_path: Path) -> None:
    """One after the other, since a tree is seven processes to start."""
    async with tree(tmp_path, *SLOW, slots=(4, 2)) as running:
        await models_that_are_below_are_listed_once(running)
        await streams_of_every_dialect_and_errors_pass_two_gateways_verbatim(running)
        await requests_spread_by_capacity_and_wait_above(running)
        await a_drained_node_gets_nothing_and_what_it_does_goes_on(running)
        await a_leaf_that_is_drained_in_its_node_counts_no_more_above(running)
        await a_node_that_dies_breaks_its_streams_visibly_and_the_rest_goes_elsewhere(running)


async def models_that_are_below_are_listed_once(running: Tree) -> None:
    status, page = await ask(running.top.port, "GET", "/api/tags")
    assert status == 200
    assert [model["name"] for model in page["models"]] == [MODEL]


async def streams_of_every_dialect_and_errors_pass_two_gateways_verbatim(running: Tree) -> None:
    for shape in STREAMS:
        for model in (MODEL, "nobody-has:this"):
            through = await once(running.top.port, shape, model, "the same", 4)
            direct = await once(running.leaves[0].port, shape, model, "the same", 4)
            assert (through.status, through.verdict) == (direct.status, direct.verdict), shape.name
            assert re.sub(r"req_\w+", "", through.text) == re.sub(r"req_\w+", "", direct.text)


async def requests_spread_by_capacity_and_wait_above(running: Tree) -> None:
    await running.ask(4, tokens=2)
    begun = [await Open(running.top.port, CHAT, 60).begin() for _ in range(12)]
    assert Counter(each.replica for each in begun) == {"n0/r0": 4, "n0/r1": 4, "n1/r2": 2, "n1/r3": 2}
    later = asyncio.create_task(once(running.top.port, CHAT, MODEL, tokens=2))
    await running.top.until(lambda page: page["requests"]["queued"] == 1, 5, "one that waits above")
    for node in running.nodes.values():
        assert (await node.requests())[1] == 0
    assert [await each.end() for each in begun] == [WHOLE_AND_SAID] * 12
    assert (await later).verdict is Verdict.COMPLETE
    for node in running.nodes.values():
        await node.until_idle()


async def a_drained_node_gets_nothing_and_what_it_does_goes_on(running: Tree) -> None:
    begun = [await Open(running.top.port, CHAT, 30).begin() for _ in range(6)]
    await ask(running.top.admin_port, "POST", "/replicas/n0/drain")
    answers = await running.ask(2, tokens=2)
    assert {answer.header("x-corral-replica").partition("/")[0] for answer in answers} == {"n1"}
    assert [await each.end() for each in begun] == [WHOLE_AND_SAID] * len(begun)
    await ask(running.top.admin_port, "POST", "/replicas/n0/resume")


async def a_leaf_that_is_drained_in_its_node_counts_no_more_above(running: Tree) -> None:
    await ask(running.nodes["n0"].admin_port, "POST", "/replicas/r0/drain")
    await running.top.until(lambda page: page["replicas"][0]["slots"] == 4, 5, "a node with half its slots")
    begun = [await Open(running.top.port, CHAT, 30).begin() for _ in range(8)]
    assert Counter(each.replica for each in begun) == {"n0/r1": 4, "n1/r2": 2, "n1/r3": 2}
    assert [await each.end() for each in begun] == [WHOLE_AND_SAID] * 8


async def a_node_that_dies_breaks_its_streams_visibly_and_the_rest_goes_elsewhere(running: Tree) -> None:
    begun = [await Open(running.top.port, CHAT, 40).begin() for _ in range(6)]
    at_n0 = [each for each in begun if each.replica.startswith("n0/")]
    others = [each for each in begun if each.replica.startswith("n1/")]
    assert at_n0
    assert others
    running.nodes["n0"].process.kill()
    assert {(await each.end())[0] for each in at_n0} == {Verdict.ERROR}
    assert {answer.verdict for answer in await running.ask(3, tokens=2)} == {Verdict.COMPLETE}
    assert [await each.end() for each in others] == [WHOLE_AND_SAID] * len(others)


async def test_a_node_that_stops_loses_no_request(tmp_path: Path) -> None:
    async with tree(tmp_path, *QUICK) as running:
        verdicts: Counter[Verdict] = Counter()
        done = asyncio.Event()

        async def client() -> None:
            while not done.is_set():
                verdicts[(await once(running.top.port, CHAT, MODEL, tokens=20)).verdict] += 1

        clients = [asyncio.create_task(client()) for _ in range(6)]
        running.nodes["n0"].signal(signal.SIGTERM)
        assert await running.nodes["n0"].ended(20) == 0
        before = verdicts.total()
        while verdicts.total() < before + 20:
            await asyncio.sleep(0.02)
        done.set()
        await asyncio.gather(*clients)
        assert verdicts == {Verdict.COMPLETE: verdicts.total()}


async def test_a_request_that_comes_back_is_refused_instead_of_going_round(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        (leaf,) = await stack.enter_async_context(emulators(tmp_path, 1, *QUICK))
        top = await stack.enter_async_context(gateway(write_config(tmp_path / "corral.yaml", [leaf])))
        config = tmp_path / "corral.yaml"
        address = f"{{id: me, url: 'http://localhost:{top.port}', admin: 'http://localhost:{top.admin_port}'}}"
        config.write_text(
            f"listen: 127.0.0.1:0\nadmin_listen: 127.0.0.1:0\nreplicas:\n"
            f"  - {{id: r0, url: 'http://127.0.0.1:{leaf.port}'}}\n  - {address}\n"
        )
        top.signal(signal.SIGHUP)

        def is_found_out(page: dict[str, list[dict[str, object]]]) -> bool:
            return any("come back here" in str(each["held"]) for each in page["replicas"])

        await top.until(is_found_out, 10, "the loop")
        answers = [await once(top.port, CHAT, MODEL, tokens=2) for _ in range(4)]
        assert {(each.verdict, each.header("x-corral-replica")) for each in answers} == {(Verdict.COMPLETE, "r0")}
