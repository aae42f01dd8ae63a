"""Compare two editions of config.yaml: the models that differ, and the settings that need a restart. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel

from gateway.config.models import ModelSettings
from gateway.config.yaml_messages import field_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gateway.config.settings import Settings
    from gateway.config.yaml_messages import Loc
    from gateway.config.yaml_source import YamlSource
    from gateway.errors import ConfigIssue

_MODELS: Loc = ("models",)
LIVE: frozenset[Loc] = frozenset(
    {
        _MODELS,
        ("defaults",),
        ("alerts",),
        ("identity",),
        ("labels",),
        ("log", "requests"),
    }
)
"""Settings that take effect while the gateway runs."""
# Settings of a model that its engine does not read.
_NOT_OF_ENGINE = frozenset({"price_rule", "max_output_tokens", "guidance_cache_bytes", "batch"})


class ModelChanges(NamedTuple):
    """Names of the models that an edit added, changed and removed."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    @classmethod
    def between(cls, before: Mapping[str, ModelSettings], after: Sequence[ModelSettings]) -> ModelChanges:
        """Return the changes, in the order of `after`."""
        names = {model.name for model in after}
        return cls(
            tuple(model.name for model in after if model.name not in before),
            tuple(model.name for model in after if model.name in before and not _is_same(before[model.name], model)),
            tuple(name for name in before if name not in names),
        )


def is_same_engine(before: ModelSettings, after: ModelSettings) -> bool:
    """Return whether one engine serves both: they differ at most in settings that no engine reads, such as prices."""
    return _is_same(before, after, _NOT_OF_ENGINE) and before.batch.max_queue == after.batch.max_queue


def _is_same(before: ModelSettings, after: ModelSettings, without: frozenset[str] = frozenset()) -> bool:
    names = ModelSettings.model_fields.keys() - without
    # Calls that complete answers are limited only if the file sets max_concurrency, to its default or another value.
    is_limited = ["max_concurrency" in model.model_fields_set for model in (before, after)]
    return is_limited[0] == is_limited[1] and all(getattr(before, name) == getattr(after, name) for name in names)


def live_changes(before: Settings, after: Settings) -> list[str]:
    """Return the names of the changed settings that take effect at once, without the models."""
    return [field_path(loc) for loc in _changed(before, after) if is_live(loc) and loc[:1] != _MODELS]


def needs_restart(before: Settings, after: Settings, source: YamlSource) -> list[ConfigIssue]:
    """Return an issue for each changed setting that needs a restart, with its line in `source`, the file of `after`."""
    changed = [loc for loc in _changed(before, after) if not is_live(loc)]
    return [source.issue(loc, "restart the gateway to apply it") for loc in changed]


def is_live(loc: Loc) -> bool:
    """Return whether a setting takes effect while the gateway runs."""
    return any(loc[: len(live)] == live for live in LIVE)


def _changed(before: BaseModel, after: BaseModel, loc: Loc = ()) -> Iterator[Loc]:
    """Yield the location of each setting that differs, by the names in YAML."""
    for name, field in type(before).model_fields.items():
        one, other, here = getattr(before, name), getattr(after, name), (*loc, field.alias or name)
        if isinstance(one, BaseModel) and type(one) is type(other):
            yield from _changed(one, other, here)
        elif one != other:
            yield here
