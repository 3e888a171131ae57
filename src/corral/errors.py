"""The errors of Corral: each says whose fault it is, what a client sees, and whether another replica may try."""

from __future__ import annotations

from enum import Enum


class Fault(Enum):
    """How one attempt on a replica failed before its first response byte reached the client."""

    CONNECT = "connect failed"
    """Nothing accepted the connection in time."""
    RESET = "connection lost"
    """The connection broke before an answer was complete enough to forward."""
    STALE = "idle connection was closed"
    """A reused keep-alive connection turned out to be closed: nobody's fault."""
    BUSY = "answered 503"
    CRASHED = "model runner crashed"
    """Ollama answered 500 and its text says that the model's runner died."""
    MALFORMED = "malformed answer"
    """What came back is not HTTP/1.1 as Ollama speaks it."""
    HUNG = "stopped answering"
    """The replica went down while the request waited for its first byte."""


class Refusal(Enum):
    """Why the gateway itself answers a request that it did not send, or could not get answered."""

    QUEUE_FULL = "queue full"
    WAITED_TOO_LONG = "waited too long"
    NO_REPLICA = "no replica can serve"
    EXHAUSTED = "every replica failed"
    """Each replica that could serve was tried once."""
    STOPPING = "gateway is stopping"


class CorralError(Exception):
    """Base of all errors Corral raises on purpose."""


class OperatorError(CorralError):
    """Something the person who runs Corral can mend. Printed without a traceback.

    ``str()`` is: what, where (file:line or key path), nearest known name, what to do.
    """

    exit_code = 1


class ConfigError(OperatorError):
    """The configuration cannot be used; exit code 78 (EX_CONFIG)."""

    exit_code = 78


class ClientError(CorralError):
    """The client's request is wrong: answered with ``status`` and the connection is closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class ReplicaError(CorralError):
    """A replica's answer is not valid HTTP/1.1: 502 before the first byte, never reused."""
