"""``corral`` and ``python -m corral``."""

from __future__ import annotations

from corral.gateway.cli.entry import main

if __name__ == "__main__":
    main()
