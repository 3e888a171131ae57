"""What must not be shown of a configuration: keys, passwords, and whatever an environment may hold."""

from __future__ import annotations

import re
from typing import Any, Final

MASK: Final = "***"
SHOWN: Final = ("CUDA_", "ROCR_", "HIP_", "HSA_", "OLLAMA_", "LLAMA_ARG_", "GGML_", "NO_PROXY", "no_proxy")
"""Variables of an Ollama's environment whose values are shown; any other is the operator's, and may be a secret."""
_SECRET: Final = re.compile(
    r"(^|[._-])(api-?key|key|token|secret|password|passwd|passphrase|credentials?|auth|authorization|cookie)([._-]|$)",
    re.IGNORECASE,
)
_CREDENTIALS: Final = re.compile(r"(?<=://)[^/\s]+(?=@)")


def masked(path: str, value: Any) -> Any:
    """``value`` as it may be shown at ``path``."""
    head, _, name = path.rpartition(".")
    if head.rpartition(".")[2] == "env" and not name.startswith(SHOWN):
        return MASK
    if isinstance(value, str | int) and not isinstance(value, bool) and _SECRET.search(name):
        return MASK
    return _plain(name, value)


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return _CREDENTIALS.sub(MASK, value)
    if isinstance(value, list):
        return [_plain(name, item) for item in value]
    if isinstance(value, dict):
        return {key: masked(key, item) for key, item in value.items()}
    return value
