"""What the GPUs of one replica mean for its requests: readings of sensors in, one :class:`GpuLoad` after each out.

Rules of this file:

1. A sensor that is missing changes nothing: its part is neutral, or None. One GPU without a fresh reading makes the
   whole None, because its replica is as slow as the slowest of its GPUs.
2. *Slowdown* is for heat and brakes alone. A GPU at its power limit is an everyday sight: the clocks that it keeps
   there are the ones that it has under load, so they are in the reference, and in what was learned of its speed.
3. Clocks speak only of a GPU at work: one that idles is clocked down because it idles.
4. *Foreign* is what runs while nothing of ours does. While something of ours runs nobody can tell, so that what was
   seen is believed less and less.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp
from typing import Final

from corral.model import GpuLoad, GpuSample, Throttle

GIB: Final = 1 << 30
SERIOUS: Final = frozenset((Throttle.THERMAL, Throttle.HARDWARE, Throttle.HARDWARE_THERMAL, Throttle.POWER_BRAKE))
"""What makes a GPU slower than it was when its speed was learned."""
NEAR_CELSIUS: Final = 3.0
"""So close below its slowdown temperature a GPU may slow down any moment."""
MAX_SLOWDOWN: Final = 2.0
UNMEASURED_SLOWDOWN: Final = 1.25
"""Of a GPU that says it throttles while its clocks say nothing: hardware slows down by 1.1 to 2."""
SMOOTHING_S: Final = 10.0
UNSEEN_S: Final = 60.0
"""In this time two thirds of foreign load are forgotten, where own load hides whether it is still there."""
AT_WORK_RATIO: Final = 0.5
"""Utilisation from which on clocks are those of a GPU under load."""
REFERENCE_READINGS: Final = 300
REFERENCE_LEAST: Final = 5
REFERENCE_QUANTILE: Final = 0.9
FOREIGN_RATIO: Final = 0.1
"""Utilisation beyond this is somebody's work; a desktop stays below."""
FOREIGN_READINGS: Final = 2
"""More than so many in a row, because one reading may still show the end of our own work."""
FOREIGN_S: Final = 2.0
"""And for so long, where readings come quickly: a utilisation is the average of up to a second."""
PROCESS_BYTES: Final = 512 << 20
"""What the process of each model holds beside it, which ``/api/ps`` does not count."""
MARGIN_BYTES: Final = GIB
MARGIN_RATIO: Final = 0.1
"""Sizes in ``/api/ps`` are estimates."""
BYTES_READINGS: Final = 3
"""Foreign memory is the least of so many readings: a model just loaded is not yet in the last ``/api/ps``."""
_NOTHING: Final = 0.02
"""What is left of a fading value and not worth a name."""


@dataclass(frozen=True, slots=True)
class OwnUse:
    """What is ours on the GPUs of one replica at the time of a reading."""

    inflight: int = 0
    """Requests, of all replicas on these GPUs."""
    sent: int = 0
    """Requests that ever were sent there: short ones come and go between two readings."""
    is_loading: bool = False
    """A model is being loaded there, or its process is starting."""
    vram_bytes: int | None = None
    """What the models there take, as ``/api/ps`` says; None: not known."""
    models: int = 0
    """How many of them."""


class GpuGauge:
    """Remembers what the readings of one replica's GPUs have said so far."""

    def __init__(self) -> None:
        self._clocks: dict[str, _Clocks] = {}
        self._foreign = _Foreign()
        self._others: deque[int] = deque(maxlen=BYTES_READINGS)
        self._read_at_s: float | None = None

    def read(self, samples: Sequence[GpuSample | None], own: OwnUse, now_s: float) -> GpuLoad | None:
        """One more reading of each of its GPUs (None: there is no fresh one), and what they say of now."""
        fresh = [sample for sample in samples if sample is not None]
        if not fresh or len(fresh) < len(samples):
            self._foreign.interrupted()
            self._others.clear()
            return None
        passed_s = 0.0 if self._read_at_s is None else max(0.0, now_s - self._read_at_s)
        self._read_at_s = now_s
        clocks = [self._clocks.setdefault(sample.uuid, _Clocks()) for sample in fresh]
        others_bytes = _others_bytes(fresh, own)
        utilisation = _worst(sample.utilisation_ratio for sample in fresh)
        return GpuLoad(
            slowdown=max(one.read(sample, passed_s) for one, sample in zip(clocks, fresh, strict=True)),
            foreign=self._foreign.read(utilisation, others_bytes, own, now_s, passed_s),
            utilisation_ratio=utilisation,
            memory_ratio=_worst(_ratio(sample.memory_used_bytes, sample.memory_total_bytes) for sample in fresh),
            temperature_ratio=_worst(_ratio(sample.temperature_celsius, sample.slowdown_celsius) for sample in fresh),
            power_ratio=_worst(_ratio(sample.power_watts, sample.power_limit_watts) for sample in fresh),
            memory_bytes=_sum(sample.memory_total_bytes for sample in fresh),
            foreign_bytes=self._foreign_bytes(others_bytes, own),
        )

    def _foreign_bytes(self, others_bytes: int | None, own: OwnUse) -> int | None:
        if others_bytes is None:
            self._others.clear()
            return None
        if not own.is_loading:  # else it is the model on its way
            self._others.append(others_bytes)
        return max(0, min(self._others)) if self._others else None


