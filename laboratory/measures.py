"""What a run was worth: times, goodput, balance, fairness and what deciding cost, as figures by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, pstdev

from corral.laboratory.boxes import GPUS_BEHIND
from corral.laboratory.fairness import light_tenants, vtc_bound_s, vtc_gap_s
from corral.laboratory.speeds import Solo, Solos
from corral.laboratory.spread import jain, percentile
from corral.laboratory.types import Outcome, Run
from corral.laboratory.workloads import FLOODER

Figures = dict[str, float]

FAILED_S = 120.0
"""What a request that failed counts as, at least: a client would have given up then."""
_PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as its client saw it, beside what it would have seen alone."""

    outcome: Outcome
    solo: Solo
    """On the best GPU of the box."""
    slowest: Solo
    """On the slowest that has the memory for its model."""
    ttft_s: float
    e2e_s: float

    @property
    def tpot_s(self) -> float:
        return (self.e2e_s - self.ttft_s) / max(1, self.outcome.arrival.output_tokens - 1)

    @property
    def slowdown(self) -> float:
        return self.e2e_s / self.solo.total_s

    @property
    def is_good(self) -> bool:
        """Within the SLO, with the best GPU as its yardstick."""
        return self._is_within(self.solo)

    @property
    def is_good_of_slowest(self) -> bool:
        """Within the SLO that each GPU of the box can keep."""
        return self._is_within(self.slowest)

    def _is_within(self, alone: Solo) -> bool:
        """TTFT ≤ max(2 s, 2 · alone + 1 s) and time per token ≤ 2 · alone; never where it failed."""
        in_time = self.ttft_s <= max(2.0, 2 * alone.ttft_s + 1.0)
        return self.outcome.ok and in_time and self.tpot_s <= 2 * alone.tpot_s


def seen(run: Run) -> list[Seen]:
    solos = Solos(run.box)
    return [_seen(outcome, *solos.best_and_slowest(outcome.arrival), run.end_s) for outcome in run.outcomes]


def _seen(outcome: Outcome, alone: Solo, slowest: Solo, end_s: float) -> Seen:
    at_s = outcome.arrival.at_s
    if outcome.ok and outcome.first_token_s is not None and outcome.end_s is not None:
        return Seen(outcome, alone, slowest, outcome.first_token_s - at_s, outcome.end_s - at_s)
    waited_s = (end_s if outcome.end_s is None else outcome.end_s) - at_s
    lost_s = max(FAILED_S, waited_s)
    return Seen(outcome, alone, slowest, lost_s, lost_s)


def measure(run: Run, warm_up_s: float = 0.0) -> Figures:
    """All figures of a run, titled in :data:`bench.policies.report.COLUMNS`. Raises ValueError without requests.

    Times, goodput and fairness are of the requests that came after the warm-up; counts and sums are of the whole run.
    """
    everything = seen(run)
    requests = [one for one in everything if one.outcome.arrival.at_s >= warm_up_s]
    if not requests:
        raise ValueError("a run without requests has no figures")
    first_s = min(one.outcome.arrival.at_s for one in everything)
    makespan_s = max(run.end_s - first_s, 1e-9)
    done = sum(one.outcome.ok for one in everything)
    cold = [one.ttft_s for one in everything if one.outcome.arrival.at_s < warm_up_s]
    return {
        "cold_ttft_mean": fmean(cold) if cold else 0.0,
        **_spread("ttft", [one.ttft_s for one in requests]),
        **_spread("e2e", [one.e2e_s for one in requests]),
        **_spread("slowdown", [one.slowdown for one in requests]),
        "norm_latency_s": fmean(one.e2e_s / one.outcome.arrival.output_tokens for one in requests),
        "tpot_p99_s": percentile(sorted(one.tpot_s for one in requests), 0.99),
        "good_ratio": sum(one.is_good for one in requests) / len(requests),
        "good_slowest_ratio": sum(one.is_good_of_slowest for one in requests) / len(requests),
        "good_rps": sum(one.is_good for one in everything) / makespan_s,
        "failed": float(len(everything) - done),
        "retried": float(sum(one.outcome.attempts > 1 for one in everything)),
        "makespan_s": makespan_s,
        "served_rps": done / makespan_s,
        "output_tok_s": sum(one.outcome.arrival.output_tokens for one in everything if one.outcome.ok) / makespan_s,
        "loads": float(run.loads),
        "busy_std_pct": busy_std_pct(run, makespan_s),
        "prefix_hit_ratio": run.cached_tokens / run.prompt_tokens if run.prompt_tokens else 0.0,
        "decision_us": run.decide_s / run.decisions * 1e6 if run.decisions else 0.0,
        **_tenants(requests, everything[-1].outcome.arrival.at_s),
        "vtc_bound_s": vtc_bound_s([one.solo.total_s for one in requests], run.box),
        **_errors("ttft", [_ttft_error(one.outcome) for one in requests]),
        **_errors("e2e", [_e2e_error(one.outcome) for one in requests]),
    }


