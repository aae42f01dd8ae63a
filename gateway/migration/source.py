"""Values of a LiteLLM proxy configuration with their lines."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.config.yaml_messages import MUST_BE
from gateway.config.yaml_source import read
from gateway.errors import ConfigError, ConfigIssue

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.config.yaml_messages import Loc
    from gateway.config.yaml_source import YamlSource

_REFERENCE = re.compile(r"os\.environ/([A-Za-z_][A-Za-z0-9_]*)", re.ASCII)


class NotConvertedError(Exception):
    """A value cannot be converted. The message is the reason; it contains no secret."""


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
    def variable(self) -> str | None:
        """The environment variable that the value refers to, as `os.environ/NAME`; None for another value."""
        match = _REFERENCE.fullmatch(str(self.value))
        return None if match is None else match[1]

    def text(self) -> str:
        """Return the value as text of config.yaml: `${NAME}` for `os.environ/NAME`. Raise NotConvertedError."""
        if isinstance(self.value, dict | list):
            raise NotConvertedError(f"{self.name}: must be text")
        if "${" in str(self.value):
            raise NotConvertedError(f"{self.name}: must not contain ${{")
        return str(self.value) if self.variable is None else f"${{{self.variable}}}"

    def children(self) -> list[SourceField]:
        """Return the values of a mapping or a list; an empty list for other values."""
        pairs: Any = ()
        if isinstance(self.value, dict):
            pairs = self.value.items()
        elif isinstance(self.value, list):
            pairs = enumerate(self.value)
        return [SourceField(self.source, (*self.loc, key), value) for key, value in pairs]

    def child(self, name: str) -> SourceField:
        """Return a value of a mapping, which may be missing there."""
        return SourceField(self.source, (*self.loc, name), self.value.get(name))

    def issue(self, message: str) -> ConfigIssue:
        """Return an issue at the line of the value."""
        return self.source.issue(self.loc, message)


class SourceKeys:
    """Keys of a mapping. A converter takes the keys that it converts; `rest` returns the others."""

    def __init__(self, mapping: SourceField | None) -> None:
        """Read the keys; None has no keys. Raise ConfigError for a value that is no mapping."""
        if mapping is not None and not isinstance(mapping.value, dict):
            raise ConfigError([mapping.issue(MUST_BE[dict])])
        self._fields = {} if mapping is None else {child.name: child for child in mapping.children()}

    def take(self, name: str) -> SourceField | None:
        """Return and remove the value of a key. An empty value counts as not set."""
        found = self._fields.pop(name, None)
        return None if found is None or found.value is None else found

    def rest(self) -> list[SourceField]:
        """Return all other values that are set."""
        return [field for field in self._fields.values() if field.value is not None]


class LiteLLMFile(NamedTuple):
    """A configuration of the LiteLLM proxy.

    Attributes:
        keys: its top-level keys.
        issues: faults that LiteLLM ignores, such as a duplicate key.
        variables: all environment variables that it refers to.
    """

    keys: SourceKeys
    issues: list[ConfigIssue]
    variables: frozenset[str]


def read_litellm(path: Path) -> LiteLLMFile:
    """Read a configuration. Raise ConfigError for a file that cannot be read, or is not YAML with keys."""
    source, issues = read(path)
    if source is None:
        raise ConfigError(issues)
    variables = frozenset(_REFERENCE.findall(source.text))
    return LiteLLMFile(SourceKeys(SourceField(source, (), source.data)), issues, variables)
