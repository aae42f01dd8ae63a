"""List the settings in effect, with their places in config.yaml, and without secrets. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, SecretStr

from gateway.config.changes import is_live
from gateway.config.variables import Substituted
from gateway.config.yaml_messages import field_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.config.settings import Settings
    from gateway.config.yaml_messages import Loc
    from gateway.config.yaml_source import YamlSource

_PLAIN = (str, int, float, bool, type(None))


class EffectiveSetting(NamedTuple):
    """A setting in effect.

    Attributes:
        value: as in the file if it is there, else the default; None for a secret.
        is_secret: whether the value is a secret that is set.
        origin: where the value comes from; None: the file has changed since, perhaps by an edit that needs a restart.
        variable: the environment variable that overrides the file.
        line: line of the file.
        needs_restart: whether an edit takes effect only after a restart.
    """

    name: str
    value: object
    is_secret: bool
    origin: Literal["file", "environment", "default"] | None
    variable: str | None
    line: int | None
    needs_restart: bool


def settings_in_effect(started: Settings, current: Settings, source: YamlSource | None) -> list[EffectiveSetting]:
    """Return the settings in the order of their models.

    Args:
        started: the settings of the start, of which those that need a restart are in effect.
        current: the last valid settings, of which the others are in effect.
        source: the file of `current`; None if it has changed since.
    """
    now = dict(_leaves(current, ()))
    kept = [
        _setting(loc, value, source if loc in now and now[loc] == value else None)
        for loc, value in _leaves(started, ())
        if not is_live(loc)
    ]
    live = [_setting(loc, value, source) for loc, value in now.items() if is_live(loc)]
    sections = list(type(started).model_fields)
    return sorted([*kept, *live], key=lambda one: sections.index(re.split(r"\W", one.name)[0]))


def _leaves(value: object, loc: Loc) -> Iterator[tuple[Loc, object]]:
    """Yield each value that is no section, with its location by the names in YAML."""
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            one = getattr(value, name)
            one = f"{one:g}s" if name.endswith("_s") and isinstance(one, float) else one
            yield from _leaves(one, (*loc, field.alias or name))
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _leaves(one, (*loc, str(key)))
    elif isinstance(value, tuple) and any(isinstance(one, BaseModel) for one in value):
        for index, one in enumerate(value):
            yield from _leaves(one, (*loc, index))
    else:
        yield loc, value


def _setting(loc: Loc, value: object, source: YamlSource | None) -> EffectiveSetting:
    raw = None if source is None else source.get(*loc)
    variable = None if source is None else source.overridden.get(loc)
    is_secret = isinstance(value, SecretStr)
    shown = None if is_secret else _shown(value if raw is None or variable is not None else raw)
    origin: Literal["file", "environment", "default"] | None = None
    if source is not None:
        origin = "environment" if variable is not None else "default" if raw is None else "file"
    line = source.issue(loc, "").line if source is not None and origin == "file" else None
    return EffectiveSetting(field_path(loc), shown, is_secret, origin, variable, line, not is_live(loc))


def _shown(value: Any) -> object:
    """Return a value for JSON. Variables keep their names. Only secrets may contain credentials."""
    if isinstance(value, Substituted):
        return value.written
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_shown(one) for one in value]
    return str(value)
