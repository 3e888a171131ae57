"""Where the process of one replica stands, and what is to be done about it.

Rules of this file:

1. Every transition is a line of the table in ``transitions.py``; a pair that is not there changes nothing.
2. Whether it answers is asked only while it starts. Once it runs, nothing but the end of its own process or a plain
   request ends it: a replica that is slow, busy or silent keeps its models.
3. What an end leads to is decided when the end has come, from what is wanted then. So requests may come in any order.
4. An end that nobody asked for counts. A counted end is followed by a pause, which doubles each time, and after too
   many within a window by :attr:`ProcessState.FAILED`, which only a person takes back. So does a fault of its GPU.
5. It takes requests only while it runs: every way out of RUNNING begins with a hold.

Theory of operation: the caller tells what happened and when, carries out the actions that come back, and calls
:meth:`ProcessRecord.tick` a few times a second. It reports an end once: of a replica that was asked to end, when all
of its processes are gone; of any other, as soon as the first process is, and then ends the rest itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from corral.gateway.run.transitions import TRANSITIONS, Action, Hold, Kill, Release, Sign, Spawn, Terminate, WarmUp
from corral.model import ProcessState

XID_CALM_S: Final = 10.0
"""A GPU that reported a fault is used again when it has been read well for so long."""
JITTER_RATIO: Final = 0.25
"""A pause is shortened by up to this share, so that replicas that died together do not start together."""
_DOUBLINGS: Final = 30


@dataclass(frozen=True, slots=True)
class LifecycleRules:
    """The limits, see ``restart:`` in the configuration."""

    first_s: float = 1.0
    max_s: float = 60.0
    """The longest pause. A replica that ran this long begins again with the shortest."""
    give_up_after: int = 5
    window_s: float = 600.0
    ready_s: float = 60.0
    stop_s: float = 10.0
    drain_s: float = 600.0
    """How long running requests may go on when a restart or a stop was asked for."""


@dataclass(slots=True)
class _Unfit:
    """A GPU it cannot run on now."""

    reason: str
    heals: bool
    """Good readings alone make it fit again; else somebody must say so."""
    good_since_s: float | None = None


class ProcessRecord:
    """The life of one replica. Every method takes the time of the event and returns what is to be done, in order."""

    def __init__(self, rules: LifecycleRules, rng: Random, now_s: float) -> None:
        self.rules = rules
        self.state = ProcessState.STOPPED
        self.reason = "not started yet"
        self.since_s = now_s
        """When it came into this state."""
        self.spawns = 0
        self.next_start_s: float | None = None
        self._rng = rng
        self._wanted = False
        self._why_unwanted = self.reason
        self._answered = False
        self._fell: str | None = None
        """Why the end it is coming to counts; None: it was asked for."""
        self._falls: list[float] = []
        self._in_a_row = 0
        self._unfit: dict[str, _Unfit] = {}
        self._drain_until_s = 0.0
        self._kill_at_s: float | None = None
        self._killed = False

    # -- what is wanted

    @property
    def wanted(self) -> bool:
        """It runs, or would if it could."""
        return self._wanted

    def start(self, now_s: float, why: str) -> list[Action]:
        """It is to run from now on; what went wrong before is forgotten."""
        self._want()
        if self.state is ProcessState.STOPPING:
            return []  # it begins again when it has ended
        if not self._unfit:
            return self._apply(Sign.START, now_s, why)
        if self.state is ProcessState.STOPPED:
            self.reason = self._why_unfit()
            return [Hold(self.reason)]
        return self._apply(Sign.GONE, now_s, self._why_unfit())

    def restart(self, now_s: float, why: str) -> list[Action]:
        """Anew, after what it is doing; one that does not run is started."""
        if self.state not in (ProcessState.STARTING, ProcessState.RUNNING):
            return self.start(now_s, why)
        self._want()
        return self._stop(now_s, why, self.rules.drain_s)

    def stop(self, now_s: float, why: str, drain_s: float | None = None) -> list[Action]:
        """It is not to run any more. ``drain_s``: how long its requests may go on; None: as the rules say."""
        self._wanted, self._why_unwanted = False, why
        drain_s = self.rules.drain_s if drain_s is None else drain_s
        self._drain_until_s = min(self._drain_until_s, now_s + drain_s)
        return self._stop(now_s, why, drain_s)

    # -- what happened to its process

    def adopted(self, now_s: float) -> list[Action]:
        """A process that was left running serves again as it is."""
        self._want()
        self.spawns += 1
        return self._apply(Sign.READY, now_s, "kept from an earlier gateway")

    def answered(self, now_s: float) -> list[Action]:
        """It answers for the first time since its start."""
        if self.state is not ProcessState.STARTING or self._answered:
            return []
        self._answered = True
        self.reason = "warming up"
        return [Hold(self.reason), WarmUp()]

    def warm(self, now_s: float) -> list[Action]:
        """Its models are loaded. Said late, of one that has ended meanwhile, it means nothing."""
        if self.state is not ProcessState.STARTING or not self._answered:
            return []
        return self._apply(Sign.READY, now_s, "serves")

    def ended(self, now_s: float, how: str) -> list[Action]:
        """It has ended, or could not be started; ``how`` in a few words."""
        if self.state is ProcessState.STOPPING:
            return self._after_stop(now_s)
        if self.state not in (ProcessState.STARTING, ProcessState.RUNNING):
            return []
        if self.state is ProcessState.RUNNING and now_s - self.since_s >= self.rules.max_s:
            self._in_a_row = 0
        self._falls.append(now_s)
        return self._fall(now_s, how)

    # -- what happened to its GPUs

    def gpu_unfit(self, uuid: str, now_s: float, why: str, drain_s: float) -> list[Action]:
        """It cannot run on that GPU until :meth:`gpu_fit`; requests in flight get ``drain_s``."""
        self._unfit[uuid] = _Unfit(why, heals=False)
        return self._leave_gpu(now_s, why, drain_s)

    def gpu_faulted(self, uuid: str, now_s: float, why: str, drain_s: float) -> list[Action]:
        """That GPU reported a fault: a new process is needed, when it has been calm. Counts as an end."""
        known = self._unfit.get(uuid)
        if known is not None:
            known.good_since_s = None  # one event, many reports
            return []
        self._unfit[uuid] = _Unfit(why, heals=True)
        if self.state in (ProcessState.STARTING, ProcessState.RUNNING):
            self._falls.append(now_s)
        return self._leave_gpu(now_s, why, drain_s)

    def gpu_read(self, uuid: str, now_s: float, *, well: bool) -> list[Action]:
        """One reading of one of its GPUs."""
        unfit = self._unfit.get(uuid)
        if unfit is None or not unfit.heals:
            return []
        if not well:
            unfit.good_since_s = None
        elif unfit.good_since_s is None:
            unfit.good_since_s = now_s
        elif now_s - unfit.good_since_s >= XID_CALM_S:
            return self.gpu_fit(uuid, now_s)
        return []

    def gpu_fit(self, uuid: str, now_s: float) -> list[Action]:
        """That GPU can be used again."""
        if self._unfit.pop(uuid, None) is None or self._unfit or not self._wanted:
            return []
        if self.state is not ProcessState.STOPPED:
            return []
        return self._apply(Sign.START, now_s, "its GPU is back")

    def keep_gpus(self, uses: Callable[[str], bool]) -> None:
        """It has other GPUs now: what is known of those it does not use is forgotten."""
        self._unfit = {uuid: unfit for uuid, unfit in self._unfit.items() if uses(uuid)}

    # -- time

    def tick(self, now_s: float, inflight: int) -> list[Action]:
        """What is due. ``inflight``: requests it is answering."""
        match self.state:
            case ProcessState.STARTING if not self._answered and now_s - self.since_s >= self.rules.ready_s:
                self._falls.append(now_s)
                self._fell = f"no answer within {self.rules.ready_s:g} s of its start"
                return self._stop(now_s, self._fell, 0.0)
            case ProcessState.BACKING_OFF if self.next_start_s is not None and now_s >= self.next_start_s:
                return self._apply(Sign.START, now_s, "started again")
            case ProcessState.STOPPING:
                return self._insist(now_s, inflight)
        return []

    def _insist(self, now_s: float, inflight: int) -> list[Action]:
        if self._kill_at_s is None:
            if inflight and now_s < self._drain_until_s:
                return []
            self._kill_at_s = now_s + self.rules.stop_s
            return [Terminate()]
        if now_s < self._kill_at_s or self._killed:
            return []
        self._killed = True
        return [Kill()]

    # -- steps

    def _want(self) -> None:
        self._wanted = True
        self._fell = None
        self._falls.clear()
        self._in_a_row = 0

    def _stop(self, now_s: float, why: str, drain_s: float) -> list[Action]:
        if self.state in (ProcessState.BACKING_OFF, ProcessState.FAILED):
            return self._apply(Sign.GONE, now_s, why)
        if self.state in (ProcessState.STARTING, ProcessState.RUNNING):
            self._drain_until_s = now_s + drain_s
            self._kill_at_s, self._killed = None, False
        return self._apply(Sign.STOP, now_s, why)

    def _leave_gpu(self, now_s: float, why: str, drain_s: float) -> list[Action]:
        if self.state is ProcessState.FAILED:
            return []  # the GPU's return must not take back what only a person may
        self._drain_until_s = min(self._drain_until_s, now_s + drain_s)
        return self._stop(now_s, why, drain_s)

    def _after_stop(self, now_s: float) -> list[Action]:
        why, self._fell = self._fell, None
        if not self._wanted:
            return self._apply(Sign.GONE, now_s, self._why_unwanted)
        if self._exhausted(now_s):
            return self._fall(now_s, why or self._why_unfit() or self.reason)
        if self._unfit:
            return self._apply(Sign.GONE, now_s, self._why_unfit())
        return self._apply(Sign.START, now_s, self.reason) if why is None else self._fall(now_s, why)

    def _fall(self, now_s: float, how: str) -> list[Action]:
        if self._exhausted(now_s):
            often = f"{len(self._falls)} times within {self.rules.window_s:g} s"
            return self._apply(Sign.GIVE_UP, now_s, f"ended {often}, the last: {how}")
        actions = self._apply(Sign.FELL, now_s, how)
        pause_s = min(self.rules.first_s * 2 ** min(self._in_a_row, _DOUBLINGS), self.rules.max_s)
        self._in_a_row += 1
        self.next_start_s = now_s + pause_s * (1 - JITTER_RATIO * self._rng.random())
        return actions

    def _exhausted(self, now_s: float) -> bool:
        self._falls = [at_s for at_s in self._falls if now_s - at_s < self.rules.window_s]
        return len(self._falls) >= self.rules.give_up_after

    def _why_unfit(self) -> str:
        return "; ".join(unfit.reason for unfit in self._unfit.values())

    def _apply(self, sign: Sign, now_s: float, reason: str) -> list[Action]:
        after = TRANSITIONS.get((self.state, sign))
        if after is None:
            return []
        self.state, self.reason, self.since_s = after, reason, now_s
        self.next_start_s = None
        if after is ProcessState.RUNNING:
            return [Release()]
        if after is ProcessState.STARTING:
            self._answered = False
            self.spawns += 1
            return [Hold("starting"), Spawn()]
        return [Hold(reason)]
