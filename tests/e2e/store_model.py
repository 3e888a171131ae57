"""What a model store must hold after what was asked of it, as a dictionary of names, and how that is listed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import permutations

Store = dict[str, "Model"]


@dataclass(frozen=True, slots=True)
class Model:
    """What is behind a name."""

    origin: str
    """The name under which its weights were pulled."""
    version: int
    system: str = ""

    @property
    def weights(self) -> tuple[str, int]:
        return self.origin, self.version


@dataclass(frozen=True, slots=True)
class Pull:
    name: str
    version: int

    @property
    def request(self) -> tuple[str, str, dict[str, object]]:
        return "POST", "/api/pull", {"model": self.name}

    def on(self, store: Store) -> Store | None:
        return store | {self.name: Model(self.name, self.version)}


@dataclass(frozen=True, slots=True)
class Copy:
    source: str
    to: str

    @property
    def request(self) -> tuple[str, str, dict[str, object]]:
        return "POST", "/api/copy", {"source": self.source, "destination": self.to}

    def on(self, store: Store) -> Store | None:
        return store | {self.to: store[self.source]} if self.source in store else None


@dataclass(frozen=True, slots=True)
class Create:
    """Only of what is there: Ollama would pull the rest first."""

    source: str
    to: str
    system: str

    @property
    def request(self) -> tuple[str, str, dict[str, object]]:
        system = {"system": self.system} if self.system else {}
        return "POST", "/api/create", {"model": self.to, "from": self.source, **system}

    def on(self, store: Store) -> Store | None:
        base = store[self.source]
        return store | {self.to: replace(base, system=self.system or base.system)}


@dataclass(frozen=True, slots=True)
class Delete:
    name: str

    @property
    def request(self) -> tuple[str, str, dict[str, object]]:
        return "DELETE", "/api/delete", {"model": self.name}

    def on(self, store: Store) -> Store | None:
        return {name: model for name, model in store.items() if name != self.name} if self.name in store else None


Change = Pull | Copy | Create | Delete


def outcomes(store: Store, changes: tuple[Change, ...]) -> Iterator[tuple[tuple[bool, ...], Store]]:
    """Which of several changes made at once can be done, and what is there then: one for each order of them."""
    for order in permutations(range(len(changes))):
        after, done = store, [False] * len(changes)
        for number in order:
            made = changes[number].on(after)
            done[number] = made is not None
            after = after if made is None else made
        yield tuple(done), after


class Digests:
    """Learns which digest stands for which model: always the same one, and for no two the same."""

    def __init__(self) -> None:
        self._of: dict[Model, str] = {}

    def fits(self, store: Store, listed: Mapping[str, str]) -> bool:
        """Whether a list of names and digests may be this store's."""
        return set(listed) == set(store) and all(
            self._of.get(model, listed[name]) == listed[name] for name, model in store.items()
        )

    def learn(self, store: Store, listed: Mapping[str, str]) -> None:
        assert self.fits(store, listed), (store, listed)
        self._of |= {model: listed[name] for name, model in store.items()}
        assert len(set(self._of.values())) == len(self._of)

    def __getitem__(self, model: Model) -> str:
        return self._of[model]
