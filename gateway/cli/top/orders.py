"""What a key may have done to a replica, how it is asked for, and what is said of it."""

from __future__ import annotations

from typing import Any, Final, NamedTuple
from urllib.parse import quote

import aiohttp

from corral.errors import OperatorError

LIMIT_S: Final = 5.0


class Order(NamedTuple):
    """``verb``: as the admin port knows it."""

    verb: str
    question: str
    told: str
    needs_process: bool = False
    """Only of a replica that Corral runs."""


ORDERS: Final = {
    "d": Order("drain", "Drain {id}? It gets no new requests{ends}.", "{id} is drained"),
    "r": Order("resume", "Resume {id}? It gets requests again.", "{id} takes requests again"),
    "R": Order("restart", "Restart the Ollama of {id}{ends}?", "{id} restarts", True),
    "x": Order("stop", "Stop the Ollama of {id}{ends}? Its GPU is free until it is started.", "{id} stops", True),
    "a": Order("start", "Start the Ollama of {id}?", "{id} starts", True),
}
"""By key."""


def problem(order: Order, replica: dict[str, Any]) -> str | None:
    """Why it cannot be done to this replica, as far as that can be told beforehand."""
    if order.needs_process and replica["process"] is None:
        return f"{replica['id']} is not run by Corral; whoever runs it can {order.verb} it"
    if order.verb == "drain" and not replica["enabled"]:
        return f"{replica['id']} is drained already"
    if order.verb == "resume" and replica["enabled"]:
        return f"{replica['id']} is not drained"
    return None


def question(order: Order, replica: dict[str, Any]) -> str:
    count = replica["in_flight"]
    running = "the one that runs finishes" if count == 1 else f"the {count} that run finish"
    if order.verb != "drain":
        running = f"after its {'one running request' if count == 1 else f'{count} running requests'}"
    ends = (f"; {running}" if order.verb == "drain" else f" {running}") if count else ""
    return order.question.format(id=replica["id"], ends=ends)


async def carry_out(session: aiohttp.ClientSession, admin: str, order: Order, replica_id: str) -> str:
    """What was done, for a person. Raises OperatorError where the gateway would not or could not."""
    url = f"{admin}/replicas/{quote(replica_id, safe='')}/{order.verb}"
    try:
        async with session.post(url, timeout=aiohttp.ClientTimeout(total=LIMIT_S)) as answer:
            page = await answer.json(content_type=None)
            if answer.status >= 300:
                raise OperatorError(str(page.get("error", answer.status) if isinstance(page, dict) else answer.status))
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        raise OperatorError(f"the gateway did not answer ({type(error).__name__})") from error
    return order.told.format(id=replica_id)
