"""A tree of YAML nodes to the structs of the schema; every problem is collected with its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from corral.gateway.config.addresses import parse_address, parse_replica_url
from corral.gateway.config.owned import GpusConfig, GroupConfig, plain_env
from corral.gateway.config.patterns import ENV_NAME_PATTERN, PATTERN_WORDS
from corral.gateway.config.problems import Problems, unknown_key
from corral.gateway.config.schema import Address, PolicyConfig, ReplicaUrl
from corral.gateway.config.tree import entries, plain
from corral.gateway.config.wording import hint, in_words, shown
from corral.model import normalise_model
from corral.policies.catalogue import Complaint

PARSERS: Mapping[type, Callable[[str], Any]] = MappingProxyType({Address: parse_address, ReplicaUrl: parse_replica_url})
MISSING = object()
"""Stands for a value that could not be read; its problem is already recorded."""


class Reader:
    """Reads one file's nodes.

    ``base`` is the folder that paths in the file start from; ``complaints`` tells what is wrong with a policy.
    """

    def __init__(
        self, problems: Problems, base: Path, complaints: Callable[[PolicyConfig], Iterable[Complaint]] | None = None
    ) -> None:
        self.problems = problems
        self.base = base
        self._complaints = complaints
        self.policy_path: Path | None = None

    def struct(self, node: Node, cls: type[msgspec.Struct], path: str) -> Any:
        """An instance of ``cls``, or MISSING."""
        if not isinstance(node, MappingNode):
            return self._fail(node, path, f"expected keys and values (name: value), found {shown(node)}")
        known = {field.name: field for field in msgspec.structs.fields(cls)}
        values: dict[str, Any] = {}
        found = entries(node, path, self.problems)
        for name, (key, value) in found.items():
            if name in known:
                values[name] = self.value(value, known[name].type, _join(path, name))
            else:
                self.problems.add(key, _join(path, name), unknown_key(name, known))
        for name, field in known.items():
            if field.required and name not in found:
                self.problems.add(node, _join(path, name), "is missing")
                values[name] = MISSING
        return MISSING if MISSING in values.values() else cls(**values)

    def value(self, node: Node, wanted: Any, path: str) -> Any:
        base = _base(wanted)
        if base is PolicyConfig:
            return self.policy(node, path)
        if base is GpusConfig:
            return self._gpus(node, path)
        if base is Path:
            return self._path(node, path)
        if get_origin(base) is dict:
            kind = get_args(base)[1]
            named = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
            return self._by_name(node, kind, path) if named else self._env(node, path)
        if isinstance(node, MappingNode) and (by_model := _by_model(base)) is not None:
            return self._by_model(node, by_model, path)
        if base in PARSERS:
            return self._parsed(node, PARSERS[base], path)
        if isinstance(base, type) and issubclass(base, msgspec.Struct):
            return self.struct(node, base, path)
        if get_origin(base) is tuple and path.endswith(".gpus"):
            return self._gpu_names(node, path)
        if get_origin(base) is tuple:
            return self._list(node, get_args(base)[0], path)
        return self._leaf(node, wanted, path)

    def policy(self, node: Node, path: str) -> Any:
        """The policy's own options are checked by the policy."""
        if not isinstance(node, MappingNode):
            meant = "round-robin" if shown(node) == "nothing" else shown(node)
            found = ", found nothing" if shown(node) == "nothing" else ""
            return self._fail(node, path, f"expected keys and values, for instance {{name: {meant}}}{found}")
        before = len(self.problems.found)
        types = {field.name: field.type for field in msgspec.structs.fields(PolicyConfig)}
        found_keys = entries(node, path, self.problems)
        options = {name: value for name, (_, value) in found_keys.items()}
        name = self._leaf(options.pop("name"), types["name"], f"{path}.name") if "name" in options else None
        file = self._path(options.pop("path"), f"{path}.path") if "path" in options else None
        if file is not None and name is None:
            return self._fail(node, f"{path}.name", "is missing: which class of the file is the policy?")
        if MISSING in (name, file):
            return MISSING
        self.policy_path = file
        policy = PolicyConfig(
            name=PolicyConfig().name if name is None else name,
            path=file,
            options={key: plain(value, f"{path}.{key}", self.problems) for key, value in options.items()},
        )
        if self._complaints is not None and len(self.problems.found) == before:
            for complaint in self._complaints(policy):
                self._complain(complaint, policy, _place(complaint.key, node), path)
        return policy

    def _path(self, node: Node, path: str) -> Any:
        text = self._leaf(node, str, path)
        if text is MISSING:
            return MISSING
        if "\0" in text:
            return self._fail(node, path, "a path has no zero byte in it")
        try:
            return self.base / Path(text).expanduser()
        except RuntimeError:
            return self._fail(node, path, f"{shown(node)}: there is no such home folder; write the whole path")

    def _gpus(self, node: Node, path: str) -> Any:
        """``auto``, ``none``, or a list of groups, each of them one GPU, a list of GPUs, or keys and values."""
        if isinstance(node, ScalarNode) and node.value in ("auto", "none"):
            return GpusConfig(auto=node.value == "auto")
        if not isinstance(node, SequenceNode):
            return self._fail(node, path, f"expected auto, none or a list of GPUs, found {shown(node)}")
        groups = tuple(self._group(child, f"{path}[{index}]") for index, child in enumerate(node.value))
        return MISSING if MISSING in groups else GpusConfig(auto=False, groups=groups)

    def _group(self, node: Node, path: str) -> Any:
        if isinstance(node, MappingNode):
            return self.struct(node, GroupConfig, path)
        gpus = self._gpu_names(node, path)
        return MISSING if gpus is MISSING else GroupConfig(gpus=gpus)

    def _gpu_names(self, node: Node, path: str) -> Any:
        """An index or UUID, or a list of them, as texts."""
        children = node.value if isinstance(node, SequenceNode) else [node]
        names = tuple(self._gpu_name(child, path) for child in children)
        if not names:
            return self._fail(node, path, "is empty; name at least one GPU by its index or UUID")
        return MISSING if MISSING in names else names

    def _gpu_name(self, node: Node, path: str) -> Any:
        if isinstance(node, ScalarNode) and (node.value.isdecimal() or node.value.startswith(("GPU-", "MIG-"))):
            return str(int(node.value)) if node.value.isdecimal() else node.value
        return self._fail(node, path, f"expected a GPU's index or its UUID (GPU-… or MIG-…), found {shown(node)}")

    def _env(self, node: Node, path: str) -> Any:
        """Names and values of environment variables; numbers and truth values are written out as text."""
        value = plain(node, path, self.problems)
        if not isinstance(value, dict):
            return self._fail(node, path, f"expected names and values (NAME: value), found {shown(node)}")
        env = {name: plain_env(content) for name, content in value.items()}
        for name, content in env.items():
            if not re.match(ENV_NAME_PATTERN, name):
                wanted = PATTERN_WORDS[ENV_NAME_PATTERN]
                return self._fail(node, _join(path, name), f"expected {wanted}, found {name!r}")
            if content is None or "\0" in content:
                return self._fail(node, _join(path, name), "expected text or a number")
        return env

    def _by_name(self, node: Node, wanted: type[msgspec.Struct], path: str) -> Any:
        """Names, and of each its own keys and values."""
        if not isinstance(node, MappingNode):
            return self._fail(node, path, f"expected names, each with keys and values of its own, found {shown(node)}")
        found = entries(node, path, self.problems)
        values = {name: self.struct(value, wanted, _join(path, name)) for name, (_, value) in found.items()}
        return MISSING if MISSING in values.values() else values

    def _by_model(self, node: MappingNode, wanted: Any, path: str) -> Any:
        """One value per model, under the one spelling of its name."""
        values: dict[str, Any] = {}
        spelled: dict[str, str] = {}
        for name, (key, value) in entries(node, path, self.problems).items():
            model = normalise_model(name)
            if model in values:
                text = f"{model} is given twice, as {spelled[model]} and {name}; remove one of them"
                self.problems.add(key, _join(path, name), text)
            values[model], spelled[model] = self.value(value, wanted, _join(path, name)), name
        return MISSING if MISSING in values.values() else values

    def _complain(self, complaint: Complaint, policy: PolicyConfig, nodes: tuple[Node, Node], path: str) -> None:
        key, value = nodes
        text = complaint.text
        if text.startswith("Expected "):
            text = f"{in_words(text, value)}{hint(_option(policy.options, complaint.key), text, value)}"
        where = f"{path}.{complaint.key}" if complaint.key else path
        self.problems.add(key if complaint.is_unknown else value, where, text)

    def _list(self, node: Node, wanted: Any, path: str) -> Any:
        if not isinstance(node, SequenceNode):
            return self._fail(node, path, f"expected a list (lines that start with '- '), found {shown(node)}")
        items = tuple(self.value(child, wanted, f"{path}[{index}]") for index, child in enumerate(node.value))
        return MISSING if MISSING in items else items

    def _parsed(self, node: Node, parse: Callable[[str], Any], path: str) -> Any:
        if isinstance(node, ScalarNode) and parse is parse_address and node.value.isdecimal():
            return self._fail(node, path, f"expected host:port, found {node.value}; write 127.0.0.1:{node.value}")
        text = self._leaf(node, str, path)
        if text is MISSING:
            return MISSING
        try:
            return parse(text)
        except ValueError as error:
            return self._fail(node, path, str(error))

    def _leaf(self, node: Node, wanted: Any, path: str) -> Any:
        before = len(self.problems.found)
        value = plain(node, path, self.problems)
        if len(self.problems.found) > before:
            return MISSING
        if value is False and isinstance(node, ScalarNode) and node.value.lower() in _choices(wanted):
            value = node.value.lower()  # `off`, which YAML 1.1 reads as false
        try:
            return msgspec.convert(value, wanted)
        except msgspec.ValidationError as error:
            choices = _choices(wanted)
            if choices and isinstance(value, str):
                return self._fail(node, path, f"expected one of {', '.join(choices)}, found {shown(node)}")
            return self._fail(node, path, f"{in_words(str(error), node)}{hint(value, str(error), node)}")

    def _fail(self, node: Node, path: str, text: str) -> Any:
        self.problems.add(node, path, text)
        return MISSING


