"""YAML text to a tree of nodes that remember their place, made safe to walk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from corral.gateway.config.problems import InvalidConfig, Problem, Problems, invalid

MAX_NODES = 100_000
"""Aliases may multiply a file; a real configuration stays far below this."""

_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_PLAIN_TAGS: Final[dict[type[Node], str]] = {MappingNode: f"{_TAG}map", SequenceNode: f"{_TAG}seq"}
_NUMBERS = (f"{_TAG}int", f"{_TAG}float")
_SURPRISING = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
"""Octal and base 60: numbers of YAML 1.1 that hardly anybody means who writes them."""


def compose(text: str, source: str) -> Node:
    """The document's root node.

    Raises :class:`InvalidConfig` with line and column when the text is not one finite YAML document.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            _expanded_size(root, {}, source)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text, source) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        said = f"not text: character {error.character!r} may not stand in YAML"
        raise invalid(source, Problem(line, 0, "", said)) from error
    except RecursionError as error:
        raise invalid(source, Problem(0, 0, "", "nested too deeply to be a configuration")) from error
    if root is None:
        said = f"is empty; the least it needs is `gpus: auto`, or one replica:\n{LEAST}"
        raise invalid(source, Problem(0, 0, "", said))
    return root


LEAST = '  replicas:\n    - {id: a, url: "http://127.0.0.1:21001"}'


def _syntax_error(error: yaml.MarkedYAMLError, text: str, source: str) -> InvalidConfig:
    mark = error.problem_mark or error.context_mark
    place = (mark.line + 1, mark.column + 1) if mark else (0, 0)
    line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return invalid(source, Problem(*place, "", "not valid YAML: indented with a tab; use spaces"))
    said = [error.context, error.problem] if isinstance(error, yaml.composer.ComposerError) else [error.problem]
    return invalid(source, Problem(*place, "", f"not valid YAML: {', '.join(filter(None, said))}"))


def _expanded_size(node: Node, sizes: dict[int, int], source: str) -> int:
    """How many nodes there are once every alias is written out."""
    known = sizes.get(id(node))
    if known == 0:
        raise invalid(source, Problem(node.start_mark.line + 1, 0, "", "an anchor that contains itself"))
    if known is not None:
        return known
    if not isinstance(node, ScalarNode) and node.tag != _PLAIN_TAGS[type(node)]:
        said = f"the tag {node.tag.replace(_TAG, '!!')} has no meaning here; remove it"
        raise invalid(source, Problem(node.start_mark.line + 1, node.start_mark.column + 1, "", said))
    sizes[id(node)] = 0  # being counted: to meet it again below itself is a cycle
    size = 1 + sum(_expanded_size(child, sizes, source) for child in _children(node))
    if size > MAX_NODES:
        said = f"more than {MAX_NODES} values once its anchors are written out"
        raise invalid(source, Problem(0, 0, "", said))
    sizes[id(node)] = size
    return size


def _children(node: Node) -> Iterator[Node]:
    if isinstance(node, SequenceNode):
        yield from node.value
    elif isinstance(node, MappingNode):
        for key, value in node.value:
            yield key
            yield value


def entries(node: MappingNode, path: str, problems: Problems) -> dict[str, tuple[Node, Node]]:
    """Name → (key node, value node) of a mapping; a name given twice is a problem, merge keys (``<<``) are followed."""
    found: dict[str, tuple[Node, Node]] = {}
    for key, value in node.value:
        if not isinstance(key, ScalarNode):
            problems.add(key, path, "a key must be a plain word")
        elif key.tag == _MERGE:
            continue
        elif key.value in found:
            first = found[key.value][0].start_mark.line + 1
            problems.add(key, f"{path}.{key.value}".lstrip("."), f"given twice; the first is in line {first}")
        else:
            found[key.value] = (key, value)
    return _merged(node, path, problems) | found


def _merged(node: MappingNode, path: str, problems: Problems) -> dict[str, tuple[Node, Node]]:
    merged: dict[str, tuple[Node, Node]] = {}
    for key, value in node.value:
        if key.tag != _MERGE:
            continue
        for part in reversed(value.value if isinstance(value, SequenceNode) else [value]):
            if isinstance(part, MappingNode):
                merged |= entries(part, path, problems)
            else:
                problems.add(part, path, "'<<' needs a mapping")
    return merged


def plain(node: Node, path: str, problems: Problems) -> Any:
    """The node's value as plain Python data; what has no plain meaning is a problem and gives None."""
    if isinstance(node, MappingNode):
        children = entries(node, path, problems)
        return {name: plain(value, f"{path}.{name}", problems) for name, (_, value) in children.items()}
    if isinstance(node, SequenceNode):
        return [plain(child, f"{path}[{index}]", problems) for index, child in enumerate(node.value)]
    try:
        value = yaml.constructor.SafeConstructor().construct_object(node)
        if node.tag in _NUMBERS and _SURPRISING.fullmatch(node.value):
            other = "write a plain number; if it is text, put it in quotes"
            problems.add(node, path, f'YAML reads {node.value} as {value:g}; {other}: "{node.value}"')
        return value
    except yaml.constructor.ConstructorError as error:
        problems.add(node, path, f"cannot be read: {error.problem}")
    except (ValueError, KeyError, AttributeError, OverflowError):  # what PyYAML's own constructors let through
        problems.add(node, path, f"cannot be read as {node.tag.removeprefix('tag:yaml.org,2002:')}: {node.value!r:.40}")
    return None
