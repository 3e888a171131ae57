"""Who asks: what requests of one client have in common, for taking turns."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

_DUMMIES: Final = frozenset(
    {b"", b"ollama", b"sk-no-key-required", b"no-key-required", b"no-key", b"not-needed", b"none", b"dummy", b"empty"}
)
"""What clients send whose library insists on a key: it tells nobody apart."""


def tenant_of(api_key: bytes, address: str, secret: bytes) -> str:
    """A digest of the client's key under the gateway's own ``secret``, from which no key can be guessed; or else its
    address.
    """
    if not api_key or api_key.lower() in _DUMMIES:
        return address
    return f"key:{blake2b(api_key, digest_size=6, key=secret).hexdigest()}"
