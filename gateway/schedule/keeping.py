"""How long clients want models kept in memory, for the copies that the gateway makes itself."""

from __future__ import annotations

from typing import Final

_MOST_MODELS: Final = 512
"""Names come from clients: those asked for last are remembered."""


class Keeping:
    """What one Ollama would know of its one copy: the last ``keep_alive`` that was asked for, until it is over."""

    def __init__(self) -> None:
        self.wishes: dict[str, tuple[float, float]] = {}
        """By model: for how long, and when a request for it last came or ended."""

    def asked(self, model: str, keep_alive_s: float | None, now_s: float) -> None:
        """A request for the model came; None: it says nothing of this."""
        if keep_alive_s is None:
            self.used(model, now_s)
            return
        self.wishes.pop(model, None)
        if keep_alive_s > 0:
            self.wishes[model] = (keep_alive_s, now_s)
            if len(self.wishes) > _MOST_MODELS:
                del self.wishes[next(iter(self.wishes))]

    def used(self, model: str, now_s: float) -> None:
        """A request for the model came or ended: it stays for so long from now on."""
        wish = self.wishes.get(model)
        if wish is not None and wish[1] + wish[0] >= now_s:
            self.wishes[model] = (wish[0], now_s)

    def of(self, model: str, now_s: float) -> float | None:
        """How long a copy that is made now is to stay; None: as long as its Ollama keeps models."""
        wish = self.wishes.get(model)
        return None if wish is None or wish[1] + wish[0] < now_s else wish[0]

    def forget(self, model: str) -> None:
        """It was let go of."""
        self.wishes.pop(model, None)

    def forget_old(self, now_s: float) -> None:
        for model in [model for model, (for_s, at_s) in self.wishes.items() if at_s + for_s < now_s]:
            del self.wishes[model]

    def rename(self, model: str, to: str) -> None:
        """It goes by another name from now on."""
        wish = self.wishes.pop(model, None)
        if wish is not None:
            self.wishes.setdefault(to, wish)
