"""`python -m bench.snapshot`: what one look at a busy scheduler costs, which `/live` takes twice a second.

16 replicas with 50 models each, 8 slots a model, 512 requests waiting for 20 of the models, of 100 tenants and all
classes, and as many in flight as there are slots for them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from random import Random
from statistics import median

from corral.gateway.schedule.scheduler import QueueLimits, Scheduler
from corral.gateway.schedule.ticket import Ticket
from corral.gateway.serve.snapshot import snapshot_json
from corral.model import InstalledModel, LoadedModel, OllamaSample, Replica, RequestKind, RouteRequest
from corral.policies import make_policy

REPLICAS, MODELS, ASKED, TENANTS, WAITING = 16, 50, 20, 100, 512
ROUNDS = 300


def busy() -> Scheduler[Ticket]:
    rng = Random(1)
    scheduler: Scheduler[Ticket] = Scheduler(make_policy("weighted-least-load"), "p", QueueLimits(WAITING), rng)
    scheduler.set_replicas([Replica(f"gpu{n}", "127.0.0.1", n + 1, slots=8) for n in range(REPLICAS)], 0.0)
    names = [f"model-{number:02}:7b" for number in range(MODELS)]
    listed = tuple(InstalledModel(name, f"digest of {name}") for name in names)
    loaded = tuple(LoadedModel(name, 1 << 30, 1 << 30, 4096) for name in names[:ASKED])
    for number in range(REPLICAS):
        scheduler.sampled(OllamaSample(f"gpu{number}", 0.0, "0.32.15", listed, loaded), 0.0)
    while scheduler.queued < WAITING:
        request = RouteRequest(
            RequestKind.INFERENCE,
            names[rng.randrange(ASKED)],
            tenant=f"tenant-{rng.randrange(TENANTS)}",
            rank=rng.randrange(3),
        )
        scheduler.submit(Ticket(request, 0.001 * scheduler.queued), 1.0)
    return scheduler


def milliseconds(look: Callable[[], object]) -> float:
    spent = []
    for _ in range(ROUNDS):
        began_s = time.perf_counter()
        look()
        spent.append(time.perf_counter() - began_s)
    return 1000 * median(spent)


def main() -> int:
    scheduler = busy()
    whole = replace(scheduler.snapshot(2.0), waiting=scheduler.waiting(2.0), running=scheduler.running(2.0))
    print(f"{scheduler.queued} waiting, {scheduler.inflight} in flight, {REPLICAS} replicas, {MODELS} models")
    print(f"replicas and counts   {milliseconds(lambda: scheduler.snapshot(2.0)):.3f} ms")
    print(f"50 that wait longest  {milliseconds(lambda: scheduler.waiting(2.0)):.3f} ms")
    print(f"50 sent first         {milliseconds(lambda: scheduler.running(2.0)):.3f} ms")
    print(f"as JSON               {milliseconds(lambda: json.dumps(snapshot_json(whole))):.3f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
