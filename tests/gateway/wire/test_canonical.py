"""One context length for all requests of a model, and no other change to any body."""

from __future__ import annotations

import json
import sys

import pytest

from corral.gateway.wire.canonical import NumCtx, with_num_ctx
from corral.gateway.wire.fields import route_request
from corral.gateway.wire.routes import find_route

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CHAT = find_route(b"POST", "/api/chat")


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b'{"model":"m","options":{"num_ctx":1}}', b'{"model":"m","options":{"num_ctx":8192}}'),
        (b'{"model":"m"}', b'{"model":"m","options":{"num_ctx":8192}}'),
        (b'{"model":"m","options":null}', b'{"model":"m","options":{"num_ctx":8192}}'),
        (b'{"model":"m","options":{"num_ctx":"big"}}', b'{"model":"m","options":{"num_ctx":8192}}'),
        (
            b'{"model": "M:latest", "x": [1.50, "\\u00e4"], "options": {"seed": 1e3, "num_ctx": 1}, "z": 0}',
            b'{"model":"M:latest","x":[1.50, "\\u00e4"],"options":{"seed":1e3,"num_ctx":8192},"z":0}',
        ),
    ],
)
@pytest.mark.parametrize("num_ctx", [8192, {"m:latest": 8192}])
def test_the_context_length_is_replaced_or_added(body: bytes, wanted: bytes, num_ctx: NumCtx) -> None:
    changed = with_num_ctx(CHAT, body, num_ctx)
    assert changed == wanted
    assert route_request(CHAT, changed, b"", "t").signature == "num_ctx=8192"
    assert with_num_ctx(CHAT, changed, num_ctx) is changed


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "m", "options": {"num_ctx": 8192}}',
        b'{"model": "m", "options": {"num_ctx": 8192.0}}',
        b'{"options": {"num_ctx": 1}}',
        b'{"model": 5, "options": {"num_ctx": 1}}',
        b'{"model": "m", "options": [1]}',
        b'{"model": "big:cloud", "options": {"num_ctx": 1}}',
        b'["model"]',
        b'{"model": "m"} {}',
        b"{",
        b"",
        zstd.compress(b'{"model": "m", "options": {"num_ctx": 1}}'),
        b'{"model":"m","x":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_every_other_body_stays_as_it_is(body: bytes) -> None:
    assert with_num_ctx(CHAT, body, 8192) is body


@pytest.mark.parametrize(
    ("path", "num_ctx"),
    [("/api/chat", None), ("/api/chat", {"other:latest": 8192}), ("/v1/chat/completions", 8192), ("/api/pull", 8192)],
)
def test_where_it_is_not_wanted_or_cannot_be_said_no_body_is_changed(path: str, num_ctx: NumCtx) -> None:
    body = json.dumps({"model": "m", "options": {"num_ctx": 1}}).encode()
    assert with_num_ctx(find_route(b"POST", path), body, num_ctx) is body
