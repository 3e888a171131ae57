"""``python -m bench.tree``: the same GPUs and requests behind one Corral, and behind several with one above them."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from statistics import fmean

from bench.tree.tree import POLICY, run_tree
from corral.laboratory.boxes import BoxSpec, make_box
from corral.laboratory.engine import run_ours
from corral.laboratory.measures import Figures, measure
from corral.laboratory.workloads import Work, workload

SHOWN = ("ttft_mean", "ttft_p95", "e2e_mean", "loads", "failed")
Case = tuple[str, int, str, str, float]
CASES: tuple[Case, ...] = tuple(
    (box, nodes, models, work, load)
    for box, nodes in (("unequal-4", 2), ("mixed-8", 2), ("mixed-8", 4))
    for models, work, load in (("1", "poisson", 0.7), ("1", "bursty", 0.7), ("3", "poisson", 0.7), ("3", "bursty", 0.5))
)
"""Box, nodes, models, workload, load."""


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.tree", description=__doc__)
    add = parser.add_argument
    add("--box", help="one box instead of all cases")
    add("--nodes", type=int, default=2, help="Corrals below the one above (2)")
    add("--models", default="1", help="as for the policy laboratory (1)")
    add("--workload", default="poisson", help="as for the policy laboratory (poisson)")
    add("--load", type=float, default=0.7, help="times what the box can do (0.7)")
    add("--requests", type=int, default=2000, help="per run (2000)")
    add("--seeds", type=int, default=5, help="runs of each (5)")
    return parser.parse_args(argv)


def play(case: Case, requests: int, seeds: int) -> tuple[list[Figures], list[Figures]]:
    """Figures by seed: behind one Corral, and behind two levels."""
    name, nodes, models, work, load = case
    ones, trees = [], []
    for seed in range(seeds):
        box = make_box(BoxSpec(name, models))
        scaled = workload(Work(work, requests), box, load, seed)
        warm_up_s = min(120.0, scaled.span_s / 10)
        ones.append(measure(run_ours(box, scaled.arrivals, POLICY, {}, seed), warm_up_s))
        trees.append(measure(run_tree(box, scaled.arrivals, nodes, seed), warm_up_s))
    return ones, trees


def row(case: Case, ones: Sequence[Figures], trees: Sequence[Figures]) -> str:
    box, nodes, models, work, load = case
    cells = [f"{box}, {nodes} nodes", models, f"{work} {load:g}"]
    for name in SHOWN:
        one, two = fmean(each[name] for each in ones), fmean(each[name] for each in trees)
        cells.append(f"{one:.3g} → {two:.3g}")
    ratio = fmean(each["ttft_mean"] for each in trees) / fmean(each["ttft_mean"] for each in ones)
    return f"| {' | '.join((*cells, f'{ratio:.3f}'))} |"


def main(argv: Sequence[str]) -> int:
    options = arguments(argv)
    one_case = (options.box, options.nodes, options.models, options.workload, options.load)
    cases = CASES if options.box is None else (one_case,)
    print(f"`{shlex.join(['python', '-m', 'bench.tree', *argv])}`, {time.strftime('%Y-%m-%d')}; one Corral → a tree\n")
    head = ("GPUs", "models", "workload", "mean TTFT (s)", "p95 TTFT (s)", "mean e2e (s)", "loads", "failed", "ratio")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    whole: list[tuple[float, float]] = []
    for case in cases:
        ones, trees = play(case, options.requests, options.seeds)
        whole += [(one["ttft_mean"], two["ttft_mean"]) for one, two in zip(ones, trees, strict=True)]
        print(row(case, ones, trees), flush=True)
    print(f"\nMean TTFT of all {len(whole)} runs: {fmean(b for _, b in whole) / fmean(a for a, _ in whole):.3f} times.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
