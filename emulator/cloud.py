"""Ollama's cloud, as far as one Ollama decides about it: whose account it has, and whether it may be used at all."""

from __future__ import annotations

import base64
import hashlib
import socket
from pathlib import Path
from typing import Final
from urllib.parse import quote

from corral.emulator.dialects.base import JSON
from corral.emulator.text import to_json
from corral.emulator.wire import Exchange

_KEY: Final = Path(".ollama") / "id_ed25519.pub"
_UNAUTHORISED: Final = "unauthorized"
_DISABLED: Final = "ollama cloud is disabled: remote model is unavailable"


class CloudRefusal(Exception):
    """The cloud is not to be had. Every API shows it in the same shape: it is refused before anything is translated."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


class Cloud:
    """The account of one emulated Ollama."""

    def __init__(self, account: str, *, disabled: bool) -> None:
        self.account = account
        """Its name; empty: nobody is signed in."""
        self._disabled = disabled

    def check(self) -> None:
        """Raises CloudRefusal where a model of the cloud cannot be run."""
        if self._disabled:
            raise CloudRefusal(403, to_json({"error": _DISABLED}))
        if not self.account:
            raise CloudRefusal(401, self._unauthorised())

    def status(self, exchange: Exchange) -> None:
        shown = {"disabled": self._disabled, "source": "env" if self._disabled else "none"}
        exchange.answer(200, to_json({"cloud": shown}), JSON)

    def me(self, exchange: Exchange) -> None:
        if not self.account:
            exchange.answer(401, self._unauthorised(), JSON)
            return
        number = hashlib.md5(self.account.encode(), usedforsecurity=False).hexdigest()
        dashed = "-".join((number[:8], number[8:12], number[12:16], number[16:20], number[20:]))
        user = {"id": dashed, "email": f"{self.account}@localhost", "name": self.account, "plan": "free"}
        exchange.answer(200, to_json(user), JSON)

    def signout(self, exchange: Exchange) -> None:
        self.account = ""
        exchange.answer(200, b"null", JSON)

    def _unauthorised(self) -> bytes:
        key = base64.urlsafe_b64encode(b"ssh-ed25519 emulated").rstrip(b"=").decode()
        url = f"https://ollama.com/connect?name={quote(socket.gethostname())}&key={key}"
        return to_json({"error": _UNAUTHORISED, "signin_url": url})


def account_at(home: Path) -> str:
    """The account of that home: two homes with the same key have the same, as Ollama's do."""
    try:
        mark = (home / _KEY).read_bytes()
    except OSError:
        mark = str(home).encode()
    return f"user-{hashlib.sha256(mark).hexdigest()[:8]}"
