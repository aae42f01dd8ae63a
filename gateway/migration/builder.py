"""A file to write, or a part of one: plain data with the source of each value, and comments."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from gateway.config.yaml_messages import MISSING, field_path
from gateway.config.yaml_source import YamlSource

if TYPE_CHECKING:
    from pydantic import BaseModel

    from gateway.config.yaml_messages import Loc
    from gateway.errors import ConfigIssue
    from gateway.migration.context import ImportContext
    from gateway.migration.source import SourceField

_LAST_STEP = re.compile(r"(\.[^.\[]+|\[[0-9]+\])$")


class DataBuilder:
    """Data that is built value by value and then validated. Values that the gateway rejects are removed.

    Attributes:
        data: the data, as in YAML.
        comments: comments at the end of lines, by location.
    """

    def __init__(self, data: dict[str, Any] | None = None) -> None:
        self.data: dict[str, Any] = data or {}
        self.comments: dict[Loc, str] = {}
        self._origins: dict[str, tuple[Loc, SourceField]] = {}
        self._unknown: list[tuple[str, ...]] = []

    def put(self, *loc: str, value: object, field: SourceField | None = None, comment: str | None = None) -> None:
        """Set a value. `field` is its source, for messages. None is not written."""
        if value is None:
            return
        parent = self.data
        for step in loc[:-1]:
            parent = parent.setdefault(step, {})
        parent[loc[-1]] = value
        if field is not None:
            self._origins[field_path(loc)] = (loc, field)
        if comment is not None:
            self.comments[loc] = comment

    def put_unknown(self, *loc: str, placeholder: object) -> None:
        """Set a value that is unknown. `validate` takes the placeholder, and `clear_unknown` writes null instead."""
        self.put(*loc, value=placeholder)
        self._unknown.append(loc)

    def clear_unknown(self) -> None:
        """Set each unknown value to null, which the gateway rejects until it is filled in."""
        for *parents, name in self._unknown:
            parent = self.data
            for step in parents:
                parent = parent.get(step, {})
            if name in parent:
                parent[name] = None

    def origin(self, *loc: str) -> SourceField:
        """Return the source of a value."""
        return self._origins[field_path(loc)][1]

    def validate(self, model: type[BaseModel], context: ImportContext, scope: object = None) -> ConfigIssue | None:
        """Remove each value that `model` rejects, with a notice at its source. Return an issue that remains, or None.

        Args:
            model: model of the data.
            context: receives the notices.
            scope: context of the validators.
        """
        while True:
            _, issues = YamlSource("", self.data).check(model, scope)
            known = [(issue, origin) for issue in issues if (origin := self._origin_of(issue.field)) is not None]
            if not known:
                return issues[0] if issues else None
            for issue, (loc, field) in known:
                if self._remove(loc) and issue.message != MISSING:
                    context.notice(field, f"not imported: {issue.message}")

    def _origin_of(self, path: str) -> tuple[Loc, SourceField] | None:
        """Return location and source of the value at `path`, or of its nearest parent with a source."""
        while path:
            if path in self._origins:
                return self._origins[path]
            path, removed = _LAST_STEP.subn("", path)
            if not removed:
                return None
        return None

    def _remove(self, loc: Loc) -> bool:
        """Remove a value and the mappings that are empty without it. Return whether it was there."""
        self._origins.pop(field_path(loc), None)
        parents: list[Any] = [self.data]
        for step in loc[:-1]:
            parents.append(parents[-1].get(step, {}))
        if loc[-1] not in parents[-1]:
            return False
        for step, parent in zip(reversed(loc), reversed(parents), strict=True):
            del parent[step]
            if parent:
                break
        return True
