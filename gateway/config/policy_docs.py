"""What the policies say of themselves: their rules, their options, and what each is for."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import Any, get_type_hints

from corral.policies.catalogue import POLICIES

_KINDS: Mapping[Any, str] = {float: "number", int: "whole number", str: "text", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a policy."""

    name: str
    """``weights.memory`` is one within another."""
    kind: str
    default: object
    meaning: str
    is_required: bool = False
    """It has no default."""


@dataclass(frozen=True, slots=True)
class PolicyDoc:
    """A policy of Corral's own."""

    name: str
    rule: str
    options: tuple[Option, ...]


def policy_docs() -> list[PolicyDoc]:
    """All of them, in the order of the table."""
    return [
        PolicyDoc(name, plain_text(inspect.getdoc(made) or ""), options_of(made)) for name, made in POLICIES.items()
    ]


def options_of(made: type) -> tuple[Option, ...]:
    """Those that a file may give."""
    if not is_dataclass(made):
        return ()
    meanings, types = field_docs(made), get_type_hints(made)
    found: list[Option] = []
    for each in fields(made):
        wanted = types[each.name]
        if is_dataclass(wanted) and isinstance(wanted, type):
            below = options_of(wanted)
            found += [replace(one, name=f"{each.name}.{one.name}") for one in below]
        elif each.init:
            kind, meaning = _KINDS.get(wanted, str(wanted)), meanings.get(each.name, "")
            default = each.default_factory() if each.default_factory is not MISSING else each.default
            is_required = default is MISSING
            found.append(Option(each.name, kind, None if is_required else default, meaning, is_required))
    return tuple(found)


def field_docs(made: type) -> dict[str, str]:
    """The text below each field of a class, by the field's name; empty where there is no source to read."""
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(made))).body
    except (OSError, TypeError):
        return {}
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str] = {}
    for before, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name):
            text = after.value if isinstance(after, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                found[before.target.id] = plain_text(text.value)
    return found


def plain_text(text: str) -> str:
    """In one line, with single backquotes."""
    return " ".join(text.split()).replace("``", "`")
