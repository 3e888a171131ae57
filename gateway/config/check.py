"""What one key alone cannot show: duplicates, loops, addresses that collide."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from yaml.nodes import MappingNode, Node, SequenceNode

from corral.gateway.config.addresses import same_place
from corral.gateway.config.owned import OWNED, GroupConfig
from corral.gateway.config.problems import Problems
from corral.gateway.config.schema import Config, ReplicaConfig
from corral.gateway.config.tree import LEAST, entries
from corral.model import normalise_model


def check(config: Config, root: Node, problems: Problems) -> None:
    nodes = _Places(root)
    if nodes.at("replicas") is not None and not config.replicas:
        text = f"is empty; list at least one, or remove the key and Corral runs Ollamas of its own:\n{LEAST}"
        problems.add(nodes.at("replicas"), "replicas", text)
    elif not config.replicas and not config.owns_replicas and config.discovery is None:
        problems.add(nodes.at("gpus"), "gpus", "names no GPU, and there are no replicas: nothing would serve")
    _check_groups(config, nodes, problems)
    _check_env(config.ollama.env, nodes.at("ollama"), "ollama.env", problems)
    if same_place(config.listen, config.admin_listen):
        problems.add(
            nodes.at("admin_listen") or nodes.at("listen"),
            "admin_listen",
            f"{config.admin_listen} is taken by listen ({config.listen}); choose another port",
        )
    _check_stores(config, nodes, problems)
    if config.discovery is not None and config.discovery.dns is None and config.discovery.kubernetes is None:
        problems.add(nodes.at("discovery"), "discovery", "says not where to look; give it dns: or kubernetes:")
    for index, replica in enumerate(config.replicas):
        _check_unique(config.replicas[:index], replica, index, nodes, problems)
        _check_loop(config, replica, index, nodes, problems)
        _check_models(replica, nodes.of("replicas", index), f"replicas[{index}]", problems)
        _check_corral(replica, nodes.of("replicas", index), f"replicas[{index}]", problems)


def _check_corral(replica: ReplicaConfig, node: Callable[[str], Node | None], path: str, problems: Problems) -> None:
    """What is in the memory of those below a Corral is its own affair."""
    if replica.admin is None:
        return
    if same_place(replica.admin, replica.url):
        text = f"{replica.admin} is its url; its admin port is another one, as its own admin_listen says"
        problems.add(node("admin"), f"{path}.admin", text)
    for key, value in (("pin", replica.pin), ("gpus", replica.gpus), ("max_loaded", replica.max_loaded)):
        if value:
            text = "belongs into the configuration of that Corral, which chooses among its replicas itself; remove it"
            problems.add(node(key), f"{path}.{key}", text)


def _check_stores(config: Config, nodes: _Places, problems: Problems) -> None:
    known = list(dict.fromkeys(replica.store for replica in config.replicas))
    for name in config.stores:
        if name not in known:
            hint = f"known: {', '.join(known)}" if known else "those of Corral's own Ollamas need no entry; remove it"
            problems.add(nodes.at("stores"), f"stores.{name}", f"no replica has this store; {hint}")


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
        _check_models(group, nodes.of("gpus", index), f"gpus[{index}]", problems, config.ollama.max_loaded)
        if group.id is not None and group.id in ids:
            problems.add(node, f"gpus[{index}].id", f"{group.id!r} is already the id of {ids[group.id]}")
        elif group.id is not None:
            ids[group.id] = f"gpus[{index}]"
    if config.large_models and groups:
        problems.add(
            nodes.at("large_models"), "large_models", "needs gpus: auto; here gpus: lists groups: give one models:"
        )


def _check_models(
    owner: ReplicaConfig | GroupConfig,
    node: Callable[[str], Node | None],
    path: str,
    problems: Problems,
    of_all: int | None = None,
) -> None:
    """What a replica is to hold in memory must be what it may serve, and must have a place there."""
    served, kept_off = (set(map(normalise_model, names)) for names in (owner.models, owner.keep_off))
    for name in owner.pin:
        if normalise_model(name) in kept_off:
            problems.add(node("pin"), f"{path}.pin", f"{name} is also in keep_off; remove it from one of the two")
        elif served and normalise_model(name) not in served:
            text = f"{name} is not one of its models, so nobody would ask for it there; add it to models, or remove it"
            problems.add(node("pin"), f"{path}.pin", text)
    count = len(set(map(normalise_model, owner.pin)))
    limit = owner.max_loaded or of_all
    if limit is not None and count > limit:
        text = f"{limit} is too little for the {count} models of pin, which are to be in memory always"
        problems.add(node("max_loaded"), f"{path}.max_loaded", text)


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
        return self.of("replicas", index)(name)

    def of(self, name: str, index: int) -> Callable[[str], Node | None]:
        """Finds a key of one entry of a list; where it has no such key, the entry."""
        entry = self.of_list(name, index)
        return lambda key: None if entry is None else self._child(entry, key) or entry

    @staticmethod
    def _child(node: Node, name: str) -> Node | None:
        if not isinstance(node, MappingNode):
            return None
        return entries(node, "", Problems("")).get(name, (None, None))[1]