def _place(key: str, node: Node) -> tuple[Node, Node]:
    """The nodes of an option of the policy (``weights.memory`` is one within another), else of what it is in."""
    found = (node, node)
    for name in key.split("."):
        _, inside = found
        if isinstance(inside, MappingNode):
            found = entries(inside, "", Problems("")).get(name, found)
    return found


def _option(options: object, key: str) -> object:
    for name in key.split("."):
        options = options.get(name) if isinstance(options, Mapping) else None
    return options


def _base(wanted: Any) -> Any:
    """The type itself, without its bounds and without ``| None``; unions of plain values stay as they are."""
    if get_origin(wanted) is Annotated:
        return _base(get_args(wanted)[0])
    if get_origin(wanted) in (Union, UnionType):
        bases = [_base(part) for part in get_args(wanted) if part is not type(None)]
        if len(bases) == 1 and (_is_read_whole(bases[0]) or get_origin(bases[0]) in (dict, tuple)):
            return bases[0]
    return wanted


def _is_read_whole(base: Any) -> bool:
    return base in (GpusConfig, Path, *PARSERS) or (isinstance(base, type) and issubclass(base, msgspec.Struct))


def _by_model(base: Any) -> Any:
    """The type of one model's value, where a value for each model may stand instead of one for all; else None."""
    parts = get_args(base) if get_origin(base) in (Union, UnionType) else ()
    return next((get_args(part)[1] for part in parts if get_origin(part) is dict), None)


def _choices(wanted: Any) -> list[str]:
    """The words that may stand here; none where it is not one of a few words."""
    if get_origin(wanted) is Literal:
        return list(get_args(wanted))
    parts = get_args(wanted)[:1] if get_origin(wanted) is Annotated else get_args(wanted)
    return [choice for part in parts for choice in _choices(part)]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
