"""In which line of a file each key stands."""

from __future__ import annotations

from collections.abc import Iterator

from yaml.nodes import MappingNode, Node, SequenceNode

from corral.gateway.config.problems import Problems
from corral.gateway.config.tree import entries


def lines_of(root: Node) -> dict[str, int]:
    """Of each key and each entry of a list its path (``replicas[0].url``) and its line, counted from 1."""
    return dict(_walk(root, ""))


def _walk(node: Node, path: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, MappingNode):
        for name, (key, value) in entries(node, "", Problems("")).items():
            below = f"{path}.{name}" if path else name
            yield below, key.start_mark.line + 1
            yield from _walk(value, below)
    elif isinstance(node, SequenceNode):
        for index, child in enumerate(node.value):
            yield f"{path}[{index}]", child.start_mark.line + 1
            yield from _walk(child, f"{path}[{index}]")
