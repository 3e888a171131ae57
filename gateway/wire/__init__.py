"""Bytes: strict HTTP/1.1 on both sides, bodies relayed verbatim, dialect errors."""