class _Clocks:
    """How much slower than usual one GPU runs, by its clocks."""

    def __init__(self) -> None:
        self._slowdown = 1.0
        self._usual: deque[float] = deque(maxlen=REFERENCE_READINGS)
        """SM clocks under load, at full speed."""
        self._last: float | None = None
        """What the clocks said last, since it throttles."""

    def read(self, sample: GpuSample, passed_s: float) -> float:
        self._slowdown = _toward(self._slowdown, self._slowdown_now(sample), passed_s, SMOOTHING_S)
        if abs(self._slowdown - 1.0) < _NOTHING:
            return 1.0
        return self._slowdown

    def _slowdown_now(self, sample: GpuSample) -> float:
        is_throttled = not SERIOUS.isdisjoint(sample.throttles or ())
        clock_hz = _clock_at_work(sample)
        if not is_throttled and not _is_hot(sample):
            self._last = None
            if clock_hz is not None:
                self._usual.append(clock_hz)
            return 1.0
        if clock_hz is not None and (usual_hz := self._usual_hz()) is not None:
            self._last = min(MAX_SLOWDOWN, max(1.0, usual_hz / clock_hz))
        if self._last is not None:
            return self._last
        return UNMEASURED_SLOWDOWN if is_throttled else 1.0

    def _usual_hz(self) -> float | None:
        if len(self._usual) < REFERENCE_LEAST:
            return None
        return sorted(self._usual)[int(REFERENCE_QUANTILE * (len(self._usual) - 1))]


class _Foreign:
    """Work of others, as far as it can be told from ours."""

    def __init__(self) -> None:
        self._value = 0.0
        self._inflight = 0
        self._sent = 0
        self._signs = 0
        """Readings in a row that show others at work."""
        self._since_s = 0.0
        """When the first of them came."""

    def interrupted(self) -> None:
        """A reading failed: whatever went on meanwhile is not known."""
        self._signs = 0

    def read(
        self, utilisation: float | None, others_bytes: int | None, own: OwnUse, now_s: float, passed_s: float
    ) -> float:
        is_ours = own.is_loading or own.inflight > 0 or self._inflight > 0 or own.sent != self._sent
        self._inflight, self._sent = own.inflight, own.sent
        if is_ours:
            self._signs = 0
            self._fade(0.0, passed_s, UNSEEN_S)
        elif _shows_others(utilisation, others_bytes, own):
            self._since_s = self._since_s if self._signs else now_s
            self._signs += 1
            amount = min(1.0, utilisation) if utilisation is not None else 1.0
            is_sure = self._signs > FOREIGN_READINGS and now_s - self._since_s >= FOREIGN_S
            # at once when it comes, little by little when it goes
            self._value = max(self._value, amount) if is_sure else self._value
            self._fade(min(amount, self._value), passed_s, SMOOTHING_S)
        else:
            self._signs = 0
            self._fade(0.0, passed_s, SMOOTHING_S)
        return self._value

    def _fade(self, goal: float, passed_s: float, time_s: float) -> None:
        value = _toward(self._value, goal, passed_s, time_s)
        self._value = value if value >= _NOTHING else 0.0


def _shows_others(utilisation: float | None, others_bytes: int | None, own: OwnUse) -> bool:
    if utilisation is not None and utilisation > FOREIGN_RATIO:
        return True
    if others_bytes is None or own.vram_bytes is None:
        return False
    return others_bytes > MARGIN_BYTES + MARGIN_RATIO * own.vram_bytes


def _others_bytes(samples: Sequence[GpuSample], own: OwnUse) -> int | None:
    """Memory that is not accounted for; below 0 where ``/api/ps`` says more than is used."""
    used_bytes = _sum(sample.memory_used_bytes for sample in samples)
    if used_bytes is None or own.vram_bytes is None:
        return None
    # a small model has a process on one GPU, a large one has a part of it on each
    return used_bytes - own.vram_bytes - PROCESS_BYTES * max(len(samples), own.models)


def _is_hot(sample: GpuSample) -> bool:
    if sample.temperature_celsius is None or sample.slowdown_celsius is None:
        return False
    return sample.temperature_celsius >= sample.slowdown_celsius - NEAR_CELSIUS


def _clock_at_work(sample: GpuSample) -> float | None:
    if sample.sm_clock_hz is None or sample.sm_clock_hz <= 0 or sample.utilisation_ratio is None:
        return None
    return sample.sm_clock_hz if sample.utilisation_ratio >= AT_WORK_RATIO else None


def _toward(value: float, goal: float, passed_s: float, time_s: float) -> float:
    return value + (goal - value) * (1.0 - exp(-passed_s / time_s))


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole or whole <= 0 else part / whole


def _worst(values: Iterable[float | None]) -> float | None:
    """The highest; None where one is not known, which might be higher."""
    known: list[float] = []
    for value in values:
        if value is None:
            return None
        known.append(value)
    return max(known, default=None)


def _sum(values: Iterable[int | None]) -> int | None:
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total
