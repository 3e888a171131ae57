"""Stands in for ``corral emulate`` where a test needs one that misbehaves. First argument: how."""

from __future__ import annotations

import signal
import sys
import time


def main(how: str) -> int:
    if how == "dies":
        sys.stderr.write("no such GPU: RTX 9999\n")
        return 3
    if how == "silent":
        sys.stdin.read()
        return 0
    if how == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdout.write("emulating\nlistening on http://127.0.0.1:21001\n")
    sys.stdout.flush()
    if how == "noisy":
        for _ in range(50_000):
            sys.stdout.write("a line of a log that nobody reads\n")
        sys.stdout.flush()
    sys.stdin.read()
    while how == "stubborn":
        time.sleep(1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
