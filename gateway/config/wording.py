"""How a value that is wrong is said to a person: what was expected, and what was found."""

from __future__ import annotations

from typing import Final

from yaml.nodes import Node, ScalarNode, SequenceNode

from corral.gateway.config.masking import masked
from corral.gateway.config.patterns import PATTERN_WORDS

_WORDS: Final = {
    "`int | object | null`": "a whole number, or one for each model",
    "`int | null`": "a whole number",
    "`int | str | null`": "a number or a name",
    "`int`": "a whole number",
    "`float`": "a number",
    "`str`": "text",
    "`bool`": "true or false",
    "`array`": "a list",
    "`object`": "keys and values",
    "`null`": "nothing",
}


def shown(node: Node) -> str:
    if isinstance(node, ScalarNode):
        value = str(masked("", node.value))  # what is said of it is logged
        return repr(value) if node.style in ("'", '"') else (value[:60] or "nothing")
    return "a list" if isinstance(node, SequenceNode) else "keys and values"


def in_words(message: str, node: Node) -> str:
    """msgspec's sentence without its type names, and with the value found."""
    wanted = message.split(" - at ")[0].partition(", got ")[0].removeprefix("Expected ")
    for name, words in _WORDS.items():
        wanted = wanted.replace(name, words)
    for pattern, words in PATTERN_WORDS.items():
        if wanted.endswith(repr(pattern)):
            wanted = words
    return f"expected {wanted}, found {shown(node)}"


def hint(value: object, message: str, node: Node) -> str:
    if "`str`" in message and isinstance(value, bool | int | float) and isinstance(node, ScalarNode):
        return f'; put it in quotes: "{node.value}"'
    if value is None:
        return "; give it a value or remove the key"
    if isinstance(value, str) and ("`int" in message or "`float`" in message):
        return "; write a plain number without unit or quotes (the key's name says the unit)"
    return ""
