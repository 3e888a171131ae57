"""Ten thousand requests while clients leave and replicas fail, die and freeze: what is promised, as equalities.

``CORRAL_CHAOS_REQUESTS`` and ``CORRAL_CHAOS_SEED`` make it longer or another one (then with ``--timeout 0``).
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from tests.e2e.chaos import CLIENTS, EMBEDDING, MODELS, Chaos, Tally, expected_texts
from tests.e2e.fleets import Fleet, fleet
from tests.e2e.processes import Emulator
from tests.e2e.shapes import CHAT, EMBED, Verdict
from tests.e2e.traffic import Client, once

REQUESTS = int(os.environ.get("CORRAL_CHAOS_REQUESTS", "10000"))
SEED = int(os.environ.get("CORRAL_CHAOS_SEED", "2"))
ROUND = 625
SLOTS = 4
OPTIONS = [option for model in (*MODELS, EMBEDDING) for option in ("--model", model)]
OPTIONS += ["--speed", "12", "--parallel", str(SLOTS), "--context-length", "4096"]


async def storm(running: Fleet) -> Tally:
    chaos = Chaos(running, SEED, await expected_texts(running.emulators[0]))
    rounds = REQUESTS // ROUND
    for number in range(rounds):
        await chaos.round(ROUND, kills=1 + number % 2, freeze=number % 6 == 3)
    chaos.close()
    return chaos.tally


async def assert_every_slot_is_usable(running: Fleet) -> None:
    """Each replica holds as many requests of each model as it has slots, all at the same time."""
    gateway = running.gateway
    await until_all_are_up(running)
    await load_all_models(running)
    for each in running.emulators:
        await each.fault("hang", count=None)
    clients = [Client(gateway.port) for _ in range(SLOTS * len(running.emulators) * (len(MODELS) + 1))]
    for number, client in enumerate(clients):
        model = (*MODELS, EMBEDDING)[number % (len(MODELS) + 1)]
        shape = EMBED if model == EMBEDDING else CHAT
        await client.send(shape.path, shape.body(model, "hi", 4))
    full = {f"{model}": SLOTS for model in (*MODELS, f"{EMBEDDING}:latest")}
    await gateway.until(
        lambda page: all(each["in_flight_by_model"] == full for each in page["replicas"]), 10, "every slot in use"
    )
    assert await gateway.requests() == (len(clients), 0)
    for client in clients:
        client.close()
    await gateway.until_idle()
    for each in running.emulators:
        await each.clear_faults()


async def until_at_rest(emulator: Emulator) -> None:
    """It does nothing any more: a load of the gateway ends although whoever waited for it was served elsewhere."""
    async with asyncio.timeout(10):
        while True:
            stats = await emulator.stats()
            if (stats["active_streams"], stats["slots_held"], stats["pending"]) == (0, 0, 0):
                return
            await asyncio.sleep(0.01)


async def load_all_models(running: Fleet) -> None:
    """Every replica holds every model, and the gateway knows."""
    full = {*MODELS, f"{EMBEDDING}:latest"}
    for each in running.emulators:
        for model in MODELS:
            assert (await once(each.port, CHAT, model, tokens=1)).verdict is Verdict.COMPLETE
        assert (await once(each.port, EMBED, EMBEDDING)).verdict is Verdict.COMPLETE
    await running.gateway.until(
        lambda page: all(full <= set(each["loaded"]) for each in page["replicas"]), 10, "all models in memory"
    )


async def until_all_are_up(running: Fleet) -> None:
    """A replica that was taken out for failing comes back by a request that it answers: load all of them, at times."""
    until_s = time.monotonic() + 45
    while set((await running.gateway.health()).values()) != {"up"}:
        assert time.monotonic() < until_s, await running.gateway.health()
        asked = [once(running.gateway.port, CHAT, MODELS[0]) for _ in range(SLOTS * len(running.emulators))]
        assert {answer.verdict for answer in await asyncio.gather(*asked)} == {Verdict.COMPLETE}
        await asyncio.sleep(0.1)


async def test_ten_thousand_requests_survive_chaos(tmp_path: Path) -> None:
    began_s = time.monotonic()
    async with fleet(tmp_path, 4, *OPTIONS, slots=SLOTS, more="timeouts: {stall_s: 5}\n") as running:
        gateway = running.gateway
        descriptors = gateway.descriptors(running.ports)
        tally = await storm(running)
        report(tally, time.monotonic() - began_s)

        assert tally.wrong == []  # nothing lost, no false end, no text of another request
        assert tally.asked == REQUESTS // ROUND * ROUND
        assert await gateway.requests() == (0, 0)
        for each in running.emulators:
            await until_at_rest(each)
        await assert_every_slot_is_usable(running)
        await gateway.until(lambda page: gateway.descriptors(running.ports) == descriptors, 10, "the descriptors")
        for each in running.emulators:
            each.kill()
        await gateway.until(lambda page: gateway.descriptors() == descriptors, 10, "the connections to replicas")
        assert "Traceback" not in gateway.said()
        assert "task_failed" not in gateway.said()
    assert len(tally.faults) >= 5
    assert tally.verdicts[Verdict.ERROR] > 0
    assert sum(tally.left.values()) > REQUESTS / 10
    assert tally.kills >= 20 * REQUESTS // 10_000


def report(tally: Tally, seconds: float) -> None:
    print(f"\n{tally.asked} requests from {CLIENTS} clients in {seconds:.0f} s, seed {SEED}")  # noqa: T201
    print(f"  answers     {named(tally.verdicts)}, 404 {tally.not_found}")  # noqa: T201
    print(f"  clients left {named(tally.left)}")  # noqa: T201
    print(f"  broken after the first byte, by shape: {dict(tally.broken_by)}")  # noqa: T201
    print(f"  faults hit  {dict(tally.faults)}; killed {tally.kills}, frozen {tally.freezes}")  # noqa: T201
    for each in tally.wrong[:10]:
        print(f"  WRONG {each}")  # noqa: T201


def named(counts: object) -> str:
    return ", ".join(f"{key.name.lower()} {count}" for key, count in counts.items())  # type: ignore[attr-defined]
