"""The states of a replica's process: how one becomes another, and what can be asked of whoever keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from corral.model import ProcessState


class Sign(Enum):
    """A conclusion from what happened."""

    START = auto()
    """It is to run, and may."""
    READY = auto()
    """It answers, and its models are loaded."""
    STOP = auto()
    """It is to end."""
    GONE = auto()
    """It ended, and shall not or cannot run now."""
    FELL = auto()
    """It ended by itself, or did not come up; it is tried again."""
    GIVE_UP = auto()
    """The same, once too often."""


_S = ProcessState
TRANSITIONS: dict[tuple[ProcessState, Sign], ProcessState] = {
    (_S.STARTING, Sign.READY): _S.RUNNING,
    (_S.STARTING, Sign.STOP): _S.STOPPING,
    (_S.STARTING, Sign.FELL): _S.BACKING_OFF,
    (_S.STARTING, Sign.GIVE_UP): _S.FAILED,
    (_S.RUNNING, Sign.STOP): _S.STOPPING,
    (_S.RUNNING, Sign.FELL): _S.BACKING_OFF,
    (_S.RUNNING, Sign.GIVE_UP): _S.FAILED,
    (_S.BACKING_OFF, Sign.START): _S.STARTING,
    (_S.BACKING_OFF, Sign.GONE): _S.STOPPED,
    (_S.STOPPING, Sign.START): _S.STARTING,
    (_S.STOPPING, Sign.GONE): _S.STOPPED,
    (_S.STOPPING, Sign.FELL): _S.BACKING_OFF,
    (_S.STOPPING, Sign.GIVE_UP): _S.FAILED,
    (_S.STOPPED, Sign.START): _S.STARTING,
    (_S.STOPPED, Sign.READY): _S.RUNNING,  # adopted
    (_S.FAILED, Sign.START): _S.STARTING,
    (_S.FAILED, Sign.GONE): _S.STOPPED,
}


@dataclass(frozen=True, slots=True)
class Hold:
    """No new requests for it, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Release:
    """It takes requests again."""


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start its process. A failure to do so is reported as its end."""


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Load its models, then report :meth:`ProcessRecord.warm`."""


@dataclass(frozen=True, slots=True)
class Terminate:
    """Ask all its processes to end."""


@dataclass(frozen=True, slots=True)
class Kill:
    """End all its processes by force."""


Action = Hold | Release | Spawn | WarmUp | Terminate | Kill
