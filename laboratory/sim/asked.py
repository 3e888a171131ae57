"""What is asked of the box: a log as it was, a public trace or generated requests, at a stated pace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from corral.errors import OperatorError
from corral.laboratory.accesslog import AccessLog, is_access_log, read_access_log
from corral.laboratory.speeds import capacity_rps
from corral.laboratory.spread import percentile
from corral.laboratory.traces import arrivals_of, in_order, trace_text
from corral.laboratory.types import Arrival, Box
from corral.laboratory.workloads import GENERATED, generate, scale, window, with_models

LOAD = 0.7
"""Of a trace that knows nothing of this box, where no pace is asked for."""
PAUSE_S = 330.0
"""Longer pauses are cut: after Ollama's five minutes no model is in memory any more, and nothing happens."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the requests come; neither: as they did in a log, else at :data:`LOAD`."""

    load: float | None = None
    """Of what the box can do."""
    speed: float | None = None
    """1: as it was; 2: in half the time."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace before it meets a box."""

    name: str
    text: str = ""
    """Empty: it is generated."""
    log: AccessLog | None = None

    @property
    def models(self) -> list[str]:
        """Those that it asks for by name, the most popular first; a public trace names none."""
        if self.log is None:
            return []
        return [name for name, _ in Counter(arrival.model for arrival in self.log.arrivals).most_common()]

    @property
    def kind(self) -> str:
        if self.log is not None:
            return "Corral's access log"
        return "a public trace" if self.text else "generated requests"


@dataclass(frozen=True, slots=True)
class Play:
    """The requests of one seed as they come."""

    arrivals: list[Arrival]
    load: float | None
    """Of what the box can do with all slots full; None: that is not known."""
    span_s: float
    cut_s: float
    """By how much pauses were shortened, in all."""


def read(name: str) -> Trace:
    """A generator's name, or the path of a file; ``-``: standard input. Raises OperatorError."""
    path = Path(name)
    if name in GENERATED and not path.exists():
        return Trace(name)
    if name != "-" and not path.exists():
        raise OperatorError(f"{name}: there is no such file, and no such generator; generators: {', '.join(GENERATED)}")
    text = trace_text(path)
    if not text.strip():
        raise OperatorError(f"{name}: is empty")
    return Trace(name, text, read_access_log(path, text) if is_access_log(text) else None)


def played(trace: Trace, box: Box, pace: Pace, requests: int, seed: int) -> Play:
    """The requests for this seed. Raises OperatorError."""
    arrivals = _at_pace(_window(trace, requests, seed, box), trace, box, pace)
    arrivals, cut_s = without_pauses(arrivals)
    span_s = arrivals[-1].at_s
    return Play(arrivals, _load(box, arrivals, span_s), span_s, cut_s)


def _window(trace: Trace, requests: int, seed: int, box: Box) -> list[Arrival]:
    if trace.log is not None:
        return window(in_order(list(trace.log.arrivals)), requests, seed)
    names = [model.name for model in box.models]
    if not trace.text:
        return with_models(generate(trace.name, requests, seed), names, seed)
    return with_models(window(arrivals_of(Path(trace.name), trace.text, seed), requests, seed), names, seed)


def _at_pace(arrivals: list[Arrival], trace: Trace, box: Box, pace: Pace) -> list[Arrival]:
    load = pace.load
    if load is None and pace.speed is None and trace.log is None:
        load = LOAD
    if load is None:
        speed = pace.speed or 1.0
        return [replace(arrival, at_s=arrival.at_s / speed) for arrival in arrivals]
    if len(arrivals) < 2 or not arrivals[-1].at_s:
        raise OperatorError(
            f"{trace.name}: {len(arrivals)} requests at one moment have no pace that --load could scale"
        )
    return scale(arrivals, box, load).arrivals


def without_pauses(arrivals: Sequence[Arrival]) -> tuple[list[Arrival], float]:
    """With pauses of :data:`PAUSE_S` at most, and how much was cut."""
    cut_s = before_s = 0.0
    kept = []
    for arrival in arrivals:
        cut_s += max(0.0, arrival.at_s - before_s - PAUSE_S)
        before_s = arrival.at_s
        kept.append(replace(arrival, at_s=arrival.at_s - cut_s))
    return kept, cut_s


def _load(box: Box, arrivals: Sequence[Arrival], span_s: float) -> float | None:
    try:
        return len(arrivals) / span_s / capacity_rps(box, arrivals) if span_s else None
    except OperatorError:
        return None


def reality(log: AccessLog, warm_up_s: float) -> dict[str, float]:
    """What the log itself says of its requests, to hold the simulation against: without those of its beginning."""
    begins_s = min(arrival.at_s for arrival in log.arrivals) + warm_up_s
    kept = [number for number, arrival in enumerate(log.arrivals) if arrival.at_s >= begins_s]
    first = [seconds for number in kept if (seconds := log.first_byte_s[number]) is not None]
    found = {"e2e": sorted(log.total_s[number] for number in kept), "ttft": sorted(first)}
    return {
        name: figure
        for key, values in found.items()
        if values
        for name, figure in ((f"{key}_mean", fmean(values)), (f"{key}_p95", percentile(values, 0.95)))
    }
