"""Who decides in a run: a rival by its name, or Corral with a policy, its options and what is switched off."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from corral.errors import OperatorError
from corral.laboratory.oracle import Oracle
from corral.laboratory.rivals import RIVALS
from corral.policies import POLICIES, make_policy

OURS = "corral:"
SWITCHES = {
    "no-placement": "loads no model by itself",
    "no-learning": "predicts from weights alone",
    "no-prefix": "follows no prefixes",
    "no-gpu": "is not told what the GPUs say",
    "wspt": "the shortest waiting request goes first, within limits",
    "unfair": "tenants have no shares",
}
"""What can be switched about the scheduler, whatever the policy."""
DEFAULT = (
    f"{OURS}weighted-least-load",
    f"{OURS}prefer-loaded",
    *RIVALS,
    Oracle.name,
)
ABLATIONS = (DEFAULT[0], *(f"{DEFAULT[0]}+{word}" for word in SWITCHES))


@dataclass(frozen=True, slots=True)
class Contender:
    """``NAME`` of a rival; or of Corral ``corral:POLICY[?option=value&option=value][+switch+switch]``, where the policy
    is one of its own, an installed one, or a class of a file (``corral:PATH.py:Class``)."""

    name: str
    policy: str | None = None
    options: tuple[tuple[str, object], ...] = ()
    path: str | None = None
    """The file of the policy."""
    switches: frozenset[str] = frozenset()


def contender(text: str) -> Contender:
    """An OperatorError where nobody is called so, or has no such option or switch."""
    if not text.startswith(OURS):
        if text not in (*RIVALS, Oracle.name):
            raise OperatorError(
                f"--policies {text}: unknown; rivals: {', '.join((*RIVALS, Oracle.name))}; "
                f"Corral's own: {', '.join(OURS + name for name in POLICIES)}"
            )
        return Contender(text)
    path, rest = _path_of(text.removeprefix(OURS))
    rest, *words = rest.split("+")
    name, _, query = rest.partition("?")
    pairs = (part.partition("=") for part in query.split("&") if part)
    options = tuple((key, _value(value)) for key, _, value in pairs)
    make_policy(name, path, dict(options))
    return Contender(text, name, options, path, _switches(text, words))


def _path_of(text: str) -> tuple[str | None, str]:
    stem, found, rest = text.partition(".py:")
    return (f"{stem}.py", rest) if found else (None, text)


def _switches(text: str, words: list[str]) -> frozenset[str]:
    for word in words:
        if word not in SWITCHES:
            near = get_close_matches(word, SWITCHES, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ";"
            raise OperatorError(f"--policies {text}: no switch {word!r}{meant} known: {', '.join(SWITCHES)}")
    return frozenset(words)


def _value(text: str) -> object:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
