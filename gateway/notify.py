"""What systemd is told of the gateway: that it serves, reloads or stops, what it does, and that its event loop turns.

The protocol is datagrams of ``NAME=value`` lines to the socket that ``NOTIFY_SOCKET`` names (sd_notify(3)).
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Final

_STATUS_S: Final = 5.0
"""How often the status line is made anew where no watchdog asks for more."""
_MARGIN_S: Final = 60.0
"""What is granted beyond the time to drain: for the Ollamas to end, and for a slow machine."""


class Notifier:
    """Speaks to the service manager; to nobody where there is none."""

    def __init__(self, address: str | None = None, watchdog_s: float | None = None) -> None:
        self._address = address
        self._watchdog_s = watchdog_s
        self._told = ""
        self._beat: asyncio.TimerHandle | None = None

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Notifier:
        """Takes what the service manager says to this process out of ``environ``: its children have no say there."""
        address, usec, pid = (environ.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"))
        if address[:1] not in ("/", "@"):
            return cls()
        is_watched = usec.isdecimal() and int(usec) > 0 and pid in ("", str(os.getpid()))
        return cls(address, int(usec) / 1e6 if is_watched else None)

    def ready(self) -> None:
        self._tell("READY=1")

    @asynccontextmanager
    async def reloading(self) -> AsyncIterator[None]:
        """While the configuration is read again; it is ready again whatever comes of that."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            self._tell("READY=1")

    def stopping(self, within_s: float) -> None:
        """It may take ``within_s`` and a little more, whatever the unit says."""
        self._tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int((within_s + _MARGIN_S) * 1e6)}")

    def keep_watch(self, loop: asyncio.AbstractEventLoop, status: Callable[[], str]) -> None:
        """From now on say in good time that the loop turns, which only a loop that turns can, and what it does."""
        if self._address is None:
            return
        every_s = min(_STATUS_S, (self._watchdog_s or _STATUS_S * 2) / 2)

        def beat() -> None:
            lines = ["WATCHDOG=1"] if self._watchdog_s else []
            self._beat = loop.call_later(every_s, beat)
            try:
                said = status()
                lines += [f"STATUS={said}"] if said != self._told else []
                self._told = said
            finally:  # a loop turns that cannot tell what it does
                self._tell(*lines)

        beat()

    def end_watch(self) -> None:
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None

    def _tell(self, *lines: str) -> None:
        """Whether anybody listens is not the gateway's business: it serves on."""
        if self._address is None or not lines:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as speaker:
                speaker.setblocking(False)
                speaker.sendto("\n".join(lines).encode(), address)
        except OSError:
            pass
