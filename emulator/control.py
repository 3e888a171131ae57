"""The routes under ``/emulator/`` that no Ollama has: order faults, publish models, read counters, verify the store."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from corral.emulator.ask import Rejected, parse
from corral.emulator.dialects.base import JSON
from corral.emulator.dialects.native import error_body
from corral.emulator.faults import fault_from
from corral.emulator.pulling import Pulling
from corral.emulator.text import to_json
from corral.emulator.wire import Exchange
from corral.errors import OperatorError

if TYPE_CHECKING:
    from corral.emulator.app import App


class ControlRoutes:
    """Faults are ordered at ``/emulator/fault``, versions of models published at ``/emulator/publish``;
    ``GET /emulator/stats`` counts, ``GET /emulator/verify`` looks into the store."""

    def __init__(self, app: App, pulling: Pulling) -> None:
        self._app = app
        self._pulling = pulling
        self._faults = app.faults

    def handle(self, exchange: Exchange) -> None:
        match exchange.method, exchange.path:
            case "POST", "/emulator/fault":
                self._order(exchange)
            case "DELETE", "/emulator/fault":
                self._faults.ordered.clear()
                exchange.answer(200, b'{"faults":[]}', JSON)
            case "GET", "/emulator/fault":
                self._list(exchange)
            case "POST", "/emulator/publish":
                self._publish(exchange)
            case "GET", "/emulator/verify":
                exchange.answer(200, to_json(asdict(self._app.store.shelf.report())), JSON)
            case "GET", "/emulator/stats":
                exchange.answer(200, to_json(self.stats()), JSON)
            case _:
                exchange.answer(404, b"404 page not found", b"text/plain")

    def _publish(self, exchange: Exchange) -> None:
        try:
            published = self._app.registry.publish(parse(exchange.body))
        except (Rejected, OperatorError) as error:
            exchange.answer(400, error_body(str(error)), JSON)
            return
        exchange.answer(200, to_json({"published": published}), JSON)

    def _order(self, exchange: Exchange) -> None:
        try:
            self._faults.ordered.append(fault_from(parse(exchange.body)))
        except (Rejected, OperatorError) as error:
            exchange.answer(400, error_body(str(error)), JSON)
            return
        self._list(exchange)

    def _list(self, exchange: Exchange) -> None:
        exchange.answer(200, to_json({"faults": [asdict(fault) for fault in self._faults.ordered]}), JSON)

    def stats(self) -> dict[str, Any]:
        app, machine, counters = self._app, self._app.rig.machine, self._app.counters
        return {
            "id": app.settings.id,
            "gpu": app.settings.gpu.name,
            "requests": counters.requests,
            "inferences": counters.inferences,
            "completed": counters.completed,
            "aborted": counters.aborted,
            "failed": counters.failed,
            "cloud": counters.cloud,
            "search_chats": counters.search_chats,
            "active_streams": app.rig.active_streams(),
            "pending": machine.pending,
            "waiting_for_slot": sum(len(runner.waiting) for runner in machine.runners.values()),
            "slots_held": sum(len(runner.active) for runner in machine.runners.values()),
            "max_concurrent": machine.max_active,
            "tokens": app.rig.tokens,
            "loads": machine.loads,
            "unloads": machine.unloads,
            "loaded": [runner.job.name for runner in machine.listed(app.rig.now())],
            "vram_used_bytes": machine.used_bytes(),
            "connections": len(app.connections),
            "pulls": self._pulling.pulls,
            "downloads": dict(app.downloads.begun),
            "races": app.store.shelf.races(),
            "faults_hit": sum(fault.hits for fault in self._faults.ordered),
        }
