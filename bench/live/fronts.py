"""What stands in front of the emulators, each set up for the box as somebody who knows its GPUs would."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import msgspec

from bench.contenders import CONTENDERS, Command, Contender, free_port
from corral.laboratory.campaign import OURS, contender
from corral.laboratory.types import Box, BoxReplica

OUR_NAME = "corral"
GATEWAY = Path(__file__).with_name("gateway.py")
_LEAST_INTERVAL_S = 0.05
"""The shortest that the configuration allows."""
_LONG_S = 86_400


@dataclass(frozen=True, slots=True)
class Front:
    """A contender, live and in the laboratory."""

    name: str
    laboratory: str
    """What the laboratory calls it."""
    make: Callable[[Box, float], Contender]
    """Takes the box and how much faster than real time it is."""
    is_fast: bool = False
    """Its clock is as fast as the box."""

    def version(self) -> str | None:
        """None: not installed."""
        return CONTENDERS[self.name].version()


def fronts(policy: str, *, real_clock: bool = False) -> dict[str, Front]:
    """All of them; ``policy`` is the one of Corral that is compared: ``NAME[?option=value&option=value]``.
    ``real_clock``: Corral's seconds are not those of the emulated machines."""
    who = contender(OURS + policy)
    chosen = {"name": who.policy, **dict(who.options)}
    ours = Front(
        OUR_NAME,
        who.name,
        lambda box, speed: _contender("corral", _corral(box, speed, chosen, real_clock=real_clock)),
        not real_clock,
    )
    nginx = Front("nginx", "weighted-least-conn", lambda box, _: _contender("nginx", _nginx(box)))
    haproxy = Front("haproxy", "haproxy-maxconn", lambda box, _: _contender("haproxy", _haproxy(box)))
    return {front.name: front for front in (ours, nginx, haproxy)}


def _contender(name: str, command: Callable[[Path, int, Sequence[int]], Command]) -> Contender:
    return replace(CONTENDERS[name], command=command)


def whole_weights(replicas: Sequence[BoxReplica], most: int) -> list[int]:
    """The same proportions in whole numbers up to ``most``, as small as they can be."""
    exact = [Fraction(str(round(replica.weight, 4))) for replica in replicas]
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    divisor = math.gcd(*whole)
    whole = [weight // divisor for weight in whole]
    if max(whole) <= most:
        return whole
    return [max(1, round(weight * most / max(whole))) for weight in whole]


def _nginx(box: Box) -> Callable[[Path, int, Sequence[int]], Command]:
    """The configuration of the wire's benchmark with weights, and with the client's Host: Ollama refuses others."""

    def command(folder: Path, port: int, replicas: Sequence[int]) -> Command:
        made = CONTENDERS["nginx"].command(folder, port, replicas)
        path = folder / "nginx.conf"
        text = path.read_text().replace("proxy_pass ", "proxy_set_header Host $http_host; proxy_pass ")
        for replica, weight in zip(replicas, whole_weights(box.replicas, 1000), strict=True):
            text = text.replace(f"127.0.0.1:{replica} ", f"127.0.0.1:{replica} weight={weight} ")
        path.write_text(text)
        return made

    return command


def _haproxy(box: Box) -> Callable[[Path, int, Sequence[int]], Command]:
    """That of the wire's benchmark with weights, and as many requests to each replica as it has slots: the others
    wait."""

    def command(folder: Path, port: int, replicas: Sequence[int]) -> Command:
        made = CONTENDERS["haproxy"].command(folder, port, replicas)
        path = folder / "haproxy.cfg"
        text = path.read_text().replace("defaults\n", f"defaults\n  timeout queue {_LONG_S}s\n")
        weights = whole_weights(box.replicas, 256)
        for number, (port_, weight) in enumerate(zip(replicas, weights, strict=True)):
            server = f"server r{number} 127.0.0.1:{port_}"
            text = text.replace(server, f"{server} weight {weight} maxconn {box.replicas[number].slots}")
        path.write_text(text)
        return made

    return command


def _corral(
    box: Box, speed: float, policy: dict[str, object], *, real_clock: bool
) -> Callable[[Path, int, Sequence[int]], Command]:
    """Everything by default, but for the queue, which holds what a proxy's would. With a real clock the rhythm of the
    probes is as much faster as the machines are."""

    def command(folder: Path, port: int, replicas: Sequence[int]) -> Command:
        python, *_, serve, option, path = CONTENDERS["corral"].command(folder, port, replicas)
        config = {
            "listen": f"127.0.0.1:{port}",
            "admin_listen": f"127.0.0.1:{free_port()}",
            "policy": policy,
            "queue": {"max_requests": 1_000_000, "max_wait_s": _LONG_S},
            "probes": {"ollama_interval_s": max(_LEAST_INTERVAL_S, 1 / speed) if real_clock else 1},
            "replicas": [
                {"id": replica.id, "url": f"http://127.0.0.1:{its}", "slots": replica.slots, "weight": replica.weight}
                for replica, its in zip(box.replicas, replicas, strict=True)
            ],
        }
        # YAML understands JSON
        Path(path).write_bytes(msgspec.json.encode(config))
        program = ["-m", "corral"] if real_clock else [str(GATEWAY), str(speed)]
        return [python, *program, serve, option, path]

    return command
