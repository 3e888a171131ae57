"""What requests cost, learned: tokens of a text and of an answer, seconds of a prompt, of an answer and of a load."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from corral.gateway.schedule.rates import Rates
from corral.model import Figures, RouteRequest

_BYTES_PER_TOKEN: Final = 4.0
_OUTPUT_TOKENS: Final = 200.0
_MOST_KEYS: Final = 1024
_MOST_TENANTS: Final = 4096
_TENANT_SHRINK: Final = 20.0
"""So many answers of a tenant weigh as much as what is known of the key."""
_LOAD_BYTES_S: Final = 1.5e9
_LOAD_S: Final = 6.0
"""A load of a model of which nothing is known."""
_SWAP_S: Final = 1.5
"""Until memory that was let go of can be used."""
_STEP: Final = 0.05
_QUICK_S: Final = 0.25
_MANY: Final = 200
_ONE_IN: Final = 4
"""Where many quick requests are answered, one of so many teaches: learning costs more than deciding."""
_TRAIN_TOKENS: Final = 32
"""A shorter prompt says more about overhead than about prefill."""


class _Mean:
    __slots__ = ("count", "value")

    def __init__(self) -> None:
        self.count = 0
        self.value = 0.0

    def observe(self, value: float) -> None:
        self.count += 1
        self.value += (value - self.value) * max(_STEP, 1.0 / self.count)


class _KeyCosts:
    __slots__ = ("bytes_per_token", "load_s", "output", "prompt", "service_s")

    def __init__(self) -> None:
        self.bytes_per_token = _Mean()
        self.prompt = _Mean()
        self.output = _Mean()
        self.service_s = _Mean()
        self.load_s = _Mean()


class Costs:
    """Everything that was learned of requests. Keys and tenants come from clients: the oldest are forgotten."""

    def __init__(self) -> None:
        self.decode = Rates()
        """Seconds per token of an answer, where a unit of company is a stream of the same model."""
        self.prefill = Rates()
        """Seconds per token of a prompt that is in no cache; alone."""
        self._keys: OrderedDict[str, _KeyCosts] = OrderedDict()
        self._tenants: OrderedDict[tuple[str, str], _Mean] = OrderedDict()
        self._sizes: dict[str, int] = {}

    # ---- what is expected

    def prompt_tokens(self, request: RouteRequest) -> float:
        known = self._keys.get(request.key)
        size = request.body_bytes if request.text_bytes is None else request.text_bytes
        if known is None or not known.bytes_per_token.count:
            return size / _BYTES_PER_TOKEN
        return size / known.bytes_per_token.value

    def output_tokens(self, request: RouteRequest) -> float:
        known = self._keys.get(request.key)
        expected = known.output.value if known is not None and known.output.count else _OUTPUT_TOKENS
        if (own := self._tenants.get((request.tenant, request.key))) is not None:
            expected = (own.value * own.count + expected * _TENANT_SHRINK) / (own.count + _TENANT_SHRINK)
        limit = request.output_limit
        return expected if limit is None else min(expected, float(limit))

    def usual(self, key: str) -> tuple[float, float]:
        """(tokens of a prompt, tokens of an answer), as they usually are."""
        known = self._keys.get(key)
        if known is None or not known.prompt.count:
            return _OUTPUT_TOKENS, _OUTPUT_TOKENS
        return known.prompt.value, known.output.value

    def service_s(self, key: str) -> float | None:
        """How long a request holds its slot; None: not known."""
        known = self._keys.get(key)
        return known.service_s.value if known is not None and known.service_s.count else None

    def load_s(self, key: str, model: str) -> float:
        known = self._keys.get(key)
        if known is not None and known.load_s.count:
            return known.load_s.value
        size = self._sizes.get(model)
        return _LOAD_S if size is None else 1.0 + size / _LOAD_BYTES_S

    def swap_s(self) -> float:
        return _SWAP_S

    # ---- what was measured

    def know_size(self, model: str, size_bytes: int) -> None:
        self._sizes[model] = size_bytes
        if len(self._sizes) > _MOST_KEYS:
            del self._sizes[next(iter(self._sizes))]

    def size_bytes(self, model: str) -> int | None:
        """Of the model's files."""
        return self._sizes.get(model)

    def loaded(self, key: str, seconds: float) -> None:
        self._key(key).load_s.observe(seconds)

    def ended(self, request: RouteRequest, figures: Figures, service_s: float) -> bool:
        """A request was answered completely; False: it is one of so many quick ones that it need not teach any more."""
        known = self._key(request.key)
        known.service_s.observe(service_s)
        count = known.service_s.count
        if service_s < _QUICK_S and count > _MANY and count % _ONE_IN:
            return False
        size = request.body_bytes if request.text_bytes is None else request.text_bytes
        if figures.prompt_tokens and size:
            known.bytes_per_token.observe(size / figures.prompt_tokens)
            known.prompt.observe(figures.prompt_tokens)
        if figures.output_tokens:
            known.output.observe(figures.output_tokens)
            self._tenant(request).observe(figures.output_tokens)
        return True

    def decoded(
        self, replica_id: str, key: str, company: float, seconds_per_token: float, *, is_throttled: bool
    ) -> None:
        self.decode.observe(replica_id, key, company, seconds_per_token, is_throttled=is_throttled)

    def prefilled(self, replica_id: str, key: str, tokens: float, seconds: float) -> None:
        if tokens >= _TRAIN_TOKENS:
            self.prefill.observe(replica_id, key, 0.0, seconds / tokens)

    def _key(self, key: str) -> _KeyCosts:
        known = self._keys.get(key)
        if known is None:
            known = self._keys[key] = _KeyCosts()
            while len(self._keys) > _MOST_KEYS:
                self._keys.popitem(last=False)
                self.decode.forget_keys(set(self._keys))
                self.prefill.forget_keys(set(self._keys))
        else:
            self._keys.move_to_end(key)
        return known

    def _tenant(self, request: RouteRequest) -> _Mean:
        name = (request.tenant, request.key)
        known = self._tenants.get(name)
        if known is None:
            known = self._tenants[name] = _Mean()
            while len(self._tenants) > _MOST_TENANTS:
                self._tenants.popitem(last=False)
        else:
            self._tenants.move_to_end(name)
        return known
