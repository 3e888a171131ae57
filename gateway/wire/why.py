"""Why a request went where it went, as a line of its response's head."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from corral.model import Prediction

_REASON_BYTES: Final = 80
_UNSEEN: Final = re.compile(rb"[^\x20-\x7e]+")


def why(reason: str, predicted: Prediction | None) -> bytes:
    """``least load; 0.42 s: prefill 0.11, decode 0.31``: with the seconds of this answer, where they were predicted."""
    return _visible(reason) if predicted is None else b"%b; %b" % (_visible(reason), _seconds(predicted))


def _seconds(predicted: Prediction) -> bytes:
    wait_s, prefill_s, decode_s = predicted.wait_s, predicted.prefill_s, predicted.decode_s
    wait = b"wait %.2f, " % wait_s if wait_s >= 0.005 else b""
    return b"%.2f s: %bprefill %.2f, decode %.2f" % (wait_s + prefill_s + decode_s, wait, prefill_s, decode_s)


@lru_cache(maxsize=256)
def _visible(reason: str) -> bytes:
    """A policy of the operator's own may say anything: here only what a header may hold, and not much of it."""
    return _UNSEEN.sub(b"?", reason.encode("ascii", "replace"))[:_REASON_BYTES].strip()
