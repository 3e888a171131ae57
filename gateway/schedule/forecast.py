"""How long a request would take on a replica: what was learned of costs, applied to what is going on there now."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from corral.gateway.schedule.below import Below, Leaf, leaf_lease
from corral.gateway.schedule.costs import Costs
from corral.gateway.schedule.member import Member
from corral.gateway.schedule.prefix import BLOCK_BYTES, Prefixes
from corral.gateway.schedule.ticket import Lease
from corral.model import Figures, Prediction, RouteRequest

FIRST: Final = 1.0
END: Final = 0.1
OTHERS: Final = 0.3
"""What a second until the first token, until the end, and of the others' delay weighs: tried in the laboratory."""
OVERLOADED: Final = 1.25
"""How much dearer one is that has had more than its share for long."""
FADE_S: Final = 60.0
THROTTLED: Final = 1.05
"""From this slowdown on, what is measured says nothing of full clocks."""
_NEAR_RATIO: Final = 0.03
_NEAR_S: Final = 0.005
"""Of replicas that are as good as equal the default policy takes the emptier one, and so does a Corral below."""
_ALONE_RATIO: Final = 0.2
"""A prompt that waited longer than this share of itself for others says little about its own cost."""


class Ask(NamedTuple):
    """What one request needs, wherever it goes."""

    key: str
    model: str
    prompt_tokens: float
    output_tokens: float
    prefix: tuple[int, ...]
    block_tokens: float
    knows_prefill: bool
    """Whether it was learned what a token of a prompt takes."""
    knows_decode: bool
    signature: str = ""


