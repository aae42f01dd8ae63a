"""Names of LiteLLM's settings, read from the source of the installed package without importing it."""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def _tree(name: str) -> ast.Module:
    spec = find_spec("litellm")
    assert spec is not None
    assert spec.origin is not None
    return ast.parse((Path(spec.origin).parent / name).read_text("utf-8"))


def _attributes(body: list[ast.stmt]) -> list[str]:
    return [
        one.target.id
        for one in body
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and not one.target.id.startswith("_")
    ]


def of_classes(file: str, *names: str) -> list[str]:
    """Return the annotated attributes of classes, without constants."""
    classes = [one for one in _tree(file).body if isinstance(one, ast.ClassDef) and one.name in names]
    assert len(classes) == len(names)
    return [name for one in classes for name in _attributes(one.body) if name != "model_config" and not name.isupper()]


def of_module(file: str) -> list[str]:
    """Return the annotated variables of a module, without constants and tables of models."""
    found = _attributes(_tree(file).body)
    return [name for name in found if not name.isupper() and not name.endswith(("_models", "_callbacks_literal"))]


def of_function(file: str, name: str) -> list[str]:
    """Return the parameters of a function or method."""
    found = [one for one in ast.walk(_tree(file)) if isinstance(one, ast.FunctionDef) and one.name == name]
    arguments = max((one.args.args + one.args.kwonlyargs for one in found), key=len)
    return [one.arg for one in arguments if one.arg != "self" and not one.arg.startswith("_")]
