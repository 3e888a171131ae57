"""What the benchmark of reloads counts as lost."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import cast

from bench.reloads import POLICIES, Tally, written

from corral.gateway.config import diff_config, load_config
from tests.e2e.processes import Emulator


def test_everything_but_a_complete_answer_is_refused_reset_or_cut() -> None:
    whole = Tally(Counter(COMPLETE=5), Counter(whole=3))
    assert whole.lost() == {"refused": 0, "reset": 0, "cut": 0}
    answers = Counter(COMPLETE=5, REFUSED=1, ConnectionRefusedError=2, LOST=4, ConnectionResetError=8, CUT=16)
    broken = Tally(answers + Counter(FALSE_END=32, ERROR=64, TimeoutError=128), Counter(whole=3, cut=256, OSError=512))
    assert broken.lost() == {"refused": 3, "reset": 12, "cut": 16 + 32 + 64 + 128 + 256 + 512}


def test_each_reload_changes_replicas_weights_policy_and_timeouts(tmp_path: Path) -> None:
    path, rng = tmp_path / "corral.yaml", Random(1)
    replicas = [cast(Emulator, SimpleNamespace(name=f"r{n}", url=f"http://127.0.0.1:{21001 + n}")) for n in range(4)]
    configs = []
    for number in range(20):
        written(path, replicas, number, rng)
        configs.append(load_config(path))
    changes = [diff_config(one, other) for one, other in pairwise(configs)]
    for part in ("replica r", "weight", "policy", "timeouts", "queue", "placement"):
        assert sum(any(part in line for line in lines) for lines in changes) >= 6, part
    assert all(len(config.replicas) >= 3 for config in configs)
    assert {config.policy.name for config in configs} == set(POLICIES)
