"""A page of the manual: its parts, and how they are written for ``man`` and for those who have no ``man``."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

WIDTH: Final = 78
DATE: Final = "2026-11-25"
"""``man`` wants one; one of the day would change every page every day."""
_INDENT: Final = "    "
_CODE: Final = re.compile(r"`([^`]*)`")


@dataclass(frozen=True, slots=True)
class Prose:
    """A paragraph. What a person would type stands between backquotes."""

    text: str


@dataclass(frozen=True, slots=True)
class Literal:
    """Lines that stay as they are."""

    text: str


@dataclass(frozen=True, slots=True)
class Item:
    """A word or an option, and what it means."""

    term: str
    text: str


Block = Prose | Literal | Item


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """``name(number)``."""

    name: str
    number: int
    version: str
    summary: str
    sections: tuple[Section, ...]

    @property
    def file_name(self) -> str:
        return f"{self.name}.{self.number}"


def to_roff(page: Page) -> str:
    """The page as ``man`` reads it."""
    lines = [
        f'.TH "{_plain(page.name.upper())}" "{page.number}" "{DATE}" "Corral {_plain(page.version)}" "Corral"',
        ".SH NAME",
        f"{_plain(page.name)} \\- {_inline(page.summary)}",
    ]
    for section in page.sections:
        lines.append(f".SH {_plain(section.title)}")
        lines += (line for number, block in enumerate(section.blocks) for line in _block(block, is_first=number == 0))
    return "\n".join(lines) + "\n"


def _block(block: Block, *, is_first: bool) -> Iterator[str]:
    if isinstance(block, Item):
        yield ".TP"
        yield f"\\fB{_plain(block.term)}\\fP"
        yield _inline(block.text)
        return
    if not is_first:
        yield ".PP"
    if isinstance(block, Prose):
        yield _inline(block.text)
        return
    yield from (".nf", *(_line(_plain(line)) for line in block.text.splitlines()), ".fi")


def _inline(text: str) -> str:
    """One line of prose, what is between backquotes in bold."""
    parts = _CODE.split(" ".join(text.split()))
    return _line("".join(f"\\fB{_plain(part)}\\fP" if odd % 2 else _plain(part) for odd, part in enumerate(parts)))


def _plain(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")


def _line(text: str) -> str:
    """Nothing at its beginning is a request."""
    return f"\\&{text}" if text.startswith((".", "'")) else text


def to_text(page: Page, width: int = WIDTH) -> str:
    """The page for whoever has no ``man``, or reads it through a pipe."""
    lines = ["NAME", f"{_INDENT}{page.name} - {page.summary.replace('`', '')}"]
    for section in page.sections:
        lines += ["", section.title]
        for number, block in enumerate(section.blocks):
            lines += ([""] if number else []) + _text_block(block, width)
    return "\n".join(lines) + "\n"


def _text_block(block: Block, width: int) -> list[str]:
    if isinstance(block, Literal):
        return [f"{_INDENT}{line}".rstrip() for line in block.text.splitlines()]
    if isinstance(block, Prose):
        return _wrapped(block.text, _INDENT, width)
    return [f"{_INDENT}{block.term}", *_wrapped(block.text, _INDENT * 2, width)]


def _wrapped(text: str, indent: str, width: int) -> list[str]:
    plain = " ".join(text.replace("`", "").split())
    return textwrap.wrap(plain, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
