"""What is in one replica's memory, and what the gateway is changing there."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from corral.gateway.schedule.aliases import Move
from corral.model import LoadedModel, Replica

DEFAULT_MAX_LOADED: Final = 3
"""Per GPU: Ollama's own default."""
_FORGET_LIMIT_S: Final = 900.0
"""What was learned about how much fits is tried again after this long."""


@dataclass(slots=True)
class Held:
    """One model in memory."""

    signature: str | None
    """The options that it was loaded with; None: somebody else loaded it, and nobody knows."""
    since_s: float
    used_s: float
    """When a request for it was last sent or ended."""
    size_bytes: int | None = None
    served_s: float = 0.0
    """Seconds of requests since it came."""
    context_tokens: int | None = None
    """The context length that it was loaded with, as it said itself."""
    keep_alive_s: float | None = None
    """How long it stays without requests, as a client last said; None: as long as the replica keeps models."""
    was_there: bool = False
    """A reading has listed it, or the gateway had it loaded: it is not only on its way."""

    def asks_for_as_much(self, signature: str) -> bool:
        """A request names the very context length that the model took by itself: Ollama does not load it anew."""
        by_itself = self.signature is None or not self.signature
        return by_itself and self.context_tokens is not None and signature == f"num_ctx={self.context_tokens}"

    def stays_s(self, now_s: float) -> float:
        """How much longer a client wants it to stay, if nobody asks for it; 0 where none has said."""
        return 0.0 if self.keep_alive_s is None else max(0.0, self.used_s + self.keep_alive_s - now_s)

    def join(self, other: Held) -> None:
        """The other turned out to be this."""
        if other.used_s > self.used_s:
            self.used_s, self.keep_alive_s = other.used_s, other.keep_alive_s
        self.since_s = min(self.since_s, other.since_s)
        self.served_s += other.served_s
        self.signature = self.signature if self.signature == other.signature else None


@dataclass(slots=True)
class Swap:
    """A model on its way into memory, and those that leave for it: first they drain, then they are let go of."""

    model: str
    signature: str
    leaving: list[str]
    number: int
    began_s: float
    is_loading: bool = False
    is_unloading: bool = False
    loading_s: float = 0.0
    """When it was asked for."""
    made_way: bool = False
    """It took so long that those in use there were held back for it: how long it took says nothing of loads."""
    keep_alive_s: float | None = None
    """How long it is asked to stay; None: as long as the replica keeps models."""

    @property
    def key(self) -> str:
        return f"{self.model} {self.signature}" if self.signature else self.model

    def rename(self, moves: Mapping[str, Move]) -> bool:
        """Some of it goes by other names from now on; True: it was about these."""
        names = [self.model, *self.leaving]
        if not any(name in moves for name in names):
            return False
        if self.model in moves:
            move = moves[self.model]
            self.model, self.signature = move.to, move.signature(self.signature) or ""
        self.leaving = list(dict.fromkeys(moves[name].to if name in moves else name for name in self.leaving))
        return True

    @property
    def is_begun(self) -> bool:
        """Something was asked for, and is not done."""
        return self.is_loading or self.is_unloading

    def suits(self, replica: Replica) -> bool:
        """Whether it is still what the operator wants of the replica, who may have changed his mind meanwhile."""
        pinned = any(model in replica.pinned and model != self.model for model in self.leaving)
        return self.model not in replica.kept_off and not pinned

    def words(self, now_s: float) -> str:
        """What is going on, for a person."""
        if self.is_loading:
            doing = f"loads {self.model}"
        elif self.is_unloading:
            doing = f"lets {self.leaving[0]} go for {self.model}"
        else:
            doing = f"finishes {', '.join(self.leaving) or 'something'} to load {self.model}"
        return f"{doing}, for {max(0.0, now_s - self.began_s):.0f} s"


