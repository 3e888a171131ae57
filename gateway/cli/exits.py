"""The exit codes, and what they mean."""

from __future__ import annotations

from typing import Final

from corral.errors import ConfigError, OperatorError

EXIT_USAGE: Final = 2
EXIT_BUG: Final = 70
EXIT_INTERRUPTED: Final = 130

EXITS: Final = {
    0: "Done; for `serve` and `demo`: stopped by a signal.",
    OperatorError.exit_code: "It could not be done, and the error says why: an address in use, no gateway there, no "
    "such replica. `corral doctor`: there are warnings.",
    EXIT_USAGE: "The command line is wrong. `corral doctor`: there are problems.",
    EXIT_BUG: "A bug in Corral; `--debug` shows where.",
    ConfigError.exit_code: "The configuration cannot be used.",
    EXIT_INTERRUPTED: "Interrupted before anything ran.",
}
