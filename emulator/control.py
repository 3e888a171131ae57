"""The routes under ``/emulator/`` that no Ollama has: order faults, read counters."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from corral.emulator.ask import Rejected, parse
from corral.emulator.dialects.base import JSON
from corral.emulator.dialects.native import error_body
from corral.emulator.faults import Faults, fault_from
from corral.emulator.inference import Counters
from corral.emulator.manage import ManageRoutes
from corral.emulator.rig import Rig
from corral.emulator.settings import Settings
from corral.emulator.store import Store
from corral.emulator.text import to_json
from corral.emulator.wire import Connection, Exchange
from corral.errors import OperatorError


class ControlRoutes:
    """``POST``, ``GET`` and ``DELETE /emulator/fault``; ``GET /emulator/stats``."""

    def __init__(
        self,
        settings: Settings,
        rig: Rig,
        store: Store,
        manage: ManageRoutes,
        faults: Faults,
        counters: Counters,
        connections: set[Connection],
    ) -> None:
        self._settings = settings
        self._rig = rig
        self._store = store
        self._manage = manage
        self._faults = faults
        self._counters = counters
        self._connections = connections

    def handle(self, exchange: Exchange) -> None:
        match exchange.method, exchange.path:
            case "POST", "/emulator/fault":
                self._order(exchange)
            case "DELETE", "/emulator/fault":
                self._faults.ordered.clear()
                exchange.answer(200, b'{"faults":[]}', JSON)
            case "GET", "/emulator/fault":
                self._list(exchange)
            case "GET", "/emulator/stats":
                exchange.answer(200, to_json(self.stats()), JSON)
            case _:
                exchange.answer(404, b"404 page not found", b"text/plain")

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
        machine, counters = self._rig.machine, self._counters
        return {
            "id": self._settings.id,
            "gpu": self._settings.gpu.name,
            "requests": counters.requests,
            "inferences": counters.inferences,
            "completed": counters.completed,
            "aborted": counters.aborted,
            "failed": counters.failed,
            "active_streams": self._rig.active_streams(),
            "pending": machine.pending,
            "waiting_for_slot": sum(len(runner.waiting) for runner in machine.runners.values()),
            "slots_held": sum(len(runner.active) for runner in machine.runners.values()),
            "max_concurrent": machine.max_active,
            "tokens": self._rig.tokens,
            "loads": machine.loads,
            "unloads": machine.unloads,
            "loaded": [runner.job.name for runner in machine.listed(self._rig.now())],
            "vram_used_bytes": machine.used_bytes(),
            "connections": len(self._connections),
            "pulls": self._manage.pulls,
            "races": self._store.shelf.races(),
            "faults_hit": sum(fault.hits for fault in self._faults.ordered),
        }
