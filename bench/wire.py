"""`python -m bench.wire`: nginx, HAProxy, an aiohttp reference and Corral side by side, interleaved, a core each."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from bench import machine, profiling, table
from bench.contenders import CONTENDERS, Contender, NotReady, Proxy
from bench.load import LoadError, Upstream, compile_load
from bench.rounds import MEASUREMENTS, Bench, Figures

REPLICAS = 3


@dataclass(slots=True)
class Outcome:
    """What all rounds gave."""

    results: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)
    """Contender and what went wrong, one for each failed measurement."""

    def add(self, name: str, figure: str, value: float) -> None:
        self.results.setdefault(name, {}).setdefault(figure, []).append(value)


def names(choice: str, known: Sequence[str]) -> list[str]:
    chosen = [name.strip() for name in choice.split(",") if name.strip()]
    if unknown := [name for name in chosen if name not in known]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(known)}")
    return chosen


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.wire", description=__doc__)
    everyone, everything = list(CONTENDERS), list(MEASUREMENTS)
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="rounds, each with every proxy (default 5)")
    add("--seconds", type=float, default=5, help="length of each measuring window (default 5)")
    add("--only", type=lambda text: names(text, everyone), default=everyone, metavar="NAMES", help=",".join(everyone))
    add(
        "--measure",
        type=lambda text: names(text, everything),
        default=everything,
        metavar="NAMES",
        help=",".join(everything),
    )
    add("--json", type=Path, metavar="FILE", help="write every round's figures there too")
    add("--quick", action="store_true", help="one short round, fewer open streams: a check, not a figure")
    add("--open-streams", type=int, default=5000, metavar="N", help="for memory per stream (default 5000)")
    add(
        "--tries",
        type=int,
        default=3,
        metavar="N",
        help="measure again while others use the cores, up to N times in all",
    )
    add("--profile", action="store_true", help="run Corral alone and print where its time goes")
    add(
        "--profiler",
        choices=["py-spy", "cprofile"],
        default="py-spy",
        help="py-spy is installed for the run if need be",
    )
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.tries = 1, 1
        options.seconds, options.open_streams = min(options.seconds, 1), min(options.open_streams, 300)
    return options


def installed(chosen: Sequence[str]) -> dict[str, str]:
    """Versions of the chosen contenders; the missing ones are named and left out."""
    found: dict[str, str] = {}
    for name in chosen:
        version = CONTENDERS[name].version()
        if version is None:
            print(f"{name} is not installed and left out (Debian: apt-get install {name})", file=sys.stderr)
        else:
            found[name] = version
    return found


def quietest(bench: Bench, contender: Contender, what: str, tries: int) -> Figures:
    """Measures again, while others used a core: that changes how much one wake-up serves."""
    tried: list[Figures] = []
    while len(tried) < tries and (not tried or others(tried[-1]) > table.QUIET_PCT):
        tried.append(measure(bench, contender, what))
    return min(tried, key=others)


def others(figures: Figures) -> float:
    return figures.get("others_pct", 0.0)


def measure(bench: Bench, contender: Contender, what: str) -> Figures:
    """One measurement on one fresh proxy."""
    with (
        tempfile.TemporaryDirectory(prefix="corral-bench-") as folder,
        Proxy(contender, Path(folder), bench.proxy_core, bench.upstream.ports) as proxy,
    ):
        figures = MEASUREMENTS[what](bench, proxy)
        if (status := proxy.process.poll()) is not None:
            raise LoadError(f"the proxy ended with status {status}: {proxy.printed()}")
        return figures | {"ready_s": proxy.ready_s}


def one(bench: Bench, contender: Contender, what: str, tries: int, outcome: Outcome) -> None:
    """Adds one measurement. Whatever fails is no figure."""
    try:
        figures = quietest(bench, contender, what, tries)
    except (LoadError, NotReady) as error:
        outcome.failures.append((contender.name, f"{what}: {error}"))
        print(f"FAILED {contender.name} {what}: {error}", file=sys.stderr)
        return
    for figure, value in figures.items():
        outcome.add(contender.name, f"{what}_others_pct" if figure == "others_pct" else figure, value)
    told = " ".join(f"{figure}={value:.6g}" for figure, value in figures.items())
    print(f"{contender.name} {what}: {told}", file=sys.stderr)


def run_rounds(bench: Bench, chosen: Sequence[str], options: argparse.Namespace) -> Outcome:
    """Interleaved: within a round each measurement visits every contender, and the order turns with the round."""
    outcome = Outcome()
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        turn = number % max(1, len(chosen))
        for what in options.measure:
            for name in (*chosen[turn:], *chosen[:turn]):
                one(bench, CONTENDERS[name], what, options.tries, outcome)
    return outcome


def report(outcome: Outcome, versions: dict[str, str], command: str) -> str:
    facts = machine.describe() | {
        CONTENDERS[name].title: f"{versions[name]}; {CONTENDERS[name].settings}" for name in versions
    }
    titles = {name: CONTENDERS[name].title for name in versions}
    failed = Counter(name for name, _ in outcome.failures)
    lines = [f"`{command}`, {time.strftime('%Y-%m-%d')}", "", table.render(outcome.results, titles, failed), ""]
    lines += [f"- {name}: {fact}" for name, fact in facts.items()]
    lines += [f"- NOISY {said}: measure again" for said in table.noisy(outcome.results)]
    lines += [f"- FAILED {name} {what}" for name, what in outcome.failures]
    return "\n".join(lines)


def save(path: Path, outcome: Outcome, versions: dict[str, str], command: str) -> None:
    content = {
        "command": command,
        "machine": machine.describe(),
        "versions": versions,
        "results": outcome.results,
        "failures": outcome.failures,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def main(argv: Sequence[str]) -> int:
    options = arguments(argv)
    command = shlex.join(["python", "-m", "bench.wire", *argv])
    proxy_core, load_core = machine.two_cores()
    versions = installed(options.only)
    alone = nullcontext() if options.quick else machine.cores_to_ourselves()
    with alone, tempfile.TemporaryDirectory(prefix="corral-bench-") as folder:
        program = compile_load(Path(folder))
        with Upstream(program, REPLICAS, load_core) as upstream:
            bench = Bench(program, upstream, proxy_core, load_core, options.seconds, options.open_streams)
            if options.profile:
                return profiling.profile(bench, options.profiler)
            outcome = run_rounds(bench, list(versions), options)
    print(report(outcome, versions, command))
    if options.json:
        save(options.json, outcome, versions, command)
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (LoadError, NotReady) as error:  # no compiler, or nothing to profile; rounds report their own failures
        sys.exit(f"bench.wire: {error}")
