"""Name the differences between two editions of config.yaml. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel

from gateway.config.yaml_messages import field_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.config.settings import Settings
    from gateway.config.yaml_messages import Loc


def changed_settings(before: Settings, after: Settings) -> tuple[str, ...]:
    """Return the names of the settings that differ; a model that was added, changed or removed as `models.NAME`."""
    settings = [field_path(loc) for loc in _changed(before, after) if loc != ("models",)]
    names = dict.fromkeys([*after.by_name, *before.by_name])
    models = [f"models.{name}" for name in names if before.by_name.get(name) != after.by_name.get(name)]
    return (*settings, *models)


def _changed(before: BaseModel, after: BaseModel, loc: Loc = ()) -> Iterator[Loc]:
    """Yield the location of each setting that differs, by the names in YAML."""
    for name, field in type(before).model_fields.items():
        old, new, here = getattr(before, name), getattr(after, name), (*loc, field.alias or name)
        if isinstance(old, BaseModel) and type(old) is type(new):
            yield from _changed(old, new, here)
        elif old != new:
            yield here
