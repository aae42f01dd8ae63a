"""Values of a LiteLLM proxy configuration with their lines. Included files are merged as LiteLLM merges them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gateway.config.yaml_messages import MUST_BE
from gateway.config.yaml_source import read
from gateway.errors import ConfigError, ConfigIssue

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.config.yaml_messages import Loc
    from gateway.config.yaml_source import YamlSource

_INCLUDE = "include"


@dataclass(frozen=True, slots=True)
class SourceField:
    """A value of a YAML file and its location."""

    source: YamlSource
    loc: Loc
    value: Any

    @property
    def name(self) -> str:
        """The key of the value, or its index in a list."""
        return str(self.loc[-1])

    @property
    def section(self) -> str:
        """The key of the mapping that has the value; the first one for values of a list."""
        return str(self.loc[-2] if isinstance(self.loc[-2], str) else self.loc[0])

    def children(self) -> list[SourceField]:
        """Return the values of a mapping or a list; an empty list for other values."""
        pairs: Any = ()
        if isinstance(self.value, dict):
            pairs = self.value.items()
        elif isinstance(self.value, list):
            pairs = enumerate(self.value)
        return [SourceField(self.source, (*self.loc, key), value) for key, value in pairs]

    def issue(self, message: str) -> ConfigIssue:
        """Return an issue at the line of the value."""
        return self.source.issue(self.loc, message)


class SourceKeys:
    """Keys of a mapping. A converter takes the keys that it converts; `rest` returns the others."""

    def __init__(self, *mappings: SourceField | None) -> None:
        """Combine mappings; earlier ones have precedence. Raise ConfigError for a value that is no mapping."""
        self._fields: dict[str, SourceField] = {}
        for mapping in reversed(mappings):
            if mapping is None or mapping.value is None:
                continue
            if not isinstance(mapping.value, dict):
                raise ConfigError([mapping.issue(MUST_BE[dict])])
            self._fields |= {child.name: child for child in mapping.children()}

    def take(self, name: str) -> SourceField | None:
        """Return and remove the value of a key. An empty value counts as not set."""
        found = self._fields.pop(name, None)
        return None if found is None or found.value is None else found

    def rest(self) -> list[SourceField]:
        """Return and remove all other values that are set."""
        rest = [one for one in self._fields.values() if one.value is not None]
        self._fields = {}
        return rest


@dataclass(slots=True)
class LiteLLMFile:
    """A LiteLLM proxy configuration with its included files.

    Attributes:
        parts: the values of each top-level key; several for a list with entries in several files.
        notices: keys of one file that an included file overrides, and faults that LiteLLM ignores.
        paths: the file, and the files that it includes.
    """

    parts: dict[str, list[SourceField]] = field(default_factory=dict)
    notices: list[ConfigIssue] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)

    def section(self, name: str) -> SourceKeys:
        """Return and remove a section, such as `router_settings`. Raise ConfigError for one that is no mapping."""
        return SourceKeys(*self.parts.pop(name, [])[-1:])

    def entries(self, name: str) -> list[SourceField]:
        """Return and remove the entries of a list. Raise ConfigError for a value that is no list."""
        found: list[SourceField] = []
        for part in self.parts.pop(name, []):
            if not isinstance(part.value, list | None):
                raise ConfigError([part.issue(MUST_BE[list])])
            found += part.children()
        return found

    def rest(self) -> list[SourceField]:
        """Return all other values that are set."""
        return [part for parts in self.parts.values() for part in parts if part.value is not None]


def read_litellm(path: Path) -> LiteLLMFile:
    """Read a configuration and the files that it includes. Raise ConfigError where one is invalid."""
    file = LiteLLMFile()
    pending: list[tuple[Path, SourceField | None]] = [(path, None)]
    loaded = set()
    while pending:
        one, include = pending.pop(0)
        if one.resolve() in loaded:
            continue
        loaded.add(one.resolve())
        source, issues = read(one)
        if source is None and include is not None and not issues[0].line:
            raise ConfigError([include.issue(f"{issues[0].file} {issues[0].message}: correct the path, or remove it")])
        if source is None:
            raise ConfigError(issues)
        file.notices += issues
        file.paths.append(one)
        for name, value in source.data.items():
            if name != _INCLUDE:
                _merge(file, SourceField(source, (name,), value))
        pending += [(_included(entry, one, path), entry) for entry in _includes(source)]
    return file


def _merge(file: LiteLLMFile, part: SourceField) -> None:
    """Add a top-level value. Lists extend the lists of earlier files; all other values replace them."""
    before = file.parts.get(part.name, [])
    if before and not (isinstance(part.value, list) and isinstance(before[-1].value, list)):
        message = f"not imported: {part.source.file} has this key too, and overrides it, as in LiteLLM"
        file.notices += [one.issue(message) for one in before if one.value is not None]
        before = []
    file.parts[part.name] = [*before, part]


def _includes(source: YamlSource) -> list[SourceField]:
    include = SourceField(source, (_INCLUDE,), source.get(_INCLUDE))
    entries = include.children() if isinstance(include.value, list) else []
    if include.value is not None and not (entries and all(isinstance(one.value, str) for one in entries)):
        raise ConfigError([include.issue("must be a list of paths of files")])
    return entries


def _included(entry: SourceField, including: Path, root: Path) -> Path:
    """Return the path of an included file: beside the including file, else beside the first file."""
    name = str(entry.value)
    own, beside_root = including.parent / name, root.parent / name
    return beside_root if beside_root.exists() and not own.exists() else own
