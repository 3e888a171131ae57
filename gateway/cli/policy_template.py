"""The file that ``corral policy new`` writes."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template
from typing import Final

_FILE: Final = Template('''\
"""A policy: of the replicas that can take a request now, which one gets it?"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from corral.model import Decision, ReplicaView, RouteRequest
from corral.policies import cold, lowest


@dataclass(frozen=True, slots=True)
class $name:
    """The fewest requests in flight for its weight; having to load the model counts as so many more."""

    # The fields are the options that the configuration may give, checked by their types.
    loading: float = 4.0

    def __post_init__(self) -> None:
        if self.loading < 0:
            raise ValueError(f"loading: {self.loading} is less than 0")

    def choose(self, request: RouteRequest, candidates: Sequence[ReplicaView], rng: Random) -> Decision:
        # Only replicas that can take the request now are offered: up, not drained, with the model and a free slot.
        # There is always one at least. None means "not known", never zero: then use another measure, for all of them.
        #   request.model, .kind, .body_bytes, .text_bytes, .output_limit, .rank, .tenant
        #   view.id, .weight, .slots, .inflight, .inflight_model, .loaded, .turn, .gpu
        loads_first = cold(request, candidates)  # ids of those that would have to load the model

        def cost(view: ReplicaView) -> float:
            return (view.inflight + 1 + (self.loading if view.id in loads_first else 0)) / view.weight

        # lowest() breaks ties by chance: min() would send each of them to the same replica.
        # The reason is for people and a metric's label: a few words from a small fixed set.
        chosen = lowest(candidates, cost, rng)
        return Decision(chosen.id, "must load" if chosen.id in loads_first else "least load")

    # No input, output, clock or memory in here, and chance only from rng: it is asked for every request, and the same
    # question must get the same answer. docs/policies.md says more.
''')


def class_name(name: str) -> str:
    """``small-first``: ``SmallFirst``; ValueError: it makes no name."""
    parts = re.split(r"[-_]+", name)
    made = "".join(part[:1].upper() + part[1:] for part in parts)
    if not made.isidentifier() or not made.isascii() or keyword.iskeyword(made):
        raise ValueError(f"{name!r} makes no name of a class; write letters and dashes, for instance small-first")
    return made


def policy_file(name: str) -> str:
    return _FILE.substitute(name=name)


def policy_yaml(name: str, path: Path) -> str:
    return f"policy: {{path: ./{path.name}, name: {name}, loading: 4}}\n"
