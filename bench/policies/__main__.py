"""`python -m bench.policies`: Corral's scheduler and its rivals, in virtual time, against emulated GPUs."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import machine
from bench.policies import capacity, claims, plots, report
from bench.policies.capacity import YARDSTICKS
from bench.policies.matrix import matrix
from corral.errors import OperatorError
from corral.laboratory.boxes import BOXES, INCIDENTS, MODELS, BoxSpec
from corral.laboratory.campaign import DEFAULT, OURS, Contender, Result, Scenario, campaign, contender
from corral.laboratory.contender import ABLATIONS, SWITCHES
from corral.laboratory.workloads import GENERATED, Work

EXAMPLES = """
examples:
  python -m bench.policies
      four unequal GPUs, generated requests, load 0.7, everybody
  python -m bench.policies --trace ../shared/data/traces/azure_2023_conv.csv.gz --policies corral:weighted-least-load,least-conn
      two contenders with a public trace
  python -m bench.policies --box equal-4 --models 6 --load 0.4 --policies 'corral:weighted-least-load?cold_penalty=8,lmetric'
      six models where two fit, a policy with an option
  python -m bench.policies --matrix --traces ../shared/data/traces --requests 1000 --out docs/benchmarks
      every scenario, with the losses; writes the tables and, with matplotlib (extra `bench`), plots
  python -m bench.policies --capacity --seeds 3 --policies corral:weighted-least-load,least-conn,haproxy-maxconn
      how much the box can be asked for until fewer than 95 % of the requests are within the SLO
  python -m bench.policies --policies corral:weighted-least-load,corral:weighted-least-load+no-learning,corral:mine.py:Mine
      with something switched off, and a policy from a file
