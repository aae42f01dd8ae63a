"""Messages for pydantic's validation errors that name the correction."""

from __future__ import annotations

from difflib import get_close_matches
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel, RootModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Loc: TypeAlias = tuple[str | int, ...]

MISSING = "missing: add it"
MUST_BE: Mapping[type, str] = {
    dict: "must hold keys, one per line, each as 'key: value'",
    list: "must be a list: one '- ...' per entry",
}
"""Messages for the wrong type of a value."""
_TYPES = {
    "int_type": "must be a whole number, without quotes",
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), MUST_BE[dict]),
    **dict.fromkeys(("tuple_type", "list_type"), MUST_BE[list]),
}
_LIMITS = {"ge": "at least", "le": "at most", "gt": "more than", "lt": "less than"}
_TRUE = {"yes", "on", "y", "1"}
_FALSE = {"no", "off", "n", "0"}


def nearest(name: object, known: Iterable[str]) -> str | None:
    """Return the known name that is most similar to `name`, or None."""
    matches = get_close_matches(name, list(known), n=1, cutoff=0.6) if isinstance(name, str) else []
    return matches[0] if matches else None


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'X'?` for a misspelled name, or an empty text if no other known name is close."""
    close = nearest(name, known)
    return f" Did you mean '{close}'?" if close and close != name else ""


def field_path(loc: Loc) -> str:
    """Return a location like `("models", 0, "price")` as text: `models[0].price`."""
    text = ""
    for step in loc:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def follows_from_another(detail: Any) -> bool:
    """Return whether a pydantic error is only the consequence of another reported error."""
    if detail["type"] == "too_short" and isinstance(detail["input"], list | tuple):  # pydantic counts valid items only
        return bool(len(detail["input"]) >= detail["ctx"]["min_length"])
    return bool(detail["type"] == "default_factory_not_called")


def message_of(detail: Any) -> tuple[str, str | None]:
    """Return message and suggestion for one pydantic error. They never contain the value, which may be a secret."""
    kind, context, value = detail["type"], detail.get("ctx", {}), detail.get("input")
    if kind == "value_error":  # InvalidValue
        return str(context["error"]), getattr(context["error"], "suggestion", None)
    if kind == "missing":
        return MISSING, None
    if value is None:
        return "empty: write a value, or remove the line", None
    if kind == "literal_error":
        return _one_of(context["expected"], value)
    if kind == "bool_type":
        return "must be true or false", _truth(value)
    if kind == "string_type":
        return "must be text" if isinstance(value, dict | list) else "must be text: put it in quotes", None
    return _TYPES.get(kind) or _wrong_amount(kind, context) or str(detail["msg"]).lower(), None


def _wrong_amount(kind: str, context: Any) -> str | None:
    for bound, phrase in _LIMITS.items():
        if bound in context:
            return f"must be {phrase} {context[bound]}"
    if kind == "too_short":
        return f"must have at least {_entries(context['min_length'])}"
    if kind == "too_long":
        return f"must have at most {_entries(context['max_length'])}"
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "string_too_long":
        return f"must have at most {context['max_length']} characters"
    return None


def _entries(count: int) -> str:
    return f"{count} entry" if count == 1 else f"{count} entries"


def _one_of(expected: str, value: object) -> tuple[str, str | None]:
    values = expected.replace("True", "true").replace("False", "false")
    known = [word.strip("' ") for word in values.replace(" or ", ", ").split(", ")]
    suggestion = nearest(value, known) or (_truth(value) if "true" in known else None)
    return f"must be {values.replace(chr(39), '')}", suggestion


def _truth(value: object) -> str | None:
    word = str(value).lower()
    return "true" if word in _TRUE else "false" if word in _FALSE else None


def model_at(model: type[BaseModel], loc: Loc) -> type[BaseModel] | None:
    """Return the nested model at `loc` of `model`, or None."""
    current: Any = model
    for step in loc:
        if isinstance(current, type) and issubclass(current, RootModel):
            current = _bare(current.model_fields["root"].annotation)
        if isinstance(step, int):
            current = _bare(get_args(current)[0]) if get_origin(current) in {tuple, list} else None
        elif isinstance(current, type) and issubclass(current, BaseModel):
            fields = current.model_fields.items()
            annotations = [info.annotation for name, info in fields if (info.alias or name) == step]
            current = _bare(annotations[0]) if annotations else None
        elif get_origin(current) is dict:
            current = _bare(get_args(current)[1])
        else:
            current = None
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def yaml_loc(model: type[BaseModel], detail: Any) -> Loc:
    """Return the location of a pydantic error in YAML. Pydantic names invalid defaults by field, YAML by alias."""
    *parent, name = detail["loc"] or ("",)
    nested = model_at(model, tuple(parent))
    if nested is None or detail["type"] == "extra_forbidden" or name not in nested.model_fields:
        return tuple(detail["loc"])
    return (*parent, nested.model_fields[name].alias or name)


def _bare(annotation: Any) -> Any:
    """Return the annotation without Annotated and without `| None`."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in {Union, UnionType}:
        return next((_bare(arm) for arm in get_args(annotation) if arm is not type(None)), None)
    return annotation
