"""The files of the Helm chart, read once, and the values of a release as Helm merges them."""

from __future__ import annotations

import json
from typing import Any

from deploy.check import documents
from tests.deploy.written import DEPLOY

CHART = DEPLOY / "helm" / "gkt-gateway"
(VALUES,) = documents(CHART / "values.yaml")
SCHEMA = json.loads((CHART / "values.schema.json").read_text("utf-8"))
VALUE_FILES = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}


def merged(*layers: Any) -> Any:
    """Merge maps as Helm does: null removes a key, and other values replace it."""
    result: Any = {}
    for layer in layers:
        for key, value in layer.items():
            if value is None:
                result.pop(key, None)
            else:
                both = isinstance(value, dict) and isinstance(result.get(key), dict)
                result[key] = merged(result[key], value) if both else value
    return result