class Memory:
    """Written by the scheduler alone. ``is_known``: `/api/ps` was read lately, so that absence means something."""

    def __init__(self) -> None:
        self.models: dict[str, Held] = {}
        self.is_known = False
        self.read_at_s: float | None = None
        self.swap: Swap | None = None
        self.failed: dict[str, tuple[int, float]] = {}
        """By key: how many loads failed in a row, and until when none is tried."""
        self.changed_s = float("-inf")
        """When the gateway last changed something: what was read before says nothing any more."""
        self._unseen: Swap | None = None
        """The last load that went well, until a reading has listed it."""
        self._before_load: frozenset[str] = frozenset()
        self._lost: dict[str, int | None] = {}
        """Of these, the ones that left during the load, with their sizes."""
        self._count_limit: tuple[int, float] | None = None
        self._bytes_limit: tuple[int, float] | None = None

    def holds(self, model: str, signature: str) -> bool:
        """Whether a request for it finds it in memory, and may be sent."""
        held = self.models.get(model)
        if held is None or self.is_changing(model):
            return False
        return held.signature is None or held.signature == signature or held.asks_for_as_much(signature)

    def is_changing(self, model: str) -> bool:
        """Whether it is on its way in or out."""
        swap = self.swap
        return swap is not None and (model in swap.leaving or model == swap.model)

    def is_failed(self, key: str, now_s: float) -> bool:
        """Loads of it failed here a moment ago: whoever needs it is sent, so that Ollama itself says why."""
        found = self.failed.get(key)
        return found is not None and now_s < found[1]

    def use(self, model: str, signature: str, now_s: float) -> None:
        """A request for it was sent: if it was not in memory it will be."""
        held = self.models.get(model)
        if held is None:
            self.models[model] = Held(signature, now_s, now_s)
        else:
            held.used_s = now_s
            if held.signature != signature and not held.asks_for_as_much(signature):
                held.signature, held.context_tokens = signature, None

    def keep(self, model: str, keep_alive_s: float) -> None:
        """A client said how long it is to stay when nobody uses it any more."""
        held = self.models.get(model)
        if held is not None:
            held.keep_alive_s = keep_alive_s

    def leaves_when_idle(self, model: str) -> bool:
        """Whether a client wants it to leave as soon as nobody uses it."""
        held = self.models.get(model)
        return held is not None and held.keep_alive_s == 0.0

    def served(self, model: str, seconds: float, now_s: float) -> None:
        held = self.models.get(model)
        if held is not None:
            held.used_s = now_s
            held.served_s += seconds

    def read(
        self,
        loaded: Iterable[LoadedModel],
        inflight: Iterable[str],
        taken_s: float,
        now_s: float,
        overdue: Container[str] = (),
    ) -> list[str]:
        """`/api/ps` as of ``taken_s``: the models that left. One in use is there whatever the list says, unless it
        was there before and all its requests have waited for long: then they wait for it to come back.
        """
        self.is_known = True
        self.read_at_s = taken_s
        if taken_s < self.changed_s:
            return []
        listed = {model.name: model for model in loaded}
        for name, model in listed.items():
            held = self.models.get(name)
            if held is None:
                if self.swap is not None and self.swap.model == name:
                    continue  # older engines list what is still being loaded
                held = self.models[name] = Held(None, now_s, now_s)
            held.was_there = True
            held.size_bytes = model.size_vram_bytes or model.size_bytes
            held.context_tokens = model.context_length
        using = set(inflight)
        self._look_for_unseen(listed, using, now_s)
        using -= {name for name, held in self.models.items() if held.was_there and name in overdue}
        gone = [name for name in self.models if name not in listed and name not in using]
        lost = {name: self.models.pop(name).size_bytes for name in gone}
        is_sure = all(name in listed for name in using & self._before_load)
        self._learn_limit(listed, lost, now_s, is_sure=is_sure)
        return gone

    def _look_for_unseen(self, listed: Container[str], using: Container[str], now_s: float) -> None:
        """A load that went well, and yet the model is not there: it left at once, or it is in memory under another
        name. To load it again and again would help nobody."""
        swap, self._unseen = self._unseen, None
        if swap is None or swap.model in using:
            return
        if swap.model in listed:
            self.failed.pop(swap.key, None)
        else:
            self._fail(swap.key, now_s)

    def _fail(self, key: str, now_s: float) -> None:
        count = self.failed.get(key, (0, 0.0))[0] + 1
        self.failed[key] = (count, now_s + min(600.0, 15.0 * 2**count))

    def forget(self, inflight: Container[str] = ()) -> None:
        """The last reading is old, and nothing is known any more but what is in use."""
        self.models = {name: held for name, held in self.models.items() if name in inflight}
        self.is_known = False
        self.read_at_s = None

    def rename(self, moves: Mapping[str, Move]) -> None:
        """Some models go by other names from now on; two of them may have been one all the time."""
        gone = {name: self.models.pop(name) for name in moves if name in self.models}
        for name, held in gone.items():
            move = moves[name]
            held.signature = move.signature(held.signature)
            there = self.models.setdefault(move.to, held)
            if there is not held:
                there.join(held)
        for key in [key for key in self.failed if key.partition(" ")[0] in moves]:
            del self.failed[key]
        if self._unseen is not None:
            self._unseen.rename(moves)
        if self.swap is not None and self.swap.rename(moves) and not self.swap.is_begun:
            self.swap = None  # it was planned for what turned out to be something else
        self._before_load, self._lost = frozenset(), {}  # what is missing under its old name has not left

    # ---- changes

    def begin(self, swap: Swap) -> None:
        self.swap = swap

    def loading(self, now_s: float, keep_alive_s: float | None = None) -> Swap:
        swap = self.swap
        assert swap is not None
        swap.is_loading, swap.loading_s, swap.keep_alive_s = True, now_s, keep_alive_s
        self._before_load, self._lost = frozenset(self.models), {}
        return swap

    def unloaded(self, model: str, now_s: float) -> None:
        self.models.pop(model, None)
        self.changed_s = now_s

    def ended(self, now_s: float, *, ok: bool) -> Swap:
        """The load is over."""
        swap = self.swap
        assert swap is not None
        self.swap = None
        self.changed_s = now_s
        if ok:
            self.models[swap.model] = Held(swap.signature, now_s, now_s, keep_alive_s=swap.keep_alive_s, was_there=True)
            self._unseen = swap
            if swap.key in self.failed:  # forgiven, and once it is listed forgotten
                self.failed[swap.key] = (self.failed[swap.key][0], now_s)
        else:
            self._fail(swap.key, now_s)
            self._before_load, self._lost = frozenset(), {}
        return swap

    # ---- how much fits

    def most_models(self, configured: int | None, gpus: int) -> int:
        """How many models it holds at most: as configured, or as was seen, or Ollama's default."""
        if configured is not None:
            return configured
        limit = DEFAULT_MAX_LOADED * max(1, gpus)
        return limit if self._count_limit is None else min(limit, self._count_limit[0])

    @property
    def bytes_seen_too_many(self) -> int | None:
        """So many bytes of models did not fit together."""
        return None if self._bytes_limit is None else self._bytes_limit[0]

    def forget_limits(self, now_s: float) -> None:
        if self._count_limit is not None and now_s > self._count_limit[1]:
            self._count_limit = None
        if self._bytes_limit is not None and now_s > self._bytes_limit[1]:
            self._bytes_limit = None
        for key in [key for key, (_, until_s) in self.failed.items() if now_s > until_s + _FORGET_LIMIT_S]:
            del self.failed[key]

    def _learn_limit(
        self, listed: dict[str, LoadedModel], gone: Mapping[str, int | None], now_s: float, *, is_sure: bool
    ) -> None:
        """After a load of the gateway's own something else is missing: Ollama made room by itself. ``is_sure``: nothing
        is missing of which it is open whether it is there, since requests for it have just been sent."""
        self._lost |= {name: size for name, size in gone.items() if name in self._before_load}
        if self.swap is not None or not (is_sure or self._lost):
            return
        lost, self._lost, self._before_load = list(self._lost.values()), {}, frozenset()
        if not lost:
            return
        until_s = now_s + _FORGET_LIMIT_S
        together = len(listed) + len(lost)
        sizes = [*lost, *(model.size_vram_bytes or model.size_bytes for model in listed.values())]
        if together > 2 or not all(sizes):
            self._count_limit = (max(1, together - len(lost)), until_s)
        else:
            self._bytes_limit = (sum(size or 0 for size in sizes), until_s)
