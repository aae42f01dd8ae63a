"""YAML files with the line of every value, so that each issue names its file and line.

    read(path)           ->  YamlSource   plain data with locations
    source.check(Model)  ->  Model        validated, or all issues in file order

Numbers with a decimal point become `Decimal`, never a binary float, so that they stay exactly as written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from stat import S_ISFIFO
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from gateway.config.variables import hide, substitute
from gateway.config.yaml_messages import (
    MUST_BE,
    field_path,
    follows_from_another,
    message_of,
    model_at,
    nearest,
    yaml_loc,
)
from gateway.errors import ConfigIssue

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.config.yaml_messages import Loc

_TAG = "tag:yaml.org,2002:"
_CONFIG = "config.yaml"
_SYNTAX = {
    "'\\t'": "a tab instead of spaces",
    "mapping values are not allowed": (
        "a second ': ' on one line, or wrong indentation; put quotes around a value that contains ': '"
    ),
    "but found another document": "a second document ('---'); a file may have only one",
    "<block": "a line that is indented more or less than its neighbors",
}
"""Messages for a part of the parser's message."""


class StrictModel(BaseModel):
    """Base of all models of YAML files: rejects unknown keys, is frozen, and keeps values out of error messages.

    YAML uses the aliases (`drain_timeout: 30s`), Python the names with units (`drain_timeout_s=30.0`).
    `key_hints` maps keys of other gateways to a hint for the error message.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_by_alias=True, validate_by_name=True, hide_input_in_errors=True
    )
    key_hints: ClassVar[Mapping[str, str]] = {}


M = TypeVar("M", bound=BaseModel)


@dataclass(slots=True)
class YamlSource:
    """A YAML file. `data` is plain: dict, list, str, int, Decimal, bool, None."""

    file: str
    data: Any
    text: str = ""
    root: Node | None = None
    broken: frozenset[Loc] = frozenset()  # locations without a usable value, which `read` has reported
    overridden: dict[Loc, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)  # whose values messages must not contain

    def get(self, *loc: str | int) -> Any:
        """Return the raw value at `loc`, or None. The file need not be valid."""
        value = self.data
        for step in loc:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    @property
    def unusable(self) -> frozenset[Loc]:
        """Return the locations of values that `read` has reported and no environment variable replaces."""
        return self.broken - self.overridden.keys()

    def items(self, *loc: str | int) -> list[Any]:
        """Return the raw list at `loc`, or an empty list."""
        value = self.get(*loc)
        return value if isinstance(value, list) else []

    def entries(self) -> list[YamlSource]:
        """Return a source for each entry of a file that is a list. Their issues have the lines of this file."""
        root = _compose(self.text)
        nodes = root.value if isinstance(root, SequenceNode) else []
        return [YamlSource(self.file, entry, self.text, node) for entry, node in zip(self.data, nodes, strict=True)]

    def override(self, loc: Loc, value: object, variable: str) -> None:
        """Replace the value at `loc` by that of an environment variable. Issues then name the variable."""
        parent = self.data
        for step in loc[:-1]:
            if not isinstance(parent.get(step, {}), dict):
                return  # an issue of the file, which `check` reports
            parent[step] = dict(parent.get(step, {}))  # a copy: a YAML alias may share the original
            parent = parent[step]
        parent[loc[-1]] = value
        self.overridden[loc] = variable

    def issue(self, loc: Loc, message: str, suggestion: str | None = None) -> ConfigIssue:
        """Return an issue at `loc`, or at its nearest parent that is in the file."""
        message = hide(message, self.variables)
        suggestion = None if suggestion is None else hide(suggestion, self.variables)
        if loc in self.overridden:
            return ConfigIssue("environment", 0, 0, self.overridden[loc], message, suggestion)
        if self.root is None and self.text:
            self.root = _compose(self.text)
        line, column = _position(self.root, loc)
        return ConfigIssue(self.file, line, column, field_path(loc), message, suggestion)

    def check(self, model: type[M], context: object = None) -> tuple[M | None, list[ConfigIssue]]:
        """Return `data` as `model`, or None with all issues in file order. The `context` of validators, by default this
        source, tells them that values come from YAML."""
        context = self if context is None else context
        try:
            return model.model_validate(self.data, context=context, by_alias=True, by_name=False), []
        except ValidationError as error:
            details = [
                detail
                for detail in error.errors(include_url=False)
                if detail["loc"] not in self.broken and not follows_from_another(detail)
            ]
            issues = [self.issue(yaml_loc(model, detail), *issue_message(detail, model)) for detail in details]
            # A misspelled key is reported once, not also as missing.
            misspelled = {(issue.field.rpartition(".")[0], issue.suggestion) for issue in issues if issue.suggestion}
            return None, in_file_order(
                issue
                for issue in issues
                if not issue.message.startswith("missing") or issue.field.rpartition(".")[::2] not in misspelled
            )


def issue_message(detail: Any, model: type[BaseModel]) -> tuple[str, str | None]:
    """Return message and suggestion for one pydantic error of `model`."""
    if detail["type"] != "extra_forbidden":
        return message_of(detail)
    *parent, name = detail["loc"]
    nested = model_at(model, tuple(parent))
    known = [info.alias or key for key, info in nested.model_fields.items()] if nested else []
    hint = nested.key_hints.get(str(name)) if nested and issubclass(nested, StrictModel) else None
    if hint:
        return f"unknown key: {hint}", None
    close = nearest(name, known)
    return ("unknown key", close) if close else (f"unknown key; known here: {', '.join(known)}", None)


def in_file_order(issues: Iterable[ConfigIssue]) -> list[ConfigIssue]:
    """Return the issues of one file sorted by line and column."""
    return sorted(issues, key=lambda issue: (issue.line, issue.column))


def display_path(path: Path) -> str:
    """Return a path for messages: relative to the current folder if it is inside it."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def read(
    path: Path, of: type[dict[str, Any]] | type[list[Any]] = dict, environ: Mapping[str, str] | None = None
) -> tuple[YamlSource | None, list[ConfigIssue]]:
    """Read a YAML file whose content has the type `of`, keys or a list. Return it with its issues.

    With `environ`, variables in texts are replaced (variables.py). The source is None if the file cannot be read, is
    not YAML, or is not of that type. A source that comes with issues, such as a duplicate key, can still be checked.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        return None, [unreadable(path, error)]
    return parse(raw, display_path(path), of, environ)


def unreadable(path: Path, error: OSError) -> ConfigIssue:
    """Return the issue of a file that cannot be read."""
    remedy = ": gkt-gateway init writes one" if isinstance(error, FileNotFoundError) and path.name == _CONFIG else ""
    return ConfigIssue(
        display_path(path), 0, 0, "", f"cannot be read: {(error.strerror or str(error)).lower()}{remedy}"
    )


def read_bytes(path: Path, max_bytes: int | None = None) -> bytes | ConfigIssue:
    """Return the content of a file, or the issue if it cannot be read or is larger than `max_bytes`."""
    try:
        if S_ISFIFO(path.stat().st_mode):  # reading a pipe could block for ever
            return ConfigIssue(display_path(path), 0, 0, "", "is a pipe, not a file")
        if max_bytes is None:
            return path.read_bytes()
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except OSError as error:
        return unreadable(path, error)
    if len(raw) > max_bytes:
        return ConfigIssue(display_path(path), 0, 0, "", f"has more than {max_bytes} bytes")
    return raw


def parse(
    raw: bytes,
    file: str,
    of: type[dict[str, Any]] | type[list[Any]] = dict,
    environ: Mapping[str, str] | None = None,
) -> tuple[YamlSource | None, list[ConfigIssue]]:
    """Parse the bytes of a YAML file. Arguments and result are those of `read`; `file` is the name for messages."""
    try:
        text = raw.decode("utf-8-sig")
        root = _compose(text)
        builder = _Builder(file, environ)
        data = builder.value(root, ()) if root is not None else of()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        return None, [ConfigIssue(file, line, 1, "", "not UTF-8 text: save the file as UTF-8")]
    except YAMLError as error:
        return None, [_syntax(file, error, text)]
    except RecursionError:
        return None, [ConfigIssue(file, 0, 0, "", "nested too deeply")]
    if not isinstance(data, of):
        return None, [ConfigIssue(file, 1, 1, "", MUST_BE[of])]
    source = YamlSource(file, data, text, root, frozenset(builder.broken), variables=builder.variables)
    return source, in_file_order(builder.issues)


def load(path: Path, model: type[M], context: object = None) -> tuple[M | None, list[ConfigIssue]]:
    """Read and check a file. Return the model, or None with all issues in file order."""
    source, issues = read(path)
    if source is None:
        return None, issues
    value, more = source.check(model, context)
    issues = in_file_order([*issues, *more])
    return (None if issues else value), issues


def _compose(text: str) -> Node | None:
    yaml = YAML(typ="safe", pure=True)
    yaml.composer.warn_double_anchors = False  # YAML allows them
    root: Node | None = yaml.compose(text)
    return root


def _syntax(file: str, error: YAMLError, text: str) -> ConfigIssue:
    mark = None
    problem = "a character that YAML does not allow"
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        problem = str(error.problem or error.context)
    if mark is not None and mark.line and "mapping values are not allowed" in problem:
        before = text.splitlines()[mark.line - 1].strip()
        if before and not before.startswith("#") and ": " not in f"{before} ":
            # YAML joins a line without a key to the next one, and reports that one.
            return ConfigIssue(file, mark.line, 1, "", "not valid YAML: a line without 'key: value'; add the ':'")
    problem = next((ours for part, ours in _SYNTAX.items() if part in problem), problem)
    problem = problem.replace("'<stream end>'", "the end of the file")
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
    return ConfigIssue(file, line, column, "", f"not valid YAML: {problem}")


def _entries(node: MappingNode) -> dict[str, tuple[Node, Node]]:
    """Return key and value nodes by key. The last of equal keys wins; merged keys (`<<`) yield to the node's own."""
    own: dict[str, tuple[Node, Node]] = {}
    merged: dict[str, tuple[Node, Node]] = {}
    for key, value in node.value:
        if _is_merge(key):
            for other in value.value if isinstance(value, SequenceNode) else [value]:
                if isinstance(other, MappingNode) and other is not node:
                    merged = _entries(other) | merged
        elif isinstance(key, ScalarNode):
            own[key.value] = (key, value)
    return merged | own


