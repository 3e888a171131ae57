"""The last decisions as JSON: what each candidate looked like to the policy. No prompts, and nobody's name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from msgspec.structs import asdict

from corral.model import Choice, ReplicaView


def last(choices: Sequence[Choice], count: str | None) -> Sequence[Choice]:
    """The last ``count`` of them; None: all. Raises ValueError where that is no such number."""
    if count is None:
        return choices
    if re.fullmatch("[1-9][0-9]{0,5}", count) is None:
        raise ValueError(f"n={count[:20]} is not a whole number from 1 upwards")
    return choices[-int(count) :]


def of_request(choices: Sequence[Choice], id: str | None) -> Sequence[Choice]:
    """Those about one request: one for each replica that it was sent to, or for each of its parts; None: all."""
    return choices if id is None else [choice for choice in choices if choice.id == id]


def explain_json(choices: Sequence[Choice], now_s: float) -> list[dict[str, Any]]:
    """In the order of ``choices``; its keys are listed in docs/operations.md."""
    return [_choice(choice, now_s) for choice in choices]


def _choice(choice: Choice, now_s: float) -> dict[str, Any]:
    return {
        "request": choice.id or None,
        "age_s": round(max(0.0, now_s - choice.at_s), 3),
        "model": choice.alias or choice.model,
        "kind": choice.kind.value,
        "waited_s": round(choice.waited_s, 3),
        "replica": choice.decision.replica_id,
        "reason": choice.decision.reason,
        "candidates": [_candidate(view, choice.model) for view in choice.candidates],
    }


def _candidate(view: ReplicaView, model: str | None) -> dict[str, Any]:
    in_memory = None if view.loaded is None or model is None else model in view.loaded
    return {
        "id": view.id,
        "weight": view.weight,
        "slots": view.slots,
        "in_flight": view.inflight,
        "in_flight_of_model": view.inflight_model,
        "in_memory": in_memory,
        "predicted": None if view.predicted is None else asdict(view.predicted),
        "gpu": None if view.gpu is None else asdict(view.gpu),
    }
