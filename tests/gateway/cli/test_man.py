"""The manual: what is committed is what the code says, and ``man`` can read it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from corral.gateway.cli.entry import run
from corral.gateway.cli.exits import EXITS
from corral.gateway.cli.man import all_pages
from corral.gateway.cli.roff import Item, Literal, Page, Prose, Section, to_roff, to_text
from corral.gateway.cli.table import COMMANDS
from corral.gateway.config.keys import keys
from tests.gateway.cli.shell import corral
from tests.gateway.cli.test_operations_page import table

FOLDER = Path(__file__).parents[3] / "docs" / "man"
PAGES = all_pages()


def test_what_is_committed_is_what_the_code_says() -> None:
    """`corral man --write docs/man` brings it up to date."""
    made = {f"man{page.number}/{page.file_name}": to_roff(page) for page in PAGES}
    found = {str(path.relative_to(FOLDER)): path.read_text() for path in FOLDER.rglob("*.*")}
    assert sorted(found) == sorted(made)
    assert [name for name in made if found[name] != made[name]] == []


def test_there_is_a_page_for_every_command_and_every_key() -> None:
    by_name = {page.name: page for page in PAGES}
    assert {f"corral-{name}" for name in COMMANDS} | {"corral", "corral-models-pull", "corral.yaml"} <= set(by_name)
    items = [
        block.term for section in by_name["corral.yaml"].sections for block in section.blocks if isinstance(block, Item)
    ]
    assert items == [key.path for key in keys()]


def test_mandoc_has_nothing_to_complain_about() -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("needs the Debian package mandoc")
    files = sorted(FOLDER.rglob("*.[15]"))
    child = subprocess.run(["mandoc", "-Tlint", "-Wwarning", *files], capture_output=True, text=True, timeout=60)
    assert (child.stdout, child.returncode) == ("", 0)


def test_exit_codes_are_those_of_the_operations_page() -> None:
    assert table("Exit codes") == [f"| {code} | {meaning} |" for code, meaning in EXITS.items()]


PAGE = Page(
    "x",
    1,
    "1.0",
    "does it",
    (
        Section("TEXT", (Prose("Say `a-b` or\nc."), Literal(".begins with a dot\n  back\\slash"), Prose("'quoted"))),
        Section("MORE", (Item("--flag NAME", "What\nit does."),)),
    ),
)


def test_nothing_in_a_text_is_taken_for_a_command_of_roff() -> None:
    assert to_roff(PAGE).splitlines()[1:] == [
        ".SH NAME",
        "x \\- does it",
        ".SH TEXT",
        "Say \\fBa\\-b\\fP or c.",
        ".PP",
        ".nf",
        "\\&.begins with a dot",
        "  back\\eslash",
        ".fi",
        ".PP",
        "\\&'quoted",
        ".SH MORE",
        ".TP",
        "\\fB\\-\\-flag NAME\\fP",
        "What it does.",
    ]


def test_as_plain_text_it_keeps_what_is_literal_and_wraps_the_rest() -> None:
    assert to_text(PAGE, 20).splitlines() == [
        *("NAME", "    x - does it", "", "TEXT", "    Say a-b or c.", ""),
        *("    .begins with a dot", "      back\\slash", "", "    'quoted", ""),
        *("MORE", "    --flag NAME", "        What it", "        does."),
    ]


@pytest.mark.parametrize(
    ("words", "title"),
    [
        ((), "corral"),
        (("serve",), "corral-serve"),
        (("models", "pull"), "corral-models-pull"),
        (("corral-drain",), "corral-drain"),
        (("corral.yaml",), "corral.yaml"),
    ],
)
def test_a_page_is_found_by_the_words_of_its_command(
    words: tuple[str, ...], title: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["man", *words]) == 0
    out, err = capsys.readouterr()
    assert (out.splitlines()[1].partition(" - ")[0], err) == (f"    {title}", "")


def test_a_page_that_is_not_there_is_said_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["man", "model", "pul"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "did you mean 'corral-models-pull'?" in err


async def test_man_finds_the_pages_where_they_are_written(tmp_path: Path) -> None:
    ended = await corral("man", "--write", str(tmp_path))
    assert re.fullmatch(rf"wrote {len(PAGES)} pages below {re.escape(str(tmp_path))}\n", ended.out)
    if shutil.which("man") is None:
        pytest.skip("needs the Debian package man-db")
    env = {**os.environ, "MANPATH": str(tmp_path), "MANPAGER": "cat", "LC_ALL": "C.UTF-8"}
    child = subprocess.run(["man", "corral-models-gc"], capture_output=True, text=True, env=env, timeout=60)
    assert "corral models gc --yes" in child.stdout, child.stderr
