"""`python -m bench.live`: Corral, nginx and HAProxy in front of emulators in real time, beside the laboratory."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bench import machine
from bench.live import report
from bench.live.compare import Comparison, compare
from bench.live.fronts import OUR_NAME, Front, fronts
from bench.policies.matrix import UNEQUAL, matrix
from corral.errors import OperatorError
from corral.laboratory.campaign import Scenario

EXAMPLES = """
examples:
  python -m bench.live --traces ../shared/data/traces --out docs/benchmarks/live.md --json docs/benchmarks/live.json
      four unequal GPUs, Azure conversations, load 0.7
  python -m bench.live --quick --contenders corral
      whether it works, in seconds
  python -m bench.live --traces ../shared/data/traces --only "equal-4, 6 models, load 0.4" --speed 10
      six models where two fit
"""


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.live",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", default=UNEQUAL, metavar="NAME", help=f"a scenario of the laboratory's matrix ({UNEQUAL})")
    add("--traces", type=Path, metavar="FOLDER", help="the matrix's traces; generated workloads where one is missing")
    add("--requests", type=int, default=600, metavar="N", help="how many for each seed (600)")
    add("--seeds", type=int, default=5, metavar="N", help="paired runs (5)")
    add("--speed", type=float, default=20.0, metavar="X", help="so much faster than the emulated machines (20)")
    add("--policy", default="weighted-least-load", metavar="NAME", help="Corral's, with ?option=value&option=value")
    add("--contenders", default="corral,nginx,haproxy", metavar="A,B", help="of corral,nginx,haproxy (all)")
    add("--real-clock", action="store_true", help="Corral's own seconds are real ones, not those of the machines")
    add("--real-time", action="store_true", help="go before whatever else runs on this machine (needs root)")
    add("--out", type=Path, metavar="FILE", help="write the tables there, too")
    add("--json", type=Path, metavar="FILE", help="write the figures there; the laboratory reads DIR/live.json")
    add("--quick", action="store_true", help="one seed, 20 requests, no wait for other benchmarks: a check, no figure")
    options = parser.parse_args(argv)
    if options.quick:
        options.seeds, options.requests = 1, min(options.requests, 20)
    if options.seeds < 1 or options.requests < 2 or not 0 < options.speed <= 1000:
        parser.error("--seeds must be 1 or more, --requests 2 or more, --speed above 0 and at most 1000")
    return options


def scenario_named(name: str, folder: Path | None, requests: int) -> Scenario:
    """The name, or a part of one that only one has."""
    found = [scenario for scenario in matrix(folder, requests) if name in scenario.name]
    exact = [scenario for scenario in found if scenario.name == name]
    chosen = exact or found
    if len(chosen) != 1:
        known = "; ".join(scenario.name for scenario in chosen or matrix(folder, requests))
        raise OperatorError(f"--only {name!r}: not one scenario; known: {known}")
    if chosen[0].box.incident != "none":
        raise OperatorError(f"--only {name!r}: emulators have no incidents in their plan; choose another scenario")
    return chosen[0]


def chosen_fronts(text: str, policy: str, *, real_clock: bool) -> list[Front]:
    known = fronts(policy, real_clock=real_clock)
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise OperatorError(f"--contenders {', '.join(unknown)}: choose from {', '.join(known)}")
    return [known[name] for name in names]


def main(argv: Sequence[str]) -> int:
    options = arguments(argv)
    command = shlex.join(["python", "-m", "bench.live", *argv])
    scenario = scenario_named(options.only, options.traces, options.requests)
    asked = chosen_fronts(options.contenders, options.policy, real_clock=options.real_clock)
    versions = {front.name: version for front in asked if (version := front.version()) is not None}
    missing = [front.name for front in asked if front.name not in versions]
    alone = nullcontext() if options.quick else machine.cores_to_ourselves()
    with alone:
        there = [front for front in asked if front.name in versions]
        began_s = time.monotonic()
        comparison = compare(scenario, there, range(options.seeds), options.speed, real_time=options.real_time)
        took_s = time.monotonic() - began_s
    text = f"`{command}`, {time.strftime('%Y-%m-%d')}, {took_s:.0f} s\n\n{report.text(comparison, versions, missing)}"
    print(text)
    save(options, text, comparison, command, versions)
    return 1 if comparison.failures else 0


def save(
    options: argparse.Namespace, text: str, comparison: Comparison, command: str, versions: dict[str, str]
) -> None:
    for path in (options.out, options.json):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    if options.out:
        options.out.write_text(f"# Live beside the laboratory\n\n{text}")
    if options.json and OUR_NAME in comparison.live:
        options.json.write_text(json.dumps(report.as_json(comparison, command, versions), indent=1) + "\n")


def stop(_number: int, _frame: FrameType | None) -> NoReturn:
    """Unwinds, so that whatever was started ends."""
    raise SystemExit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    try:
        sys.exit(main(sys.argv[1:]))
    except OperatorError as error:
        sys.exit(f"bench.live: {error}")
