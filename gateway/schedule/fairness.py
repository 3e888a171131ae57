"""Fair shares between tenants: the GPU-seconds that each was given, as a virtual token counter (VTC) counts them.

Rules of this file:

1. A tenant is *active* while a request of its waits or is in flight. One that becomes active is lifted to the least
   that an active one has: nobody saves up a claim by being away.
2. One that begins to wait is brought within :attr:`Shares.credit_s` of the least among those that wait: what somebody
   had while nobody wanted it is held against him for a while, not for ever.
3. Between two tenants that both wait nothing but what they are given changes anything.
4. An idle tenant is remembered only while it has more than the least: otherwise it would be lifted to it anyhow.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection

MOST_REMEMBERED = 4096
"""Idle tenants that are remembered, those that went last: their names come from clients."""
_TYPICAL = 4
"""So many requests of the usual cost are a small lead. In the laboratory 1 to 8 do alike; 20 GPU-seconds where a
request costs a tenth of one make the others' p99 slowdown beside a flooder four times as long."""
_CREDIT = 64
"""So many small leads count, and no more: fewer forgive a flooder too soon, more let others starve."""
_NEWEST = 0.05
"""Weight of the newest cost in the mean."""


class Shares:
    """Who had how much. Amounts are GPU-seconds and mean something only against each other."""

    def __init__(self, quantum_s: float) -> None:
        self.most_quantum_s = quantum_s
        self.had_s: dict[str, float] = {}
        """By active tenant."""
        self._active: Counter[str] = Counter()
        """Their requests, waiting or in flight."""
        self._waiting: Counter[str] = Counter()
        self._away_s: OrderedDict[str, float] = OrderedDict()
        """By idle tenant; the one that went first is the first."""
        self._least_s = 0.0
        """What the active ones had at least; never sinks."""
        self._cost_s: float | None = None
        """Of a request, a moving average."""

    @property
    def quantum_s(self) -> float:
        """A lead that does not matter yet: within it the first come is the first served.

        No more than some usual requests: a lead that is large beside them lets a flooder fill the box for so long.
        """
        return self.most_quantum_s if self._cost_s is None else min(self.most_quantum_s, _TYPICAL * self._cost_s)

    @property
    def credit_s(self) -> float:
        """The lead that counts at most against one who begins to wait, or for him."""
        return _CREDIT * (self.most_quantum_s if self._cost_s is None else _TYPICAL * self._cost_s)

    def waits(self, tenant: str) -> None:
        """One more request of the tenant's waits."""
        self._enter(tenant)
        if not self._waiting[tenant] and self._waiting:
            least_s = min(map(self.had_s.__getitem__, self._waiting))
            credit_s = self.credit_s
            self.had_s[tenant] = min(max(self.had_s[tenant], least_s - credit_s), least_s + credit_s)
        self._waiting[tenant] += 1

    def waits_no_more(self, tenant: str) -> None:
        _count_down(self._waiting, tenant)
        self._leave(tenant)

    def began(self, tenant: str, cost_s: float) -> None:
        """One of its requests was sent, and will take about so much."""
        self._enter(tenant)
        self.had_s[tenant] += cost_s

    def ended(self, tenant: str, charged_s: float, cost_s: float | None) -> None:
        """A request in flight is none any more, and took so much; None: as much as was thought."""
        if cost_s is not None:
            self.charge(tenant, cost_s - charged_s)
        if cost_s:  # one that ran no model says nothing of those that wait
            self._cost_s = cost_s if self._cost_s is None else self._cost_s + _NEWEST * (cost_s - self._cost_s)
        self._leave(tenant)

    def charge(self, tenant: str, seconds: float) -> None:
        """It was given so much; negative: so much less than was thought."""
        if tenant in self.had_s:
            self.had_s[tenant] += seconds
        elif tenant in self._away_s:
            self._away_s[tenant] += seconds

    def limit_s(self, tenants: Collection[str]) -> float:
        """Of these, those that had no more are equals; the others are ahead."""
        return min(map(self.had_s.__getitem__, tenants)) + self.quantum_s

    def _enter(self, tenant: str) -> None:
        self._active[tenant] += 1
        if self._active[tenant] == 1:
            self._least_s = max(self._least_s, min(self.had_s.values(), default=self._least_s))
            self.had_s[tenant] = max(self._away_s.pop(tenant, self._least_s), self._least_s)

    def _leave(self, tenant: str) -> None:
        _count_down(self._active, tenant)
        if tenant in self._active:
            return
        had_s = self.had_s.pop(tenant)
        self._least_s = max(self._least_s, min(self.had_s.values(), default=had_s))
        if had_s > self._least_s:
            self._away_s[tenant] = had_s
            if len(self._away_s) > MOST_REMEMBERED:
                self._away_s.popitem(last=False)


def _count_down(counter: Counter[str], name: str) -> None:
    counter[name] -= 1
    if not counter[name]:
        del counter[name]
