"""``corral man``: the manual, without installing it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from tempfile import NamedTemporaryFile

import click

from corral.errors import OperatorError
from corral.gateway.cli.completion import complete_page
from corral.gateway.cli.options import debug_option
from corral.gateway.cli.roff import Page, to_roff, to_text


@click.command()
@click.argument("words", metavar="[PAGE]...", nargs=-1, shell_complete=complete_page)
@click.option(
    "--write",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write all pages below DIR, to man1/ and man5/, instead of showing one.",
)
@debug_option
def man(words: Sequence[str], folder: Path | None) -> int:
    """Show a page of the manual: of corral itself, of one of its commands, or of its configuration.

    On a terminal it is shown by `man`, where that is installed; else as plain text. The pages are made of what
    `--help` says and of the descriptions of the configuration's keys.

    \b
    Examples:
      corral man
      corral man models pull
      corral man corral.yaml
      corral man --write ~/.local/share/man && man corral-serve
    """
    pages = all_pages()
    if folder is not None:
        write(pages, folder)
        click.echo(f"wrote {len(pages)} pages below {folder}")
        return 0
    page = _chosen(pages, words)
    if not (sys.stdout.isatty() and _shown_by_man(page)):
        click.echo(to_text(page), nl=False)
    return 0


def all_pages() -> list[Page]:
    from corral.gateway.cli.manual import command_pages, config_page
    from corral.gateway.cli.table import corral

    return [*command_pages(corral), config_page()]


def write(pages: Sequence[Page], folder: Path) -> None:
    """Below ``folder``, as ``man`` looks for them. Raises OperatorError."""
    try:
        for page in pages:
            path = folder / f"man{page.number}" / page.file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(to_roff(page), encoding="utf-8")
    except OSError as error:
        raise OperatorError(f"{error.filename}: cannot be written: {error.strerror}") from error


def _chosen(pages: Sequence[Page], words: Sequence[str]) -> Page:
    """The one that ``models pull``, ``corral-models-pull`` or ``corral.yaml`` names."""
    by_name = {page.name: page for page in pages}
    wanted = "-".join(words).lower() or "corral"
    for name in (wanted, f"corral-{wanted}"):
        if name in by_name:
            return by_name[name]
    near = get_close_matches(f"corral-{wanted}", by_name, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(by_name)}"
    raise click.UsageError(f"no page {' '.join(words)!r}; {hint}", click.get_current_context())


def _shown_by_man(page: Page) -> bool:
    """Whether ``man`` is there and showed it."""
    program = shutil.which("man")
    if program is None:
        return False
    with NamedTemporaryFile("w", suffix=f".{page.number}", encoding="utf-8") as file:
        file.write(to_roff(page))
        file.flush()
        return subprocess.run([program, "-l", file.name], stderr=subprocess.DEVNULL, check=False).returncode == 0
