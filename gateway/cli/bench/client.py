"""One address that is measured, and requests to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from corral.errors import OperatorError
from corral.gateway.cli.bench.answer import Answer, BadAnswer
from corral.gateway.cli.bench.record import Ending, Record

if TYPE_CHECKING:
    import aiohttp

SILENT_S: Final = 300.0
"""Who says nothing for so long has hung: a load and a queue take less."""
LONGEST_S: Final = 900.0
"""Of one request, whoever keeps saying something."""
CONNECT_S: Final = 10.0
_PAGE_S: Final = 10.0
_MOST_PAGE_BYTES: Final = 16 << 20
_SPEECH: Final = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "rain", "fall", "into", "this", "old", "town")
"""Words that are one token each, in every vocabulary that is in use."""

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Question:
    """What every request asks for."""

    model: str
    prompt_tokens: int
    output_tokens: int

    def body(self, rng: Random) -> dict[str, Any]:
        """No two begin alike: what is in a prompt cache would be measured instead."""
        words = " ".join([str(rng.randrange(10**9)), *rng.choices(_SPEECH, k=max(1, self.prompt_tokens - 8))])
        options = {"num_predict": self.output_tokens, "temperature": 0.8, "seed": rng.randrange(1 << 31)}
        return {"model": self.model, "prompt": words, "raw": True, "stream": True, "options": options}


class Target:
    """An address, with the connections to it. Close the session when done."""

    def __init__(self, url: str, session: aiohttp.ClientSession, clock: Clock) -> None:
        self.name = url
        """What it is called in the report."""
        self.url = url
        self._session = session
        self._clock = clock

    async def ask(self, question: Question, rng: Random, tenant: str | None = None) -> Record:
        """One request and its answer, to the end. Whatever goes wrong is in the record."""
        import aiohttp

        answer, sent_s = Answer(), self._clock()
        headers = {} if tenant is None else {"Authorization": f"Bearer {tenant}"}
        url, body = f"{self.url}/api/generate", question.body(rng)
        try:
            async with self._session.post(url, json=body, headers=headers, allow_redirects=False) as got:
                replica = got.headers.get("x-corral-replica")
                if got.status != 200:
                    return self._refused(got, sent_s)
                async for piece in got.content.iter_any():
                    answer.feed(piece, self._clock())
                answer.close(self._clock())
        except BadAnswer as error:
            return self._error(sent_s, str(error))
        except TimeoutError:
            return self._error(sent_s, "nothing came in time")
        except (aiohttp.ClientError, OSError) as error:
            return self._error(sent_s, _words(error))
        return Record(
            Ending.OK, sent_s, self._clock(), answer.first_s, answer.prompt_tokens, answer.output_tokens, replica
        )

    def _refused(self, got: aiohttp.ClientResponse, sent_s: float) -> Record:
        if got.status != 503:
            return self._error(sent_s, f"status {got.status}")
        return Record(
            Ending.REFUSED,
            sent_s,
            self._clock(),
            why="status 503",
            retry_after_s=retry_after(got.headers.get("Retry-After")),
        )

    def _error(self, sent_s: float, why: str) -> Record:
        return Record(Ending.ERROR, sent_s, self._clock(), why=why)

    # -- pages ----------------------------------------------------------------------------------------------------

    async def page(self, path: str) -> dict[str, Any]:
        """A small JSON object. Raises OperatorError."""
        import aiohttp

        try:
            async with asyncio.timeout(_PAGE_S):
                async with self._session.get(f"{self.url}{path}", allow_redirects=False) as got:
                    content = await got.content.read(_MOST_PAGE_BYTES)
                    while not got.content.at_eof() and len(content) < _MOST_PAGE_BYTES:
                        content += await got.content.read(_MOST_PAGE_BYTES)
                    status = got.status
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise OperatorError(f"{self.url} does not answer ({_words(error)})") from error
        found = _object(content)
        if status != 200 or found is None:
            raise OperatorError(f"{self.url}{path} answered {status}: is it a Corral, or an Ollama?")
        return found

    async def load(self, model: str) -> float:
        """Have the model in memory; the seconds that took. Raises OperatorError."""
        import aiohttp

        began_s, url = self._clock(), f"{self.url}/api/generate"
        try:
            body = {"model": model, "stream": False}
            async with self._session.post(url, json=body, allow_redirects=False) as got:
                content, status = await got.content.read(_MOST_PAGE_BYTES), got.status
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise OperatorError(f"{self.url} did not load {model} ({_words(error)})") from error
        if status != 200:
            said = str((_object(content) or {}).get("error", ""))[:200]
            raise OperatorError(f"{self.url} would not load {model}: {said or f'status {status}'}")
        return self._clock() - began_s


def retry_after(text: str | None) -> float | None:
    """Seconds; None where it is none, or a date."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < 1e6 else None


def is_loopback(url: str) -> bool:
    """Whether it is this machine for sure: of other names nobody knows where they lead."""
    host = urlsplit(url).hostname or ""
    parts = host.split(".")
    is_v4 = len(parts) == 4 and parts[0] == "127" and all(part.isdecimal() for part in parts)
    return host in ("localhost", "::1") or is_v4


def given_url(text: str, option: str) -> str:
    """``http://host:port`` of what a person may write. Raises OperatorError."""
    parts = None
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if parts is None or not host or parts.scheme not in ("http", "https") or parts.path.strip("/") or parts.query:
        raise OperatorError(f"{option} {text!r} is not an address; write for instance http://127.0.0.1:11434")
    shown = f"[{host}]" if ":" in host else host
    default = 443 if parts.scheme == "https" else 11434
    return f"{parts.scheme}://{shown}:{port or default}"


def _object(content: bytes) -> dict[str, Any] | None:
    import json

    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "nothing came in time"
    cause = getattr(error, "os_error", None) or error
    return getattr(cause, "strerror", None) or str(cause)[:120] or type(error).__name__