def _is_merge(key: Node) -> bool:
    return isinstance(key, ScalarNode) and str(key.tag) == f"{_TAG}merge"


def _position(root: Node | None, loc: Loc) -> tuple[int, int]:
    """Return line and column, from 1, of the deepest part of `loc` that is in the file."""
    node, mark = root, None if root is None else root.start_mark
    for step in loc:
        if isinstance(node, MappingNode) and step in (entries := _entries(node)):
            key, node = entries[str(step)]
            mark = key.start_mark
        elif isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            mark = node.start_mark
        else:
            break
    return (1, 1) if mark is None else (mark.line + 1, mark.column + 1)


class _Builder:
    """Converts YAML nodes to plain data. YAML features that a configuration must not use are recorded as issues."""

    def __init__(self, file: str, environ: Mapping[str, str] | None) -> None:
        self.file = file
        self.variables: dict[str, str] = {}
        self._environ = environ
        self.issues: list[ConfigIssue] = []
        self.broken: set[Loc] = set()
        self._done: dict[int, Any] = {}
        self._open: set[int] = set()

    def value(self, node: Node, loc: Loc) -> Any:
        if id(node) in self._open:
            return self._broken(node, loc, "refers to itself")
        if id(node) not in self._done:
            self._open.add(id(node))
            if isinstance(node, MappingNode):
                self._keys(node, loc)
                data: Any = {key: self.value(value, (*loc, key)) for key, (_, value) in _entries(node).items()}
            elif isinstance(node, SequenceNode):
                data = [self.value(item, (*loc, index)) for index, item in enumerate(node.value)]
            else:
                data = self._scalar(node, loc)
            self._done[id(node)] = data
            self._open.discard(id(node))
        return self._done[id(node)]

    def _keys(self, node: MappingNode, loc: Loc) -> None:
        first: dict[str, int] = {}
        for key, _ in node.value:
            if _is_merge(key):
                continue
            if not isinstance(key, ScalarNode):
                self._report(key, loc, "a key must be one plain word")
            elif key.value in first:
                self._report(key, (*loc, key.value), f"set twice, first on line {first[key.value]}: keep one")
            else:
                first[key.value] = key.start_mark.line + 1

    def _scalar(self, node: Node, loc: Loc) -> Any:
        kind, text = str(node.tag).removeprefix(_TAG), str(node.value)
        try:
            if kind == "int":
                return _whole(text)
            if kind == "float":
                return Decimal(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except (ValueError, InvalidOperation):
            return self._broken(node, loc, "not a number")
        if kind in {"str", "timestamp", "value"}:
            return text if self._environ is None or "${" not in text else self._substituted(node, loc, self._environ)
        if kind == "bool":
            return text.lower() == "true"
        if kind == "null":
            return None
        return self._broken(node, loc, "YAML tags ('!...') are not supported: remove it")

    def _substituted(self, node: Node, loc: Loc, environ: Mapping[str, str]) -> Any:
        try:
            text = substitute(str(node.value), environ)
        except ValueError as error:
            return self._broken(node, loc, str(error))
        self.variables |= text.values
        return text

    def _broken(self, node: Node, loc: Loc, message: str) -> None:
        self.broken.add(loc)
        self._report(node, loc, message)

    def _report(self, node: Node, loc: Loc, message: str) -> None:
        mark = node.start_mark
        self.issues.append(ConfigIssue(self.file, mark.line + 1, mark.column + 1, field_path(loc), message))


def _whole(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        return int(text)
