"""The pages the gateway answers itself: what Ollama would say if all replicas were one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from corral.gateway.serve.views import ReplicaPages, lowest_version, merge_ps, merge_tags, openai_model, openai_models
from corral.gateway.wire.answering import Answering
from corral.gateway.wire.dialect import Dialect, error_body
from corral.gateway.wire.request_head import RequestHead
from corral.gateway.wire.routes import Route, View
from corral.gateway.wire.upload import Upload
from corral.model import Health

if TYPE_CHECKING:
    from corral.gateway.gateway import Gateway

_JSON: Final = b"application/json; charset=utf-8"
_TEXT: Final = b"text/plain; charset=utf-8"
_REFRESH_S: Final = 0.5
"""How long a page waits for fresh readings; a replica that takes longer appears with its last one."""

_NONE_SERVES: Final = "no replica can serve this request now: all are down, drained or starting"


async def page(gateway: Gateway, answering: Answering, upload: Upload | None = None) -> None:
    """Make the page that is asked for."""
    answering.is_page = True
    if gateway.poller is None:
        return
    view = answering.route.view
    if view in (View.TAGS, View.PS, View.MODELS, View.MODEL):
        await gateway.poller.refresh(tags=view is not View.PS, ps=view is View.PS, deadline_s=_REFRESH_S)
    answering.whole(*_content(gateway, answering.route, answering.head))


def _content(gateway: Gateway, route: Route, head: RequestHead) -> tuple[int, bytes, bytes]:
    if route.view is View.ROOT:
        return 200, b"Ollama is running", _TEXT
    pages = _pages(gateway)
    if route.view is View.VERSION:
        return _version(pages, waited_for=any(state.health is Health.UNKNOWN for state in gateway.snapshot().replicas))
    if not any(page.version is not None or page.tags is not None for page in pages):
        return 503, error_body(route.dialect, 503, _NONE_SERVES), _JSON
    if route.view is View.TAGS:
        return 200, merge_tags(pages), _JSON
    if route.view is View.PS:
        return 200, merge_ps(pages), _JSON
    if route.view is View.MODELS:
        return 200, openai_models(pages), _JSON
    return _model(pages, head.path.removeprefix("/v1/models/"))


def _model(pages: list[ReplicaPages], name: str) -> tuple[int, bytes, bytes]:
    body = openai_model(pages, name)
    if body is not None:
        return 200, body, _JSON
    return 404, error_body(Dialect.OPENAI, 404, f"model '{name}' not found"), _JSON


def _version(pages: list[ReplicaPages], *, waited_for: bool) -> tuple[int, bytes, bytes]:
    lowest = lowest_version(page.version for page in pages if page.version is not None)
    if lowest is None:
        message = "no replica has answered yet" if waited_for else _NONE_SERVES
        return 503, error_body(Dialect.NATIVE, 503, message), _JSON
    return 200, b'{"version":"%b"}' % lowest.encode(), _JSON


def _pages(gateway: Gateway) -> list[ReplicaPages]:
    """The last readings of every replica that requests may be sent to."""
    assert gateway.poller is not None
    return [gateway.poller.pages(replica.id) for replica in gateway.carrier.scheduler.usable()]
