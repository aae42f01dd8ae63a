"""A YAML file with the place of every value, so that each mistake can name its file and line.

    read(path)  ->  Source            plain data, and where each value stands
    source.check(Model)  ->  Model    validated; or every mistake at once, in file order, in plain words

Numbers with a point stay exactly as written: they become `Decimal`, never a binary float.
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

from gateway.config.yaml_messages import (
    field_path,
    follows_from_another,
    is_missing,
    nearest,
    said_plainly,
    shape_at,
    spoken,
)
from gateway.errors import ConfigIssue

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.config.yaml_messages import Loc

_TAG = "tag:yaml.org,2002:"
_TOP: Mapping[type, str] = {
    dict: "must hold keys, one per line, each as 'key: value'",
    list: "must be a list: one '- ...' per entry",
}


class StrictModel(BaseModel):
    """Base of all that YAML may say: closed, frozen, and silent about its input when it complains.

    YAML speaks the aliases (`drain_timeout: 30s`), Python the names with units (`drain_timeout_s=30.0`).
    `foreign` answers keys that other gateways know with a sentence that tells what to write here.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_by_alias=True, validate_by_name=True, hide_input_in_errors=True
    )
    foreign: ClassVar[Mapping[str, str]] = {}


M = TypeVar("M", bound=BaseModel)


@dataclass(slots=True)
class YamlSource:
    """One file, read. `data` is plain: dict, list, str, int, Decimal, bool, None."""

    file: str
    data: Any
    text: str = ""
    root: Node | None = None
    broken: frozenset[Loc] = frozenset()  # no value could be made of these; `read` has said so
    overridden: dict[Loc, str] = field(default_factory=dict)

    def get(self, *loc: str | int) -> Any:
        """The raw value at `loc`, or None. For cross-checks that must not wait for a valid file."""
        value = self.data
        for step in loc:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def items(self, *loc: str | int) -> list[Any]:
        """The raw list at `loc`; empty if there is none."""
        value = self.get(*loc)
        return value if isinstance(value, list) else []

    def part(self, data: dict[str, Any]) -> YamlSource:
        """Some of the data, to be checked by itself where the whole may have mistakes."""
        return YamlSource(self.file, data)

    def entries(self) -> list[YamlSource]:
        """Each entry of a file that is a list, to be checked by itself; its mistakes name the file's lines."""
        root = _compose(self.text)
        nodes = root.value if isinstance(root, SequenceNode) else []
        return [YamlSource(self.file, entry, self.text, node) for entry, node in zip(self.data, nodes, strict=True)]

    def override(self, loc: Loc, value: object, said_by: str) -> None:
        """Put a value that another source (`said_by`, an environment variable) has the right to set."""
        parent = self.data
        for step in loc[:-1]:
            if not isinstance(parent.get(step, {}), dict):
                return  # a mistake of the file, which `check` reports
            parent[step] = dict(parent.get(step, {}))  # an alias may share it with another place
            parent = parent[step]
        parent[loc[-1]] = value
        self.overridden[loc] = said_by

    def mistake(self, loc: Loc, message: str, suggestion: str | None = None) -> ConfigIssue:
        """A mistake at `loc`, or at the nearest thing around it that stands in the file."""
        if loc in self.overridden:
            return ConfigIssue("environment", 0, 0, self.overridden[loc], message, suggestion)
        if self.root is None and self.text:
            self.root = _compose(self.text)
        line, column = _place(self.root, loc)
        return ConfigIssue(self.file, line, column, field_path(loc), message, suggestion)

    def forget_places(self) -> None:
        """Let go of what takes the most memory. It is made again out of the text when a place is asked for."""
        self.root = None

    def check(self, model: type[M], context: object = None) -> tuple[M | None, list[ConfigIssue]]:
        """`data` as `model`, or None with every mistake, in file order.

        `context` reaches the validators. It is never None there: by that they know that YAML is speaking.
        """
        context = self if context is None else context
        try:
            return model.model_validate(self.data, context=context, by_alias=True, by_name=False), []
        except ValidationError as error:
            details = [
                detail
                for detail in error.errors(include_url=False)
                if detail["loc"] not in self.broken and not follows_from_another(detail)
            ]
            found = [self.mistake(spoken(model, detail), *self._words(detail, model)) for detail in details]
            misspelt = {(one.field.rpartition(".")[0], one.suggestion) for one in found if one.suggestion}
            return None, in_file_order(
                one for one in found if not is_missing(one.message) or (one.field.rpartition(".")[::2]) not in misspelt
            )

    def _words(self, detail: Any, model: type[BaseModel]) -> tuple[str, str | None]:
        if detail["type"] != "extra_forbidden":
            return said_plainly(detail)
        *parent, name = detail["loc"]
        shape = shape_at(model, tuple(parent))
        known = [info.alias or key for key, info in shape.model_fields.items()] if shape else []
        foreign = shape.foreign.get(str(name)) if shape and issubclass(shape, StrictModel) else None
        if foreign:
            return f"unknown key: {foreign}", None
        close = nearest(name, known)
        return ("unknown key", close) if close else (f"unknown key; known here: {', '.join(known)}", None)


def in_file_order(mistakes: Iterable[ConfigIssue]) -> list[ConfigIssue]:
    """Sorted by place. All of one file: files keep the order in which the caller reads them."""
    return sorted(mistakes, key=lambda mistake: (mistake.line, mistake.column))


def shown(path: Path) -> str:
    """`path` as a person in this folder would write it."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def read(path: Path, of: type[dict[str, Any]] | type[list[Any]] = dict) -> tuple[YamlSource | None, list[ConfigIssue]]:
    """The file as plain data; None with mistakes if it cannot be read, is not YAML, or holds no keys (no list: `of`).

    Mistakes beside a Source (a key set twice) leave data that can still be checked for more.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        return None, [unreadable(path, error)]
    return parse(raw, shown(path), of)


