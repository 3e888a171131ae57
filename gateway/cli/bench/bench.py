"""One whole benchmark: look, load, warm up, measure, report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING, Any

from corral.gateway.cli.bench import machine
from corral.gateway.cli.bench.client import CONNECT_S, LONGEST_S, SILENT_S, Question, Target
from corral.gateway.cli.bench.figures import fairness_figures, level_figures
from corral.gateway.cli.bench.rounds import Amount, fairness, hopeless, measure, streams

if TYPE_CHECKING:
    from corral.gateway.cli.bench.report import Report

_WARM_UP_TOKENS = 16
_WARM_UP_EACH = 2
LIGHT_REQUESTS = 8
MOST_FLOOD = 64


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line."""

    command: str
    urls: tuple[str, ...]
    model: str | None
    concurrencies: tuple[int, ...]
    amount: Amount
    prompt_tokens: int
    output_tokens: int
    with_fairness: bool
    seed: int


async def bench(asked: Asked, told: Callable[[str], None]) -> Report:
    """Raises OperatorError where an address does not answer, or answers nothing."""
    import aiohttp

    from corral.gateway.cli.bench.report import Report

    clock, rng = time.perf_counter, Random(asked.seed)
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=LONGEST_S, connect=CONNECT_S, sock_read=SILENT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=1 << 20) as session:
        targets = [Target(url, session, clock) for url in asked.urls]
        found = [await machine.about(target) for target in targets]
        model = asked.model or await machine.a_model(targets)
        question = Question(model, asked.prompt_tokens, asked.output_tokens)
        for target, about in zip(targets, found, strict=True):
            about |= await _prepare(target, question, max(asked.concurrencies), rng, told)
        name(targets, found)
        levels = await measure(targets, question, asked.concurrencies, asked.amount, rng, clock, told)
        fair = []
        if asked.with_fairness:
            streams_ = min(MOST_FLOOD, 2 * max(asked.concurrencies))
            for target in targets:
                told(f"fairness, beside {streams_} streams of another tenant: {target.url}")
                fair.append(await fairness(target, question, streams_, LIGHT_REQUESTS, rng, clock))
    return Report(
        asked.command,
        datetime.now(UTC).strftime("%Y-%m-%d"),
        machine.with_gpus(machine.this_machine(), targets),
        found,
        question,
        [level_figures(level) for level in levels],
        [fairness_figures(each) for each in fair],
    )


async def _prepare(
    target: Target, question: Question, concurrency: int, rng: Random, told: Callable[[str], None]
) -> dict[str, Any]:
    """The model in memory, wherever it is wanted: what is measured later is no load."""
    clock = time.perf_counter
    told(f"loading {question.model}: {target.url}")
    load_s = await target.load(question.model)
    told(f"warming up: {target.url}")
    short = Question(question.model, question.prompt_tokens, min(question.output_tokens, _WARM_UP_TOKENS))
    done = await streams(lambda: target.ask(short, rng), concurrency, Amount(_WARM_UP_EACH * concurrency), clock)
    hopeless(target.url, [done])
    is_corral = any(record.replica is not None for record in done.records)
    return {"kind": "corral" if is_corral else "ollama", "load_s": load_s, "warm_up_s": done.took_s}


def name(targets: Sequence[Target], found: Sequence[dict[str, Any]]) -> None:
    """``corral``, ``ollama``, ``ollama-2``: as they turned out to be."""
    seen: Counter[str] = Counter()
    for target, about in zip(targets, found, strict=True):
        kind = about["kind"]
        seen[kind] += 1
        target.name = about["name"] = kind if seen[kind] == 1 else f"{kind}-{seen[kind]}"
