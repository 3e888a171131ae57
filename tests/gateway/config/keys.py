"""The table of configuration keys, as docs/operations.md must show it."""

from __future__ import annotations

from collections.abc import Iterator

from corral.gateway.config.keys import keys


def rows() -> Iterator[str]:
    """One line of the table per key, in the order of the schema."""
    return (f"| `{key.path}` | {key.kind} | {key.default} | {key.meaning} |" for key in keys())
