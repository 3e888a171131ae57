"""Who is compared, and the runs side by side in processes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from corral.errors import CorralError, OperatorError
from corral.gateway.config import PolicyConfig
from corral.laboratory.contender import OURS, Contender, contender
from corral.laboratory.oracle import Oracle
from corral.laboratory.rivals import RIVALS
from corral.laboratory.sim.effect import Effect, Job, play
from corral.policies import POLICIES, make_policy

SIMPLE = "round-robin"
Progress = Callable[[int, int], None]


def contenders(policy: str | None, against: Sequence[str], configured: PolicyConfig) -> list[Contender]:
    """The policy first, then what it is compared with. Raises OperatorError."""
    in_effect = _configured(configured)
    first = in_effect if policy is None else named(policy, "--policy")
    others = [named(text, "--against") for text in against]
    if not against:
        others = [in_effect, named(PolicyConfig().name, "--against"), named(SIMPLE, "--against")]
    found = {first.name: first}
    for each in others:
        found.setdefault(each.name, each)
    return list(found.values())


def named(text: str, option: str) -> Contender:
    """A policy of Corral, of a package or of a file; else a rule of another balancer. Raises OperatorError."""
    is_rival = text in (*RIVALS, Oracle.name) and text not in POLICIES
    try:
        return contender(text) if is_rival else replace(contender(OURS + text), name=text)
    except CorralError as error:
        said = str(error).removeprefix("policy.name: ").replace(f"--policies {OURS}", "")
        raise OperatorError(f"{option} {text}: {said}") from error


def _configured(config: PolicyConfig) -> Contender:
    path = None if config.path is None else str(config.path)
    make_policy(config.name, path, config.options)
    options = "&".join(f"{key}={value}" for key, value in config.options.items())
    place = "" if path is None else f"{Path(path).name}:"
    name = f"{place}{config.name}{'?' if options else ''}{options}"
    return Contender(name, config.name, tuple(config.options.items()), path)


def switched(who: Contender, switches: Iterable[str]) -> Contender:
    """The same with what the configuration switches off."""
    return who if who.policy is None else replace(who, switches=who.switches | frozenset(switches))


def run_all(jobs: Sequence[Job], processes: int, progress: Progress) -> list[Effect]:
    """In the order of the jobs; in this process, where one is enough. Raises OperatorError where a run fails."""
    if min(processes, len(jobs)) < 2:
        return [_one(job, number, len(jobs), progress) for number, job in enumerate(jobs, 1)]
    # processes that begin afresh: a fork of one with threads may hang
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context, initializer=_ignore_interrupt)
    try:
        with _uninterrupted():
            futures = [pool.submit(play, job) for job in jobs]
        return _collected(jobs, futures, progress)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown()


def _one(job: Job, number: int, total: int, progress: Progress) -> Effect:
    try:
        effect = play(job)
    except Exception as error:
        raise _failed(job, error) from error
    progress(number, total)
    return effect


def _collected(jobs: Sequence[Job], futures: Sequence[Future[Effect]], progress: Progress) -> list[Effect]:
    pending = set(futures)
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            error = future.exception()
            if error is not None:
                raise _failed(jobs[list(futures).index(future)], error) from error
        progress(len(futures) - len(pending), len(futures))
    return [future.result() for future in futures]


def _failed(job: Job, error: BaseException) -> CorralError:
    return OperatorError(f"the run of {job.who.name} (seed {job.seed}) failed: {type(error).__name__}: {error}")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the processes are begun: one that is half begun says a traceback when it finds nobody."""
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def _ignore_interrupt() -> None:
    """Ctrl-C is for the process that waits for this one; it ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
