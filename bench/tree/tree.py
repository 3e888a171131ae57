"""A Corral above several: what the gateway does with replicas that are Corrals, in virtual time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from random import Random

from bench.tree.node import ABOVE, Node, Part
from corral.errors import Fault
from corral.gateway.schedule.effects import Effect, Interrupt, Load, Refuse, Send, Unload
from corral.gateway.schedule.scheduler import Scheduler
from corral.laboratory.engine import World, _run
from corral.laboratory.ours import TICK_S, UNLIMITED, LabTicket, figures_of, route_request
from corral.laboratory.polling import INTERVAL_S, VERSION
from corral.laboratory.requests import Request, Stopwatch
from corral.laboratory.types import Arrival, Box, BoxReplica, Run
from corral.model import InstalledModel, LoadedModel, OllamaSample, ProbeResult, Replica
from corral.policies import make_policy

POLICY = "weighted-least-load"


class Tree:
    """The Corral above. It is told of a node what a gateway would read from it, in the gateway's rhythm."""

    def __init__(self, world: World, parts: Sequence[Sequence[BoxReplica]], seed: int) -> None:
        self.name = f"tree of {len(parts)}"
        self.stopwatch = Stopwatch()
        self.decisions = 0
        self._world = world
        self._rng = Random(f"tree {seed}")
        self.scheduler: Scheduler[LabTicket] = Scheduler(make_policy(POLICY, None, {}), POLICY, UNLIMITED, Random(seed))
        self.nodes = {
            f"node{number}": Node(Part(world, f"node{number}", part, self), POLICY, seed * 100 + number)
            for number, part in enumerate(parts)
        }
        self._tickets: dict[Request, LabTicket] = {}
        self._where: dict[Request, Node] = {}
        self._effects: deque[Effect[LabTicket]] = deque()

    # -- the world's side

    def start(self) -> None:
        for node in self.nodes.values():
            node.start()
        replicas = [
            Replica(name, "127.0.0.1", 20000 + number, admin=("127.0.0.1", 30000 + number))
            for number, name in enumerate(self.nodes)
        ]
        self._decide(lambda now_s: self.scheduler.set_placement(True, now_s))
        self._decide(lambda now_s: self.scheduler.set_replicas(replicas, now_s))
        for name in self.nodes:
            self._read(name)
        self._world.clock.at(TICK_S, self._tick)

    def arrived(self, request: Request) -> None:
        ticket = LabTicket(request, route_request(request.arrival), self._world.now_s)
        self._tickets[request] = ticket
        self._decide(lambda now_s: self.scheduler.submit(ticket, now_s))

    def first_token(self, request: Request) -> None:
        self._where[request].first_token(request)
        leaf = request.outcome.replica_id or ""
        ticket = self._tickets[request]
        self.stopwatch.time(lambda: self.scheduler.first_byte(ticket, self._world.now_s, leaf))

    def ended(self, request: Request) -> None:
        self._where[request].ended(request)

    def failed(self, request: Request, fault: Fault) -> None:
        self._where[request].failed(request, fault)

    def broke(self, request: Request) -> None:
        self._where[request].broke(request)

    def revived(self, replica_id: str) -> None:
        """The next reading will tell."""

    # -- a node's side

    def node_closed(self, request: Request, *, ok: bool) -> None:
        """A node has answered, or says that it cannot."""
        del self._where[request]
        ticket = self._tickets[request]
        if not ok and ticket.lease is not None and not ticket.lease.committed:
            self._decide(lambda now_s: self.scheduler.failed(ticket, Fault.BUSY, now_s))
            return
        figures = figures_of(request) if ok else None
        self._decide(lambda now_s: self.scheduler.finish(ticket, now_s, ok=ok, figures=figures))
        self._close(ticket, ok=ok)

    # -- the scheduler

    def _decide(self, call: Callable[[float], Iterable[Effect[LabTicket]]]) -> None:
        now_s, is_first = self._world.now_s, not self._effects
        self._effects.extend(self.stopwatch.time(lambda: call(now_s)))
        while is_first and self._effects:
            self._carry_out(self._effects[0])
            self._effects.popleft()

    def _carry_out(self, effect: Effect[LabTicket]) -> None:
        match effect:
            case Send(ticket, lease):
                self.decisions += 1
                node = self._where[ticket.carried] = self.nodes[lease.replica.id]
                node.send(ticket.carried, "" if lease.leaf is None else lease.leaf.load.id)
            case Refuse(ticket):
                self._close(ticket, ok=False)
            case Interrupt():
                raise RuntimeError("no node ever goes down here")
            case Load(replica, model, _, number):
                name, _, leaf = replica.id.partition("/")
                self.nodes[name].preload(model, leaf, lambda ok: self._load_ended(replica.id, number, ok))
            case Unload():
                raise RuntimeError("what leaves the memory of a node is the node's affair")
            case _:
                pass

    def _load_ended(self, id: str, number: int, ok: bool) -> None:
        self._decide(lambda now_s: self.scheduler.load_ended(id, number, now_s, ok=ok))
        self._read_load(id.partition("/")[0])

    def _close(self, ticket: LabTicket, *, ok: bool) -> None:
        del self._tickets[ticket.carried]
        self._world.close(ticket.carried, ok=ok)

    def _tick(self) -> None:
        self._decide(self.scheduler.tick)
        self._world.clock.at(self._world.now_s + TICK_S, self._tick)

    # -- readings

    def _read(self, name: str) -> None:
        """One round: it is there, what it has installed and in memory, and how its replicas stand."""
        self._decide(lambda now_s: self.scheduler.probed(name, ProbeResult.ANSWERED, now_s))
        models = self._world.box.models
        installed = tuple(InstalledModel(each.name, each.blob_digest, size_bytes=each.file_bytes) for each in models)
        self._sampled(OllamaSample(name, self._world.now_s, VERSION, installed, None))
        self._read_load(name)
        self._world.clock.at(self._world.now_s + INTERVAL_S * self._rng.uniform(0.9, 1.0), lambda: self._read(name))

    def _read_load(self, name: str) -> None:
        now_s = self._world.now_s
        tree = self.nodes[name].scheduler.tree_load(name, ABOVE, now_s, draining=False)
        loaded: dict[str, LoadedModel] = {}
        for replica in tree.replicas:
            loaded |= {model.name: model for model in replica.loaded}
        self._sampled(OllamaSample(name, now_s, VERSION, None, tuple(loaded.values())))
        self._decide(lambda now_s: self.scheduler.tree_read(name, tree, ABOVE, now_s, now_s))

    def _sampled(self, sample: OllamaSample) -> None:
        self._decide(lambda now_s: self.scheduler.sampled(sample, now_s))


def parts_of(box: Box, nodes: int) -> list[list[BoxReplica]]:
    """The box's GPUs in so many parts, in their order: so the nodes are as unequal as they can be."""
    size = -(-len(box.replicas) // nodes)
    return [list(box.replicas[first : first + size]) for first in range(0, len(box.replicas), size)]


def run_tree(box: Box, arrivals: Sequence[Arrival], nodes: int, seed: int) -> Run:
    """The box's GPUs behind so many Corrals, and one above them."""
    world = World(box, arrivals)
    tree = Tree(world, parts_of(box, nodes), seed)
    world.front = tree
    world.play()
    return _run(world, tree.name, seed, tree.stopwatch.total_s, tree.decisions)
