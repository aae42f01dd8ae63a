"""The parts of a Grafana dashboard in its JSON format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Json = dict[str, Any]
Kind = Literal["timeseries", "stat", "bargauge", "state-timeline", "heatmap", "table"]

_SCHEMA_VERSION = 39  # Grafana 10.3 and later. Later versions migrate the schema on loading
_WIDTH = 24
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Query:
    """A line, or a family of lines. `name` may contain {{label}}."""

    expr: str
    name: str = ""


def _mappings(words: dict[int, tuple[str, str]]) -> list[Json]:
    """Return Grafana's value mappings for texts and their colors."""
    told = {str(value): {"text": text, "color": colour} for value, (text, colour) in words.items()}
    return [{"type": "value", "options": told}]


@dataclass(frozen=True)
class Panel:
    """A panel.

    Attributes:
        warn, bad: thresholds for yellow and red. `falling`: small values are bad.
        words: texts for values.
        column_words: texts for values by the column of a table.
        plain: no value is good or bad.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    warn: float | None = None
    bad: float | None = None
    falling: bool = False
    least: float | None = 0
    most: float | None = None
    words: dict[int, tuple[str, str]] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    column_words: dict[str, dict[int, tuple[str, str]]] = field(default_factory=dict)
    plain: bool = False

    def json(self, number: int, x: int, y: int) -> Json:
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "targets": [self._target(index, query) for index, query in enumerate(self.queries)],
            "fieldConfig": {"defaults": self._defaults(), "overrides": self._overrides()},
            "options": self._options(),
            **({"transformations": self._columns()} if self.kind == "table" else {}),
        }

    def _target(self, index: int, query: Query) -> Json:
        target: Json = {
            "refId": chr(ord("A") + index),
            "datasource": DATASOURCE,
            "expr": query.expr,
            "legendFormat": query.name or "__auto",
        }
        if self.kind in {"stat", "bargauge", "table"}:
            target |= {"instant": True, "range": False}
        if self.kind in {"heatmap", "table"}:
            target["format"] = self.kind
        return target

    def _defaults(self) -> Json:
        colour = "thresholds" if self.kind in {"stat", "bargauge"} or self.words else "palette-classic"
        defaults: Json = {"unit": self.unit, "color": {"mode": colour}, "thresholds": self._thresholds()}
        defaults |= {name: bound for name, bound in (("min", self.least), ("max", self.most)) if bound is not None}
        if self.words:
            defaults["mappings"] = _mappings(self.words)
        if self.kind == "timeseries":
            defaults["custom"] = {
                "drawStyle": "line",
                "lineWidth": 1,
                "fillOpacity": 40 if self.stacked else 8,
                "showPoints": "never",
                "spanNulls": False,
                "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
                "thresholdsStyle": {"mode": "dashed" if self.warn is not None or self.bad is not None else "off"},
            }
        return defaults

    def _thresholds(self) -> Json:
        if self.plain:
            return {"mode": "absolute", "steps": [{"color": "text", "value": None}]}
        first, last = ("red", "green") if self.falling else ("green", "red")
        steps: list[Json] = [{"color": first, "value": None}]
        if self.falling and self.bad is not None:
            steps.append({"color": "yellow" if self.warn is not None else last, "value": self.bad})
            if self.warn is not None:
                steps.append({"color": last, "value": self.warn})
        elif not self.falling:
            steps += [{"color": "yellow", "value": self.warn}] if self.warn is not None else []
            steps += [{"color": last, "value": self.bad}] if self.bad is not None else []
        return {"mode": "absolute", "steps": steps}

    def _overrides(self) -> list[Json]:
        """Return the unit of columns with money."""
        return [
            {"matcher": {"id": "byName", "options": name}, "properties": self._properties(name)}
            for name in self.columns
            if name.endswith("USD")
        ]

    def _properties(self, column: str) -> list[Json]:
        words = self.column_words.get(column)
        mappings = [] if words is None else [{"id": "mappings", "value": _mappings(words)}]
        return [{"id": "unit", "value": "currencyUSD"}, *mappings]

    def _options(self) -> Json:
        match self.kind:
            case "timeseries":
                legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
                return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
            case "stat" | "bargauge":
                reduced = {"calcs": ["lastNotNull"], "fields": "", "values": False}
                shape = {"colorMode": "value", "graphMode": "none"} if self.kind == "stat" else {"displayMode": "lcd"}
                return {"reduceOptions": reduced, "orientation": "auto", **shape}
            case "state-timeline":
                return {"showValue": "never", "mergeValues": True, "legend": {"showLegend": False}}
            case "heatmap":
                return {"calculate": False, "yAxis": {"unit": self.unit}, "color": {"scheme": "Oranges", "steps": 64}}
            case "table":
                return {"showHeader": True, "sortBy": [{"displayName": self.columns[0], "desc": True}]}

    def _columns(self) -> list[Json]:
        """Return one row for each set of labels, with a column for each query."""
        named = {f"Value #{chr(ord('A') + index)}": name for index, name in enumerate(self.columns)}
        if len(self.queries) == 1:
            named = {"Value": self.columns[0]}
        return [
            {"id": "merge", "options": {}},
            {"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": named}},
        ]


@dataclass(frozen=True)
class Choice:
    """A variable of the dashboard: values of a label, or all."""

    label: str
    of: str

    def json(self) -> Json:
        query = f"label_values({self.of}, {self.label})"
        return {
            "name": self.label,
            "label": self.label,
            "type": "query",
            "datasource": DATASOURCE,
            "definition": query,
            "query": {"query": query, "refId": f"choice-{self.label}"},
            "refresh": 2,
            "sort": 1,
            "includeAll": True,
            "multi": True,
            "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]},
        }


@dataclass(frozen=True)
class Annotation:
    """Marks in the charts of all dashboards, at the times at which a query has a value."""

    name: str
    expr: str
    title: str
    text: str
    color: str

    def json(self) -> Json:
        return {
            "name": self.name,
            "enable": True,
            "hide": False,
            "iconColor": self.color,
            "datasource": DATASOURCE,
            "expr": self.expr,
            "step": "60s",
            "titleFormat": self.title,
            "textFormat": self.text,
        }


ANNOTATIONS = (
    Annotation(
        "Deployments",
        "count by (version) ((time() - max by (instance) (gkt_process_start_timestamp_seconds) < 90)"
        " * on (instance) group_left (version) max by (instance, version) (gkt_build_info))",
        "Gateways started",
        "Version {{version}}",
        "blue",
    ),
    Annotation(
        "Policy changes",
        "sum by (result) (increase(gkt_policy_reloads_total[90s])) > 0",
        "Policies {{result}}",
        "An edit of the policies folder was {{result}}.",
        "purple",
    ),
    Annotation(
        "Configuration changes",
        "sum by (result) (increase(gkt_config_reloads_total[90s])) > 0",
        "config.yaml {{result}}",
        "An edit of config.yaml was {{result}}.",
        "orange",
    ),
)


@dataclass(frozen=True)
class Dashboard:
    """A page of panels. A text among the panels starts a new row with that title."""

    uid: str
    title: str
    description: str
    choices: tuple[Choice, ...]
    panels: tuple[Panel | str, ...]

    def json(self) -> Json:
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["gkt"],
            "schemaVersion": _SCHEMA_VERSION,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-6h", "to": "now"},
            "timezone": "browser",
            "links": [{"type": "dashboards", "tags": ["gkt"], "title": "GKT", "asDropdown": True, "keepTime": True}],
            "templating": {"list": [_source(), *(choice.json() for choice in self.choices)]},
            "annotations": {"list": [annotation.json() for annotation in ANNOTATIONS]},
            "panels": self._placed(),
        }

    def _placed(self) -> list[Json]:
        """Return the panels with positions, from left to right and from top to bottom."""
        placed: list[Json] = []
        x = y = below = 0
        for number, panel in enumerate(self.panels, 1):
            if isinstance(panel, str):
                y, x = below, 0
                position = {"x": 0, "y": y, "w": _WIDTH, "h": 1}
                row = {
                    "id": number,
                    "type": "row",
                    "title": panel,
                    "collapsed": False,
                    "gridPos": position,
                    "panels": [],
                }
                placed.append(row)
                y = below = y + 1
                continue
            if x + panel.width > _WIDTH:
                x, y = 0, below
            placed.append(panel.json(number, x, y))
            x, below = x + panel.width, max(below, y + panel.height)
        return placed


def _source() -> Json:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "refresh": 1,
    }
