"""Work that may hang, on a thread that nobody waits for at the end of the program."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_T = TypeVar("_T")


async def on_own_thread(work: Callable[[], _T], name: str) -> _T:
    """Run ``work`` on a thread of its own and return what it returns, or raise what it raises.

    A pool would keep what the work set on its thread for others, and would be waited for when the program ends.
    """
    done: Future[_T] = Future()

    def run() -> None:
        if not done.set_running_or_notify_cancel():
            return
        try:
            result = work()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await asyncio.wrap_future(done)
