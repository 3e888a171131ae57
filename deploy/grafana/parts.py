"""What dashboards are made of, and how Grafana wants it written: what is the same in all of them stands here once.

A dashboard is rows of panels; a panel takes the next free place of its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

SCHEMA: Final = 39
"""Grafana 10.4 and later read it."""
WIDTH: Final = 24
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}

Json = dict[str, Any]


@dataclass(frozen=True)
class Query:
    """What is asked, and what each answer is called."""

    expr: str
    legend: str = ""
    table: bool = False


@dataclass(frozen=True)
class Panel:
    """One picture. ``steps``: (from this value on, colour), the first from the beginning."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    low: float | None = None
    high: float | None = None
    decimals: int | None = None
    steps: tuple[tuple[float | None, str], ...] = ()
    stack: bool = False
    words: tuple[tuple[str, str, str], ...] = ()
    """(value, text, colour)"""
    log: bool = False
    content: str = ""
    """Of a panel of text."""

    def json(self, number: int, x: int, y: int) -> Json:
        made: Json = {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
        }
        if self.kind == "text":
            return made | {"options": {"mode": "markdown", "content": self.content}}
        targets = [self._target(query, index) for index, query in enumerate(self.queries)]
        made |= {"datasource": SOURCE, "targets": targets, "fieldConfig": self._fields(), "options": self._options()}
        if any(query.table for query in self.queries):
            made["transformations"] = [{"id": "merge", "options": {}}]
        return made

    def _target(self, query: Query, index: int) -> Json:
        target: Json = {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": query.expr}
        if query.table:
            return target | {"instant": True, "range": False, "format": "table"}
        return target | {"legendFormat": query.legend or "__auto", "instant": False, "range": True}

    def _fields(self) -> Json:
        limits = {"min": self.low, "max": self.high, "decimals": self.decimals}
        steps = self.steps or ((None, "green" if self.kind == "stat" else "blue"),)
        defaults: Json = {
            "unit": self.unit,
            "color": {"mode": "thresholds" if self.kind != "timeseries" else "palette-classic"},
            "thresholds": {"mode": "absolute", "steps": [{"value": value, "color": color} for value, color in steps]},
            "mappings": self._mappings(),
            "custom": self._custom(),
            **{name: value for name, value in limits.items() if value is not None},
        }
        return {"defaults": defaults, "overrides": []}

    def _mappings(self) -> list[Json]:
        if not self.words:
            return []
        options = {
            value: {"text": text, "color": color, "index": n} for n, (value, text, color) in enumerate(self.words)
        }
        return [{"type": "value", "options": options}]

    def _custom(self) -> Json:
        if self.kind == "state-timeline":
            return {"fillOpacity": 80, "lineWidth": 0}
        if self.kind != "timeseries":
            return {}
        return {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 30 if self.stack else 8,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if self.stack else "none", "group": "A"},
            "scaleDistribution": {"type": "log", "log": 10} if self.log else {"type": "linear"},
            "thresholdsStyle": {"mode": "line" if self.steps else "off"},
        }

    def _options(self) -> Json:
        match self.kind:
            case "stat":
                last = {"calcs": ["lastNotNull"], "fields": "", "values": False}
                return {"reduceOptions": last, "colorMode": "value", "graphMode": "area", "textMode": "auto"}
            case "state-timeline":
                return {"mergeValues": True, "showValue": "never", "rowHeight": 0.8, "legend": {"showLegend": False}}
            case "table":
                return {"showHeader": True, "cellHeight": "sm"}
        legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
        return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """What a reader may choose at the top: values of one label."""

    name: str
    label: str
    query: str
    multi: bool = True

    def json(self) -> Json:
        return {
            "name": self.name,
            "label": self.label,
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": self.query, "refId": self.name},
            "refresh": 2,
            "sort": 3,
            "multi": self.multi,
            "includeAll": self.multi,
            "allValue": ".*" if self.multi else None,
            "current": {"selected": True, "text": "All", "value": "$__all"} if self.multi else {},
        }


@dataclass(frozen=True)
class Board:
    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = field(default=())

    def json(self) -> Json:
        source = {
            "name": "datasource",
            "label": "Prometheus",
            "type": "datasource",
            "query": "prometheus",
            "current": {},
        }
        instance = Variable("instance", "Gateway", "label_values(corral_build_info, instance)")
        links = [
            {
                "type": "dashboards",
                "tags": ["corral"],
                "title": "Corral",
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
            }
        ]
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["corral"],
            "schemaVersion": SCHEMA,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "15s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "browser",
            "links": links,
            "annotations": {"list": [_alerts()]},
            "templating": {"list": [source, instance.json(), *(variable.json() for variable in self.variables)]},
            "panels": placed(self.rows),
        }


def _alerts() -> Json:
    """Every alert that was raised, as a mark in all pictures."""
    return {
        "name": "Alerts",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{alertname=~"Corral.*",alertstate="firing",severity!="info"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{replica}} {{gpu}}",
    }


def placed(rows: Sequence[Row]) -> list[Json]:
    """The panels of each row from left to right; who does not fit goes into the next line."""
    made: list[Json] = []
    y = 0
    for row in rows:
        heading = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        made.append(
            {
                "id": len(made) + 1,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "panels": [],
                "gridPos": heading,
            }
        )
        y += 1
        x = tallest = 0
        for panel in row.panels:
            if x + panel.width > WIDTH:
                x, y, tallest = 0, y + tallest, 0
            made.append(panel.json(len(made) + 1, x, y))
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return made
