"""Writes the dashboards: `python deploy/grafana/build.py`; `--check` only says whether they are as they would be."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from classes import CLASSES
from fleet import FLEET
from gpu import GPU
from model import MODEL

FOLDER: Final = Path(__file__).parent / "dashboards"


def files() -> dict[Path, str]:
    """Each dashboard's file and its text."""
    boards = (FLEET, GPU, MODEL, CLASSES)
    return {FOLDER / f"{board.uid}.json": json.dumps(board.json(), indent=2) + "\n" for board in boards}


def main(arguments: Sequence[str]) -> int:
    wrong = {path: text for path, text in files().items() if not path.exists() or path.read_text() != text}
    if "--check" in arguments:
        sys.stdout.write("".join(f"{path.name} is not as build.py would write it\n" for path in wrong))
        return 1 if wrong else 0
    FOLDER.mkdir(exist_ok=True)
    for path, text in wrong.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
