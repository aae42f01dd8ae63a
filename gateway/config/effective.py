"""List the settings in effect, with their places in config.yaml, and without secrets. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, SecretStr

from gateway.config.scalars import duration_text
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
        origin: where the value comes from; None: the file has changed since.
        variable: the environment variable that overrides the file.
        line: line of the file.
    """

    name: str
    value: object
    is_secret: bool
    origin: Literal["file", "environment", "default"] | None
    variable: str | None
    line: int | None


class ReadSettings(NamedTuple):
    """Settings, and the file from which they were read."""

    settings: Settings
    source: YamlSource


def settings_in_effect(read: ReadSettings, *, is_unchanged: bool) -> list[EffectiveSetting]:
    """Return the settings in the order of their models. `is_unchanged`: the file is still as it was read."""
    settings = [_setting(loc, value, read.source, is_in_file=is_unchanged) for loc, value in _leaves(read.settings, ())]
    sections = list(type(read.settings).model_fields)
    return sorted(settings, key=lambda setting: sections.index(re.split(r"\W", setting.name)[0]))


def _leaves(value: object, loc: Loc) -> Iterator[tuple[Loc, object]]:
    """Yield each value that is no section, with its location by the names in YAML."""
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            one = getattr(value, name)
            one = duration_text(one) if name.endswith("_s") and isinstance(one, float) else one
            yield from _leaves(one, (*loc, field.alias or name))
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _leaves(one, (*loc, str(key)))
    elif isinstance(value, tuple) and any(isinstance(one, BaseModel) for one in value):
        for index, one in enumerate(value):
            yield from _leaves(one, (*loc, index))
    else:
        yield loc, value


def _setting(loc: Loc, value: object, source: YamlSource, *, is_in_file: bool) -> EffectiveSetting:
    """Return the setting, as written in `source`. `is_in_file`: the file still has it there."""
    raw, variable = source.get(*loc), source.overridden.get(loc)
    is_secret = isinstance(value, SecretStr)
    shown = None if is_secret else _shown(value if raw is None or variable is not None else raw)
    origin: Literal["file", "environment", "default"] | None = None
    if is_in_file:
        origin = "environment" if variable is not None else "default" if raw is None else "file"
    line = source.issue(loc, "").line if origin == "file" else None
    variable = variable if is_in_file else None
    return EffectiveSetting(field_path(loc), shown, is_secret, origin, variable, line)


def _shown(value: Any) -> object:
    """Return a value for JSON. Variables keep their names. Only secrets may contain credentials."""
    if isinstance(value, Substituted):
        return value.written
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_shown(one) for one in value]
    return str(value)