def unreadable(path: Path, error: OSError) -> ConfigIssue:
    """What to say of a file that the system does not give out."""
    return ConfigIssue(shown(path), 0, 0, "", f"cannot be read: {(error.strerror or str(error)).lower()}")


def contents(path: Path, most_bytes: int | None = None) -> bytes | ConfigIssue:
    """What stands in the file, or why it cannot be read: for one thing, because it is larger than it may be."""
    try:
        if S_ISFIFO(path.stat().st_mode):  # it would be waited for, for ever
            return ConfigIssue(shown(path), 0, 0, "", "is a pipe, not a file")
        if most_bytes is None:
            return path.read_bytes()
        with path.open("rb") as file:
            raw = file.read(most_bytes + 1)
    except OSError as error:
        return unreadable(path, error)
    return raw if len(raw) <= most_bytes else ConfigIssue(shown(path), 0, 0, "", f"has more than {most_bytes} bytes")


def parse(
    raw: bytes, file: str, of: type[dict[str, Any]] | type[list[Any]] = dict
) -> tuple[YamlSource | None, list[ConfigIssue]]:
    """What `read` does with the bytes of a file."""
    try:
        text = raw.decode("utf-8-sig")
        root = _compose(text)
        builder = _Builder(file)
        data = builder.value(root, ()) if root is not None else of()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        return None, [ConfigIssue(file, line, 1, "", "not UTF-8 text: save the file as UTF-8")]
    except YAMLError as error:
        return None, [_syntax(file, error)]
    except RecursionError:
        return None, [ConfigIssue(file, 0, 0, "", "nested too deeply")]
    if not isinstance(data, of):
        return None, [ConfigIssue(file, 1, 1, "", _TOP[of])]
    return YamlSource(file, data, text, root, frozenset(builder.broken)), in_file_order(builder.mistakes)


def load(path: Path, model: type[M], context: object = None) -> tuple[M | None, list[ConfigIssue]]:
    """`read` and `check` in one: the model, or None with every mistake of the file in file order."""
    source, mistakes = read(path)
    if source is None:
        return None, mistakes
    value, more = source.check(model, context)
    every = in_file_order([*mistakes, *more])
    return (None if every else value), every


def _compose(text: str) -> Node | None:
    yaml = YAML(typ="safe", pure=True)
    yaml.composer.warn_double_anchors = False  # YAML allows it: the later one counts from there on
    root: Node | None = yaml.compose(text)
    return root


def _syntax(file: str, error: YAMLError) -> ConfigIssue:
    mark = None
    problem = "it holds a character that YAML does not allow"
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        problem = str(error.problem or error.context)
    if "'\\t'" in problem:
        problem = "a tab where spaces belong"
    elif problem.startswith("mapping values are not allowed"):
        problem = "a second ': ' on one line, or a wrong indentation; put quotes around a value that holds ': '"
    elif problem == "but found another document":
        problem = "a second document ('---'); one file holds one"
    elif "<block" in problem:
        problem = "a line that is indented more or less than its neighbours"
    problem = problem.replace("'<stream end>'", "the end of the file")
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
    return ConfigIssue(file, line, column, "", f"not valid YAML: {problem}")


def _entries(node: MappingNode) -> dict[str, tuple[Node, Node]]:
    """Key text -> (key, value). The last of two equal keys wins; `<<` gives what is not set beside it."""
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


def _place(root: Node | None, loc: Loc) -> tuple[int, int]:
    """Line and column, from 1, of the deepest part of `loc` that stands in the file."""
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
    """Nodes -> plain data. What YAML allows and a configuration does not is noted as a mistake."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.mistakes: list[ConfigIssue] = []
        self.broken: set[Loc] = set()
        self._done: dict[int, Any] = {}
        self._open: set[int] = set()

    def value(self, node: Node, loc: Loc) -> Any:
        if id(node) in self._open:
            return self._broken(node, loc, "refers to itself")
        if id(node) not in self._done:
            self._open.add(id(node))
            self._done[id(node)] = self._fresh(node, loc)
            self._open.discard(id(node))
        return self._done[id(node)]

    def _fresh(self, node: Node, loc: Loc) -> Any:
        if isinstance(node, MappingNode):
            self._keys(node, loc)
            return {key: self.value(value, (*loc, key)) for key, (_, value) in _entries(node).items()}
        if isinstance(node, SequenceNode):
            return [self.value(item, (*loc, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, loc)

    def _keys(self, node: MappingNode, loc: Loc) -> None:
        first: dict[str, int] = {}
        for key, _ in node.value:
            if _is_merge(key):
                continue
            if not isinstance(key, ScalarNode):
                self._wrong(key, loc, "a key must be one plain word")
            elif key.value in first:
                where = first[key.value]
                self._wrong(key, (*loc, key.value), f"set twice, first on line {where}: keep one")
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
            return text
        if kind == "bool":
            return text.lower() == "true"
        if kind == "null":
            return None
        return self._broken(node, loc, "YAML tags ('!...') have no meaning here: remove it")

    def _broken(self, node: Node, loc: Loc, message: str) -> None:
        self.broken.add(loc)
        self._wrong(node, loc, message)

    def _wrong(self, node: Node, loc: Loc, message: str) -> None:
        mark = node.start_mark
        self.mistakes.append(ConfigIssue(self.file, mark.line + 1, mark.column + 1, field_path(loc), message))


def _whole(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        return int(text)