"""  # noqa: E501


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.policies",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--trace", type=Path, metavar="PATH", help="a public trace (Azure, Mooncake, ServeGen), plain or gzip")
    add("--workload", choices=GENERATED, default="poisson", help="without a trace: generated (default poisson)")
    add("--box", choices=list(BOXES), default="unequal-4", metavar="NAME", help=f"{', '.join(BOXES)} (unequal-4)")
    add("--models", default="1", metavar="SET", help=f"{', '.join(MODELS)}, or NAME[=SIZE_GB],… by popularity (1)")
    add("--slots", type=int, default=4, metavar="N", help="OLLAMA_NUM_PARALLEL of every replica (4)")
    add("--resident", type=int, default=2, metavar="N", help="OLLAMA_MAX_LOADED_MODELS of every replica (2)")
    add("--incident", choices=INCIDENTS, default="none", help="a GPU throttled half-way, or a replica killed and back")
    add("--equal-weights", action="store_true", help="nobody told the balancers which GPUs are faster")
    add("--flooder", action="store_true", help="one more tenant doubles the requests in the middle third")
    add("--load", type=float, default=0.7, metavar="RHO", help="share of the box's capacity that is asked for (0.7)")
    add("--requests", type=int, default=2000, metavar="N", help="how many; every seed has its own window (2000)")
    add("--seeds", type=int, default=5, metavar="N", help="paired runs (5)")
    words = f"rivals, `all`, `ablations`, or {OURS}POLICY[?option=value][+switch]; switches: {', '.join(SWITCHES)}"
    add("--policies", type=_names, default=list(DEFAULT), metavar="A,B", help=words)
    add("--ours", metavar="NAME", help=f"who the others are compared with (the first {OURS} one)")
    add("--processes", type=int, default=2, metavar="N", help="runs side by side (2)")
    add("--matrix", action="store_true", help="every scenario instead of one")
    add("--only", metavar="TEXT", help="of the matrix, scenarios whose name holds this")
    add("--traces", type=Path, metavar="FOLDER", help="the matrix's traces; generated workloads where one is missing")
    add("--capacity", action="store_true", help="find each contender's greatest load at which it keeps the SLO")
    add("--goodput", type=_share, default=0.95, metavar="SHARE", help="of the requests, in --capacity (0.95)")
    add("--slo", choices=list(YARDSTICKS), default="slowest", help="whose pace --capacity judges by (slowest GPU)")
    add("--findings", type=Path, metavar="DIR", help="where decide.json and live.json are (what --out says)")
    add("--out", type=Path, metavar="DIR", help="write the report and plots there")
    options = parser.parse_args(argv)
    for name in ("slots", "resident", "requests", "seeds", "processes"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be 1 or more")
    if options.capacity and options.matrix:
        parser.error("--capacity is of one box and workload, not of the matrix")
    return options


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError("must be above 0 and at most 1")
    return share


def _names(text: str) -> list[str]:
    """``all``: everybody; ``ablations``: the default policy as it is, and with each thing switched by itself."""
    groups = {"all": DEFAULT, "ablations": ABLATIONS}
    names = [name.strip() for name in text.split(",") if name.strip()]
    return [one for name in names for one in groups.get(name, (name,))]


def scenarios(options: argparse.Namespace) -> list[Scenario]:
    if options.matrix:
        found = matrix(options.traces, options.requests)
        return [scenario for scenario in found if (options.only or "") in scenario.name]
    work = Work(str(options.trace or options.workload), options.requests, flooder=options.flooder)
    box = BoxSpec(options.box, options.models, options.slots, options.resident, options.incident, options.equal_weights)
    return [Scenario(f"{box.name}, {Path(work.name).name}, load {options.load:g}", work, box, options.load)]


def compared_with(options: argparse.Namespace, contenders: Sequence[Contender]) -> str:
    first = next((who.name for who in contenders if who.policy is not None), contenders[0].name)
    ours: str = options.ours or first
    if ours not in {who.name for who in contenders}:
        raise OperatorError(f"--ours {ours}: not among --policies")
    return ours


def head_text(command: str, seeds: int, took_s: float) -> list[str]:
    facts = [f"- {name}: {fact}" for name, fact in machine.describe().items()]
    return [
        "# The policy laboratory",
        f"`{command}`, {time.strftime('%Y-%m-%d')}, {took_s:.0f} s; medians of {seeds} paired seeds, virtual time.",
        "A request that was refused or failed counts as 120 s or what it waited, and as outside the SLO "
        "(TTFT ≤ max(2 s, 2 × alone + 1 s), time per token ≤ 2 × alone on the box's best GPU).",  # noqa: RUF001
        SLOWEST,
        PREDICTED,
        "Times, goodput and fairness leave out the warm-up: the first tenth of the time, two minutes at most.",
        "\n".join(facts),
    ]


def full_text(results: Sequence[Result], ours: str, head: Sequence[str], findings: Path | None) -> str:
    whole: list[str] = []
    if len(results) > 1:
        whole = ["## All scenarios", report.matrix_text(results, ours)]
        whole += ["## What must be shown", claims.text(results, ours, findings)]
    return "\n\n".join([*head, *whole, *(report.tables(result, ours) for result in results)]) + "\n"


SLOWEST = (
    "*Of the slowest GPU*: the same SLO by what the request takes alone on the slowest GPU with the memory for its "
    "model, which is what every GPU of an unequal box can keep."
)
PREDICTED = (
    "*Predicted*: how far off, as a share of the time from sending, the prediction at sending was; requests that were "
    "answered only. Where nothing was predicted there is no figure."
)


def main(argv: Sequence[str]) -> int:
    options = arguments(argv)
    command = shlex.join(["python", "-m", "bench.policies", *argv])
    contenders = [contender(name) for name in options.policies]
    if not contenders or not (chosen := scenarios(options)):
        raise OperatorError("nothing to run: no contender, or no scenario of that name")
    ours = compared_with(options, contenders)
    if options.capacity:
        return find_capacity(options, chosen[0], contenders, ours, command)
    began_s = time.monotonic()
    results = campaign(chosen, contenders, range(options.seeds), options.processes)
    head = head_text(command, options.seeds, time.monotonic() - began_s)
    text = full_text(results, ours, head, options.findings or options.out)
    print(text)
    if options.out:
        save(options.out, text, results, ours, is_matrix=options.matrix)
    return 1 if any(result.failures for result in results) else 0


def find_capacity(
    options: argparse.Namespace, scenario: Scenario, contenders: Sequence[Contender], ours: str, command: str
) -> int:
    wanted, began_s = capacity.Wanted(options.goodput, options.slo), time.monotonic()
    found = capacity.capacities(scenario, contenders, range(options.seeds), wanted, options.processes)
    head = head_text(command, options.seeds, time.monotonic() - began_s)
    text = "\n\n".join([*head[:2], head[-1], capacity.text(scenario, found, ours, wanted)]) + "\n"
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "capacity.md").write_text(text)
    return 0


def save(folder: Path, text: str, results: Sequence[Result], ours: str, *, is_matrix: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = "matrix" if is_matrix else "policies"
    drawn = plots.draw(results, ours, folder, name)
    if drawn is None:
        print("no plots: matplotlib is not installed (extra `bench`)", file=sys.stderr)
    pictures = "".join(f"\n![{path.stem}]({path.name})\n" for path in drawn or [])
    (folder / f"{name}.md").write_text(text + pictures)
    print(f"written: {folder / name}.md", file=sys.stderr)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except OperatorError as error:
        sys.exit(f"bench.policies: {error}")
