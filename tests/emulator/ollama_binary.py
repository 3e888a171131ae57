"""An executable named ``ollama`` for tests that start one: the emulator, under that name."""

from __future__ import annotations

from corral.emulator.standin import make_ollama

__all__ = ["make_ollama"]
