"""What one key alone cannot show: duplicates, loops, addresses that collide."""

from __future__ import annotations

from collections.abc import Mapping

from yaml.nodes import MappingNode, Node, SequenceNode

from corral.gateway.config.addresses import same_place
from corral.gateway.config.owned import OWNED
from corral.gateway.config.problems import Problems
from corral.gateway.config.schema import Config, ReplicaConfig
from corral.gateway.config.tree import LEAST, entries


def check(config: Config, root: Node, problems: Problems) -> None:
    nodes = _Places(root)
    if nodes.at("replicas") is not None and not config.replicas:
        text = f"is empty; list at least one, or remove the key and Corral runs Ollamas of its own:\n{LEAST}"
        problems.add(nodes.at("replicas"), "replicas", text)
    elif not config.replicas and not config.owns_replicas:
        problems.add(nodes.at("gpus"), "gpus", "names no GPU, and there are no replicas: nothing would serve")
    _check_groups(config, nodes, problems)
    _check_env(config.ollama.env, nodes.at("ollama"), "ollama.env", problems)
    if same_place(config.listen, config.admin_listen):
        problems.add(
            nodes.at("admin_listen") or nodes.at("listen"),
            "admin_listen",
            f"{config.admin_listen} is taken by listen ({config.listen}); choose another port",
        )
    for index, replica in enumerate(config.replicas):
        _check_unique(config.replicas[:index], replica, index, nodes, problems)
        _check_loop(config, replica, index, nodes, problems)


def _check_groups(config: Config, nodes: _Places, problems: Problems) -> None:
    """No GPU and no name in two groups; the indices and UUIDs themselves are compared with the machine later."""
    groups = () if config.gpus is None else config.gpus.groups
    seen: dict[str, int] = {}
    ids = {replica.id: f"replicas[{index}]" for index, replica in enumerate(config.replicas)}
    for index, group in enumerate(groups):
        node = nodes.of_list("gpus", index)
        for gpu in group.gpus:
            if gpu in seen:
                text = f"GPU {gpu} is already in gpus[{seen[gpu]}]; two Ollamas on one GPU take each other's memory"
                problems.add(node, f"gpus[{index}]", text)
            seen[gpu] = index
        _check_env(group.env, node, f"gpus[{index}].env", problems)
        if group.id is not None and group.id in ids:
            problems.add(node, f"gpus[{index}].id", f"{group.id!r} is already the id of {ids[group.id]}")
        elif group.id is not None:
            ids[group.id] = f"gpus[{index}]"
    if config.large_models and groups:
        problems.add(
            nodes.at("large_models"), "large_models", "needs gpus: auto; here gpus: lists groups: give one models:"
        )


def _check_env(env: Mapping[str, str], node: Node | None, path: str, problems: Problems) -> None:
    if OWNED in env:
        problems.add(node, f"{path}.{OWNED}", "Corral gives every replica an address itself; remove it")


def _check_unique(
    earlier: tuple[ReplicaConfig, ...], replica: ReplicaConfig, index: int, nodes: _Places, problems: Problems
) -> None:
    path = f"replicas[{index}]"
    for other, before in enumerate(earlier):
        if before.id == replica.id:
            problems.add(
                nodes.of_replica(index, "id"), f"{path}.id", f"{replica.id!r} is already the id of replicas[{other}]"
            )
        if same_place(before.url, replica.url):
            problems.add(
                nodes.of_replica(index, "url"),
                f"{path}.url",
                f"{replica.url} is already replicas[{other}] ({before.id!r}); "
                "one Ollama is one replica: raise its slots instead",
            )


def _check_loop(config: Config, replica: ReplicaConfig, index: int, nodes: _Places, problems: Problems) -> None:
    for key, address in (("listen", config.listen), ("admin_listen", config.admin_listen)):
        if same_place(address, replica.url):
            problems.add(
                nodes.of_replica(index, "url"),
                f"replicas[{index}].url",
                f"{replica.url} is the gateway's own {key} ({address}): requests would go round in a loop; "
                f"give the Ollama another port (OLLAMA_HOST=127.0.0.1:21001 ollama serve) or change {key}",
            )


class _Places:
    """Finds the node of a key again, to say its line."""

    def __init__(self, root: Node) -> None:
        self._root = root

    def at(self, name: str) -> Node | None:
        return self._child(self._root, name)

    def of_list(self, name: str, index: int) -> Node | None:
        items = self.at(name)
        return items.value[index] if isinstance(items, SequenceNode) else None

    def of_replica(self, index: int, name: str) -> Node | None:
        replicas = self.at("replicas")
        if not isinstance(replicas, SequenceNode):
            return None
        return self._child(replicas.value[index], name) or replicas.value[index]

    @staticmethod
    def _child(node: Node, name: str) -> Node | None:
        if not isinstance(node, MappingNode):
            return None
        return entries(node, "", Problems("")).get(name, (None, None))[1]