class Forecast:
    """Predicts, and learns from what became of what it predicted."""

    def __init__(self) -> None:
        self.costs = Costs()
        self.prefixes = Prefixes()
        self._learned_s: dict[str, float] = {}
        """By replica: when it last taught anything, or was faded."""
        self.is_learning = True
        self.uses_prefixes = True

    def ask(self, request: RouteRequest) -> Ask:
        costs = self.costs
        tokens = costs.prompt_tokens(request)
        size = request.body_bytes if request.text_bytes is None else request.text_bytes
        block_tokens = tokens * BLOCK_BYTES / size if size else 0.0
        prefix = request.prefix if self.uses_prefixes else ()
        key = request.key
        return Ask(
            key,
            request.model or "",
            tokens,
            costs.output_tokens(request),
            prefix,
            block_tokens,
            costs.prefill.knows(key),
            costs.decode.knows(key),
            request.signature,
        )

    def knows(self, key: str) -> bool:
        return self.costs.decode.knows(key) or self.costs.prefill.knows(key)

    def predict(self, member: Member[Any], ask: Ask, now_s: float) -> Prediction:
        """Something must be known of the key. Parts of which nothing is known are zero, on every replica alike."""
        if member.below is not None and member.below.usable:
            return self._best_below(member.below, ask, now_s)[1]
        costs, inflight = self.costs, member.inflight
        beside = inflight.get(ask.model, 0)
        stretch = 1.0 + len(inflight) - (beside > 0)
        gpu = member.gpu
        slowdown = 1.0
        if gpu is not None:
            stretch += gpu.foreign
            slowdown = self._derate(member, gpu.slowdown)
        hit = self.prefixes.hit_blocks(member.id, ask.key, ask.prefix) if ask.prefix else 0
        cached = min(hit * ask.block_tokens, ask.prompt_tokens)
        prefill_s = saved_s = decode_s = others_s = 0.0
        if ask.knows_prefill:
            token_s = costs.prefill.line(member.id, ask.key)[0] * stretch
            prefill_s, saved_s = (ask.prompt_tokens - cached) * token_s, cached * token_s
        if ask.knows_decode:
            alone_s, more_s = costs.decode.line(member.id, ask.key)
            decode_s = (alone_s + more_s * beside) * stretch * ask.output_tokens
            others_s = beside * more_s * stretch * ask.output_tokens
        others_s += member.decoding * prefill_s
        if not beside and inflight:
            others_s += member.rest_s
        wait_s = member.pending_s(now_s)
        first_s = wait_s + prefill_s
        if member.is_overloaded:
            slowdown *= OVERLOADED
        cost_s = (FIRST * first_s + END * (first_s + decode_s) + OTHERS * others_s) * slowdown
        return Prediction(wait_s, prefill_s, decode_s, others_s, saved_s, slowdown, cost_s)

    def cost_after_wait_s(self, member: Member[Any], ask: Ask, now_s: float) -> float:
        """What it would cost there if it went into the next slot that is free: one of them is, on average, in the time
        of an answer divided by their number, however long they have taken."""
        if member.below is not None and member.below.usable:
            return min(self.cost_after_wait_s(leaf, ask, now_s) for leaf in member.below.usable)
        predicted = self.predict(member, ask, now_s)
        wait_s = predicted.decode_s / member.slots_of(ask.model)
        return predicted.cost_s + (FIRST + END) * wait_s * predicted.slowdown

    def _best_below(self, below: Below[Any], ask: Ask, now_s: float) -> tuple[Leaf[Any], Prediction]:
        """Where a Corral would send it, as far as can be known here, and what that takes."""
        queue_s = below.queue_s.get(ask.model, 0.0)
        found = [
            (leaf, _later(self.predict(leaf, ask, now_s), queue_s + leaf.load.wait_s))
            for leaf in below.candidates(ask.model, ask.signature)
        ]
        limit = min(predicted.cost_s for _, predicted in found) * (1.0 + _NEAR_RATIO) + _NEAR_S
        near = [each for each in found if each[1].cost_s <= limit]
        return min(near, key=lambda each: (each[0].taken + 1) / each[0].replica.weight)

    def _derate(self, member: Member[Any], slowdown: float) -> float:
        """As much of what its GPUs report as the learned rates do not know yet: slow answers teach it, too."""
        return max(1.0, slowdown / max(1.0, self.costs.decode.absorbed(member.id))) if slowdown > 1.0 else 1.0

    def service_s(self, ask: Ask) -> float:
        """GPU-seconds it takes on a replica of weight 1, about: what it is charged with, and ordered by."""
        costs = self.costs
        known_s = 0.0
        if ask.knows_prefill:
            known_s += costs.prefill.key_s(ask.key) * ask.prompt_tokens
        if ask.knows_decode:
            known_s += costs.decode.key_s(ask.key) * ask.output_tokens
        return known_s or 1.0

    def speed(self, member: Member[Any]) -> float:
        """How fast it is, beside a replica of weight 1."""
        if member.below is not None and member.below.usable:
            return sum(self.speed(leaf) for leaf in member.below.usable)
        return self.costs.decode.speed(member.id, member.replica.weight)

    def request_s(self, key: str, slots: int) -> float:
        """Seconds that one request takes of a replica of speed 1 that is busy with ``slots`` of them at once."""
        costs = self.costs
        prompt, output = costs.usual(key)
        taken_s = 0.0
        if costs.prefill.knows(key):
            taken_s += costs.prefill.key_s(key) * prompt
        if costs.decode.knows(key):
            taken_s += costs.decode.key_s(key) * costs.decode.crowd(slots) / slots * output
        return taken_s or (costs.service_s(key) or 1.0) / slots

    def fade(self, now_s: float) -> None:
        """Some times a second: who has taught nothing for long is thought of less surely."""
        for replica_id, learned_s in self._learned_s.items():
            if now_s - learned_s >= FADE_S:
                self._learned_s[replica_id] = now_s
                self.costs.decode.fade(replica_id)
                self.costs.prefill.fade(replica_id)

    def use(self, weights: dict[str, float]) -> None:
        """These are the replicas now, those below Corrals among them."""
        self._learned_s = {id: learned_s for id, learned_s in self._learned_s.items() if id in weights}
        self.costs.decode.set_weights(weights)
        self.costs.prefill.set_weights(weights)

    def forget(self, replica_id: str) -> None:
        """Another one answers under this name, or none."""
        self.costs.decode.forget(replica_id)
        self.costs.prefill.forget(replica_id)
        self.prefixes.forget(replica_id)

    def charge_s(self, lease: Lease, now_s: float) -> float:
        """The share of a GPU that a request had, in seconds."""
        if lease.key is None:
            return 0.0
        return (now_s - lease.sent_at_s) / max(1, lease.inflight)

    # ---- what became of it

    def sent(self, member: Member[Any], lease: Lease, ask: Ask, predicted: Prediction | None, now_s: float) -> None:
        """The request was just counted in there."""
        lease.ask = ask
        if predicted is not None:
            member.predicted(lease, predicted, now_s)
        if member.below is not None and member.below.usable:
            self._sent_below(member.below, lease, ask, now_s)
            return
        if ask.prefix:
            hit = self.prefixes.hit_blocks(member.id, ask.key, ask.prefix)
            lease.cached_tokens = min(hit * ask.block_tokens, ask.prompt_tokens)
        self.prefixes.sent(member.id, ask.key, ask.prefix)

    def _sent_below(self, below: Below[Any], lease: Lease, ask: Ask, now_s: float) -> None:
        """It counts where the Corral will probably send it."""
        preferred = below.leaves.get(lease.ticket.request.prefer.partition("/")[2])
        if preferred is not None and preferred.has_room(ask.model) and preferred.memory.holds(ask.model, ask.signature):
            leaf, predicted = preferred, self.predict(preferred, ask, now_s) if self.knows(ask.key) else None
        elif self.knows(ask.key):
            leaf, predicted = self._best_below(below, ask, now_s)
        else:
            leaves = below.candidates(ask.model, ask.signature)
            leaf, predicted = min(leaves, key=lambda each: (each.taken + 1) / each.replica.weight), None
        there = leaf.lease(lease.ticket, lease.key, now_s)
        lease.leaf, lease.inflight = leaf, there.inflight
        self.sent(leaf, there, ask, predicted, now_s)

    def went(self, member: Member[Any], lease: Lease, leaf_id: str, now_s: float) -> None:
        """An answer told which replica below a Corral makes it."""
        leaf = None if member.below is None else member.below.went(lease, leaf_id, now_s)
        if leaf is not None and lease.ask is not None:
            self.prefixes.sent(leaf.id, lease.ask.key, lease.ask.prefix)

    def ended(self, member: Member[Any], lease: Lease, figures: Figures, now_s: float) -> None:
        """It was answered completely."""
        below = leaf_lease(lease)
        if below is not None:
            self._learned_s[member.id] = now_s
            member, lease = below
        if not self.is_learning or lease.ask is None or lease.key is None:
            return
        ask = lease.ask
        if lease.ticket.request.text_bytes == 0 and not figures.output_tokens:
            return  # it only had the model loaded
        self._learned_s[member.id] = now_s
        if not self.costs.ended(lease.ticket.request, figures, now_s - lease.sent_at_s):
            return
        self._learn_decode(member, lease, figures, now_s)
        self._learn_prefill(member, lease, figures, ask)

    def _learn_decode(self, member: Member[Any], lease: Lease, figures: Figures, now_s: float) -> None:
        first_s, tokens = lease.first_at_s, figures.output_tokens
        if first_s is None or tokens is None or tokens < 2 or now_s <= first_s:
            return
        taken_s = now_s - first_s if figures.decode_s is None else figures.decode_s
        models, company = member.company(lease, now_s)
        throttled = member.gpu is not None and member.gpu.slowdown > THROTTLED
        seconds = taken_s / (tokens - 1) / models
        self.costs.decoded(member.id, request_key(lease), company, seconds, is_throttled=throttled)

    def _learn_prefill(self, member: Member[Any], lease: Lease, figures: Figures, ask: Ask) -> None:
        first_s = lease.first_at_s
        if first_s is None:
            return
        taken_s = first_s - lease.sent_at_s if figures.prefill_s is None else figures.prefill_s
        tokens = ask.prompt_tokens if figures.prompt_tokens is None else float(figures.prompt_tokens)
        known = self.costs.prefill.knows(ask.key)
        if known and lease.cached_tokens:
            token_s = self.costs.prefill.line(member.id, ask.key)[0] * lease.models_at_start
            cached = tokens - taken_s / token_s if token_s else 0.0
            self.prefixes.measured(member.id, ask.key, lease.cached_tokens, cached)
        elif lease.waited_at_start_s <= _ALONE_RATIO * taken_s:
            self.costs.prefilled(member.id, ask.key, tokens, taken_s / lease.models_at_start)


def _later(predicted: Prediction, wait_s: float) -> Prediction:
    """The same behind others that came another way."""
    if not wait_s:
        return predicted
    cost_s = predicted.cost_s + (FIRST + END) * wait_s * predicted.slowdown
    return replace(predicted, wait_s=predicted.wait_s + wait_s, cost_s=cost_s)


def request_key(lease: Lease) -> str:
    return lease.ticket.request.key
