"""Parts of the gathering, each on its own thread and under a deadline: one that hangs or fails loses only itself."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class Part(Generic[T]):
    """One thing to find out; begins at once."""

    def __init__(self, what: str, work: Callable[[], T], deadline_s: float) -> None:
        self.what = what
        self.fault: str | None = None
        """Why there is no result, once :meth:`result` has said so."""
        self.is_late = False
        """It had not ended at its deadline."""
        self._work = work
        self._ends_s = time.monotonic() + deadline_s
        self._deadline_s = deadline_s
        self._result: T | None = None
        # A daemon: what hangs in a driver or on a network disk does not keep the doctor from ending.
        self._thread = threading.Thread(target=self._run, name=f"doctor {what}", daemon=True)
        self._thread.start()

    def result(self) -> T | None:
        """Waits for it until its deadline."""
        self._thread.join(max(0.0, self._ends_s - time.monotonic()))
        if self._thread.is_alive():
            self.is_late = True
            self.fault = f"{self.what}: no answer within {self._deadline_s:g} s"
            return None
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._work()
        except Exception as error:  # whatever is wrong with a machine, the doctor looks on
            self.fault = f"{self.what}: {getattr(error, 'strerror', None) or str(error) or type(error).__name__}"
            log.debug("not_gathered what=%s", self.what, exc_info=True)