def busy_std_pct(run: Run, makespan_s: float) -> float:
    """Standard deviation of the GPUs' busy shares, in percentage points; GPUs that never work count."""
    shares = [busy_s / makespan_s * 100 for busy_s in run.busy_s.values()]
    shares += [0.0] * (GPUS_BEHIND.get(run.box.name, 0) - len(shares))
    return pstdev(shares) if shares else 0.0


def _spread(name: str, values: Iterable[float]) -> Figures:
    ordered = sorted(values)
    points = {f"{name}_{key}": percentile(ordered, ratio) for key, ratio in _PERCENTILES.items()}
    return {f"{name}_mean": fmean(ordered), **points}


def _ttft_error(outcome: Outcome) -> float | None:
    return _error(outcome, outcome.predicted_ttft_s, outcome.first_token_s)


def _e2e_error(outcome: Outcome) -> float | None:
    return _error(outcome, outcome.predicted_e2e_s, outcome.end_s)


def _error(outcome: Outcome, predicted_s: float | None, came_s: float | None) -> float | None:
    """How far off the prediction was, as a share of the time from sending that it took."""
    if predicted_s is None or came_s is None or outcome.sent_s is None or not outcome.ok or came_s <= outcome.sent_s:
        return None
    took_s = came_s - outcome.sent_s
    return abs(predicted_s - took_s) / took_s


def _errors(name: str, errors: Iterable[float | None]) -> Figures:
    """Mean and median; none at all where nothing was predicted."""
    known = [error for error in errors if error is not None]
    return {f"{name}_mape": fmean(known), f"{name}_mdape": median(known)} if known else {}


def _tenants(requests: Sequence[Seen], last_s: float) -> Figures:
    """Each tenant's share is the GPU-seconds it was served for each second that its requests were in the system.

    Who is light does not depend on whether there is a flooder: its requests are left out where that is decided.
    """
    served_s: dict[str, float] = defaultdict(float)
    present_s: dict[str, float] = defaultdict(float)
    for one in requests:
        tenant = one.outcome.arrival.tenant
        present_s[tenant] += one.e2e_s
        if one.outcome.ok:
            served_s[tenant] += one.solo.total_s
    others = [one for one in requests if one.outcome.arrival.tenant != FLOODER]
    light = light_tenants([(one.outcome.arrival.tenant, one.solo.total_s) for one in others])
    slow = [one for one in others if one.outcome.arrival.tenant in light]
    flooded = [one for one in slow if last_s / 3 <= one.outcome.arrival.at_s <= last_s * 2 / 3]
    return {
        "jain": jain([served_s[tenant] / present_s[tenant] for tenant in present_s]),
        **_slowdown_p99("others", others),
        **_slowdown_p99("light", slow),
        **_slowdown_p99("flooded_light", flooded),
        "vtc_gap_s": vtc_gap_s([(one.outcome, one.solo.total_s) for one in requests]),
    }


def _slowdown_p99(who: str, requests: Sequence[Seen]) -> Figures:
    """``flooded_light``: of the light tenants, in the third of the time in which there is a flooder, or would be."""
    slow = sorted(one.slowdown for one in requests)
    return {f"{who}_slowdown_p99": percentile(slow, 0.99)} if slow else {}
