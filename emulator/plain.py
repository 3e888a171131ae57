"""Routes whose answer is always the same."""

from __future__ import annotations

from corral.emulator.dialects.base import JSON
from corral.emulator.dialects.native import error_body
from corral.emulator.text import to_json
from corral.emulator.wire import Exchange

_TEXT = b"text/plain; charset=utf-8"


def root(exchange: Exchange) -> None:
    exchange.answer(200, b"Ollama is running", _TEXT)


def version(exchange: Exchange, number: str) -> None:
    exchange.answer(200, to_json({"version": number}), JSON)


def recommendations(exchange: Exchange) -> None:
    exchange.answer(200, b'{"recommendations":[]}', JSON)


def unreachable(exchange: Exchange) -> None:
    exchange.answer(502, error_body("ollama.com is not reachable from the emulator"), JSON)
