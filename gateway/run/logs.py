"""The files that take what the Ollamas print: kept small while they are written, and read from their end."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_TAIL_BYTES: Final = 64 << 10
_MAX_LINE: Final = 300
_MAX_SAID: Final = 1500
_LAST_WORDS: Final = 5
_SECRETIVE: Final = re.compile(r'msg="server config"')
"""Ollama prints its environment at its start, proxies with their passwords included."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]+")


def rotate(path: Path, max_bytes: int, files: int) -> bool:
    """Move what is in ``path`` to ``path.1``, and so on, if it is larger than ``max_bytes``; returns whether it was.

    The file is copied and emptied in place, because its writer holds it open (and appends, so it goes on at the new
    end); what it writes between the two is lost. Raises OSError, but empties the file even if no copy can be made.
    """
    try:
        if path.stat().st_size <= max_bytes:
            return False
    except FileNotFoundError:
        return False
    try:
        for number in range(files - 1, 0, -1):
            older = _numbered(path, number)
            if older.exists():
                older.replace(_numbered(path, number + 1))
        shutil.copyfile(path, _numbered(path, 1))
        os.chmod(_numbered(path, 1), 0o600)
    finally:
        os.truncate(path, 0)
    return True


def drop_beyond(path: Path, files: int) -> None:
    """Delete rotated logs above ``files``, which an earlier configuration kept."""
    for other in path.parent.glob(f"{path.name}.*"):
        number = other.name.removeprefix(f"{path.name}.")
        if number.isdigit() and int(number) > files:
            other.unlink(missing_ok=True)


def size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def last_lines(path: Path, count: int, since: int = 0) -> list[str]:
    """The last lines, the oldest first, each cut to a bearable length; of those from byte ``since`` on, if there are
    so many. Reads only the end of the file; a file that cannot be read has no lines."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            begin = since if since <= end else 0  # smaller than it was: it has been rotated
            file.seek(max(begin, end - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return []
    return [line[:_MAX_LINE] for line in text.splitlines() if line.strip()][-count:]


def last_words(path: Path, env: Mapping[str, str], since: int = 0) -> str:
    """What it said before it ended, in one line that holds no prompt and no secret; may be empty."""
    if _tells_prompts(env):
        return ""
    lines = [line for line in last_lines(path, _LAST_WORDS, since) if not _SECRETIVE.search(line)]
    return _CONTROL.sub(" ", " | ".join(lines)).replace('"', "'")[-_MAX_SAID:]


def _tells_prompts(env: Mapping[str, str]) -> bool:
    """Whether an Ollama with this environment logs what it is asked."""
    if env.get("OLLAMA_DEBUG_LOG_REQUESTS", "").strip(" \"'").lower() not in ("", "0", "f", "false"):
        return True
    level = env.get("OLLAMA_DEBUG", "").strip(" \"'")
    verbose = any(env.get(name) for name in ("LLAMA_LOG_VERBOSITY", "LLAMA_ARG_LOG_VERBOSITY", "LLAMA_ARG_VERBOSE"))
    return verbose or (level.isdigit() and int(level) >= 2)


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")
