"""JSON Schemas of config.yaml, policy files, projections and engines' curves, for editors: from what checks the files.

They know every key, its type, bounds, default and meaning, as YAML spells them. What depends on two places at once
(`gkt-gateway check` knows) they leave out. In one thing they are stricter: a key without a value is a mistake there.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr
from pydantic.json_schema import GenerateJsonSchema

from gateway.config.limits import BudgetDuration
from gateway.config.settings import Settings
from gateway.config.yaml_source import StrictModel
from gateway.planning.curve import Curve
from gateway.policy.projection_shapes import ProjectionRule
from gateway.policy.schema import TenantPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import core_schema

SHAPES: Mapping[str, type[StrictModel]] = {
    "config": Settings,
    "policy": TenantPolicy,
    "projection": ProjectionRule,
    "curve": Curve,
}
"""What there is a schema of, by the name that `gkt-gateway schema` has for it."""

_TITLES = {
    "config": "GKT Gateway: config.yaml",
    "policy": "GKT Gateway: a tenant's policy",
    "projection": "GKT Gateway: a projection",
    "curve": "GKT Gateway: an engine's curve",
}
# Draft 7 is what editors know best.
_DIALECT = "http://json-schema.org/draft-07/schema#"
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_DURATIONS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms"))
_SIZES = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "B"))


class _Generator(GenerateJsonSchema):
    """Pydantic's, with defaults as YAML spells them."""

    def encode_default(self, dft: Any) -> Any:
        if isinstance(dft, SecretStr):
            return dft.get_secret_value()  # a default stands in the code, for everybody
        if isinstance(dft, BudgetDuration):
            return str(dft)
        if isinstance(dft, StrictModel):
            return None  # its keys have theirs
        return super().encode_default(dft)

    def model_field_schema(self, schema: core_schema.ModelField) -> JsonSchemaValue:
        return _tidy(super().model_field_schema(schema))


def json_schema(name: str) -> dict[str, Any]:
    """The schema of one of SHAPES."""
    shape = SHAPES[name]
    made = shape.model_json_schema(by_alias=True, mode="validation", schema_generator=_Generator)
    parts = {one.__name__: one for one in _shapes(StrictModel)}
    for title, part in {shape.__name__: made, **made.get("$defs", {})}.items():
        _describe(part, parts[title])
    return {"$schema": _DIALECT, "title": _TITLES[name], **made}


def _shapes(root: type[StrictModel]) -> Iterator[type[StrictModel]]:
    for child in root.__subclasses__():
        yield child
        yield from _shapes(child)


def _describe(part: dict[str, Any], shape: type[StrictModel]) -> None:
    said = _said_of(shape)
    part.pop("title", None)
    part["description"] = _one_line(inspect.getdoc(shape) or "")
    for field, info in shape.model_fields.items():
        prop = part["properties"][info.alias or field]
        if "$ref" in prop:  # in draft 7 nothing may stand beside it
            prop["allOf"] = [{"$ref": prop.pop("$ref")}]
        prop.pop("title", None)
        if field in said:
            prop["description"] = said[field]


def _said_of(shape: type[StrictModel]) -> dict[str, str]:
    """The docstring below each field. Python keeps none, so they are read out of the source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(shape))).body[0]
    assert isinstance(tree, ast.ClassDef)
    said = {}
    for before, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name):
            below = after.value if isinstance(after, ast.Expr) else None
            if isinstance(below, ast.Constant) and isinstance(below.value, str):
                said[before.target.id] = _one_line(below.value)
    return said


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _tidy(schema: dict[str, Any]) -> dict[str, Any]:
    """One key's schema, as a person would write it."""
    arms = [arm for arm in schema.get("anyOf", ()) if arm != {"type": "null"}]
    if len(arms) == 1:
        schema = {**arms[0], **{name: value for name, value in schema.items() if name != "anyOf"}}
    elif arms:
        schema["anyOf"] = arms
    for name, keyword in _BOUNDS.items():
        if name in schema:
            schema[keyword] = schema.pop(name)
    default = schema.pop("default", None)
    if default is not None and default != []:
        pattern = next((arm["pattern"] for arm in (schema, *arms) if "pattern" in arm), "")
        schema["default"] = _spelt(default, pattern)
    return schema


def _spelt(default: Any, pattern: str) -> Any:
    units = _DURATIONS if "(ms|s|m" in pattern else _SIZES if "[iI]" in pattern else None
    if units is None or not isinstance(default, int | float):
        return default
    smallest = 1000 if units is _DURATIONS else 1
    amount = round(default * smallest)
    factor, unit = next((factor, unit) for factor, unit in units if amount % factor == 0)
    return f"{amount // factor}{unit}"
