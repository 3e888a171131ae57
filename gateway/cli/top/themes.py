"""The backgrounds that the palettes are made for, and where the parts stand on the screen."""

from __future__ import annotations

from typing import Final

from textual.theme import Theme

DARK_THEME: Final = Theme("corral-dark", primary="#6cb6e8", background="#101317", surface="#1b2027", dark=True)
LIGHT_THEME: Final = Theme("corral-light", primary="#0b62b0", background="#ffffff", surface="#f1f3f6", dark=False)
STYLES: Final = """
Screen { background: $background; layout: vertical; }
Static { height: 1; width: 1fr; text-wrap: nowrap; text-overflow: ellipsis; }
.ascii Static { text-overflow: clip; }
Panel { width: 1fr; }
#requests { height: 1fr; }
#filter { height: 1; border: none; padding: 0; display: none; background: $background; }
"""
