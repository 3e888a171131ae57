"""What is known of the gateway: the last snapshot, and what was said since."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final

KEPT: Final = 500
REMEMBERED: Final = 300
"""Points of a GPU's history, each the mean of :data:`PER_POINT` readings."""
PER_POINT: Final = 2
RATE_S: Final = 10.0


class History:
    """How busy one GPU was, a point a second."""

    def __init__(self) -> None:
        self.points: deque[float | None] = deque(maxlen=REMEMBERED)
        self._gathered: list[float | None] = []

    def add(self, value: float | None) -> None:
        self._gathered.append(value)
        if len(self._gathered) == PER_POINT:
            known = [one for one in self._gathered if one is not None]
            self.points.append(sum(known) / len(known) if known else None)
            self._gathered.clear()


class Picture:
    """Fed with the events of ``/live``."""

    def __init__(self) -> None:
        self.page: dict[str, Any] | None = None
        self.page_at_s = 0.0
        """When it came."""
        self.requests: deque[dict[str, Any]] = deque(maxlen=KEPT)
        """The latest last, as :attr:`lines`."""
        self.lines: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self.changes = 0
        """Grows with everything that is new."""
        self._history: dict[str, History] = {}
        self._ended: deque[tuple[float, float]] = deque()
        self.pages = 0
        self._begun_at_s: float | None = None

    def begin(self) -> None:
        """A stream begins: it first repeats what the last one has told."""
        self.requests.clear()
        self.lines.clear()
        self.pages = 0

    def take(self, kind: str, data: dict[str, Any], now_s: float) -> None:
        self.changes += 1
        if kind == "snapshot":
            self._take_page(data, now_s)
        elif kind == "request":
            self.requests.append(data)
            if self.pages > 1:  # what comes with the first page is from before
                self._ended.append((now_s, output_tokens(data) or 0))
        elif kind == "log":
            self.lines.append(data)

    def _take_page(self, page: dict[str, Any], now_s: float) -> None:
        self.page, self.page_at_s = page, now_s
        self.pages += 1
        if self._begun_at_s is None:
            self._begun_at_s = now_s
        gone = self._history.keys() - {gpu["uuid"] for gpu in page["gpus"]}
        for uuid in gone:
            del self._history[uuid]
        for gpu in page["gpus"]:
            self._history.setdefault(gpu["uuid"], History()).add(reading(gpu, "utilisation_ratio"))

    def busy(self, uuid: str) -> Iterable[float | None]:
        """How busy a GPU was, the latest last."""
        history = self._history.get(uuid)
        return () if history is None else history.points

    def rates(self, now_s: float) -> tuple[float, float]:
        """Requests and output tokens a second, of those requests that ended in the last seconds."""
        while self._ended and self._ended[0][0] < now_s - RATE_S:
            self._ended.popleft()
        since_s = min(RATE_S, max(1.0, now_s - (now_s if self._begun_at_s is None else self._begun_at_s)))
        return len(self._ended) / since_s, sum(tokens for _, tokens in self._ended) / since_s


def reading(gpu: dict[str, Any], name: str) -> float | None:
    """A sensor's value, if it is of now."""
    if gpu["condition"] != "ok" or gpu["sample"] is None:
        return None
    value: float | None = gpu["sample"].get(name)
    return value


def output_tokens(request: dict[str, Any]) -> int | None:
    figures = request.get("figures") or {}
    tokens: int | None = figures.get("output_tokens")
    return tokens


def tokens_per_s(request: dict[str, Any]) -> float | None:
    """How quickly the tokens after the first came, as the replica reported it; None: it did not."""
    figures = request.get("figures") or {}
    tokens, decode_s = figures.get("output_tokens"), figures.get("decode_s")
    if not tokens or not decode_s or tokens < 2:
        return None
    return float((tokens - 1) / decode_s)
