"""JSON Schemas of config.yaml, policy files, projections and curves.

The schemas are generated from the models that validate the files. They have the type, bounds, default and description
of every key, as written in YAML. Rules that concern several values are left to `gkt-gateway check`. The schemas are
stricter in one point: a key without a value is invalid.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from itertools import pairwise
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

SCHEMAS: Mapping[str, type[StrictModel]] = {
    "config": Settings,
    "policy": TenantPolicy,
    "projection": ProjectionRule,
    "curve": Curve,
}
"""Models by the name of their schema in `gkt-gateway schema`."""

_TITLES = {
    "config": "GKT Gateway: config.yaml",
    "policy": "GKT Gateway: a tenant's policy",
    "projection": "GKT Gateway: a projection",
    "curve": "GKT Gateway: an engine's curve",
}
# Editors support draft 7 best.
_DIALECT = "http://json-schema.org/draft-07/schema#"
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_DURATIONS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms"))
_SIZES = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "B"))
_SINGLE = frozenset({"boolean", "integer", "number", "string"})


class _Generator(GenerateJsonSchema):
    """Pydantic's generator, with defaults as written in YAML."""

    def encode_default(self, dft: Any) -> Any:
        if isinstance(dft, SecretStr):
            return dft.get_secret_value()  # a default in the code is no secret
        if isinstance(dft, BudgetDuration):
            return str(dft)
        if isinstance(dft, StrictModel):
            return None  # its keys have their own defaults
        return super().encode_default(dft)

    def model_field_schema(self, schema: core_schema.ModelField) -> JsonSchemaValue:
        return _tidy(super().model_field_schema(schema))


def json_schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema with a name of SCHEMAS."""
    model = SCHEMAS[name]
    schema = model.model_json_schema(by_alias=True, mode="validation", schema_generator=_Generator)
    models = {one.__name__: one for one in _subclasses(StrictModel)}
    for title, part in {model.__name__: schema, **schema.get("$defs", {})}.items():
        _describe(part, models[title])
    return {"$schema": _DIALECT, "title": _TITLES[name], **schema}


def editor_schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema for editors. In config.yaml a text with a variable may stand for any single value."""
    schema = json_schema(name)
    if name == "config":
        for part in (schema, *schema["$defs"].values()):
            part["properties"] = {key: _or_variable(prop) for key, prop in part["properties"].items()}
    return schema


def _or_variable(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a value that also accepts variables, in a list or a map for each single value."""
    if "items" in schema:
        return {**schema, "items": _or_variable(schema["items"])}
    if isinstance(values := schema.get("additionalProperties"), dict):
        return {**schema, "additionalProperties": _or_variable(values)}
    about: dict[str, Any] = {name: schema[name] for name in ("description", "default") if name in schema}
    arms = schema.get("anyOf") or [{name: value for name, value in schema.items() if name not in about}]
    accepts_any_text = any(arm.get("type") == "string" and not {"enum", "pattern"} & arm.keys() for arm in arms)
    if accepts_any_text or not any("enum" in arm or arm.get("type") in _SINGLE for arm in arms):
        return schema
    return {"anyOf": [*arms, {"type": "string", "pattern": r"\$\{"}], **about}


def _subclasses(root: type[StrictModel]) -> Iterator[type[StrictModel]]:
    for child in root.__subclasses__():
        yield child
        yield from _subclasses(child)


def _describe(part: dict[str, Any], model: type[StrictModel]) -> None:
    """Replace titles by the descriptions of a model and its fields."""
    descriptions = _field_docstrings(model)
    part.pop("title", None)
    part["description"] = _one_line(inspect.getdoc(model) or "")
    for field, info in model.model_fields.items():
        prop = part["properties"][info.alias or field]
        if "$ref" in prop:  # draft 7 ignores all keywords next to $ref
            prop["allOf"] = [{"$ref": prop.pop("$ref")}]
        prop.pop("title", None)
        if field in descriptions:
            prop["description"] = descriptions[field]


def _field_docstrings(model: type[StrictModel]) -> dict[str, str]:
    """Return the docstring below each field. It is read from the source, since Python does not keep it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    assert isinstance(tree, ast.ClassDef)
    docstrings = {}
    for pair in pairwise(tree.body):
        match pair:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(docstring))):
                docstrings[name] = _one_line(docstring)
    return docstrings


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _tidy(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of one key without null arms, with Draft 7 keywords and YAML's spelling of the default."""
    arms = [arm for arm in schema.get("anyOf", ()) if arm != {"type": "null"}]
    if len(arms) == 1:
        schema = {**arms[0], **{name: value for name, value in schema.items() if name != "anyOf"}}
    elif arms:
        schema["anyOf"] = arms
    for part in (schema, *arms):
        for name, keyword in _BOUNDS.items():
            if name in part:
                part[keyword] = part.pop(name)
    default = schema.pop("default", None)
    if default is not None and default != []:
        pattern = next((arm["pattern"] for arm in (schema, *arms) if "pattern" in arm), "")
        schema["default"] = _with_unit(default, pattern)
    return schema


def _with_unit(default: Any, pattern: str) -> Any:
    """Return a duration or a size as text with its largest exact unit, other values unchanged."""
    units = _DURATIONS if "(ms|s|m" in pattern else _SIZES if "[iI]" in pattern else None
    if units is None or not isinstance(default, int | float):
        return default
    amount = round(default * (1000 if units is _DURATIONS else 1))
    factor, unit = next((factor, unit) for factor, unit in units if amount % factor == 0)
    return f"{amount // factor}{unit}"
