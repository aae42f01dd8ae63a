"""Tools over a JSON state, the calls of a model, and tasks that are scored by the final state."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gateway.evaluation.questions.problem_stories import ProblemRandom

State: TypeAlias = "dict[str, Any]"
"""JSON values. Tools return a new state and leave the old one unchanged."""
_MAX_ARGUMENT_CHARS = 20_000


class ToolError(Exception):
    """A call that a tool rejects. The message is the tool's output for the model."""


class Parameter(NamedTuple):
    """A required parameter of a tool."""

    name: str
    type: Literal["string", "number"]
    description: str


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool: `run` returns the next state and the output, or raises ToolError."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    run: Callable[[State, Mapping[str, Any]], tuple[State, str]]

    @property
    def schema(self) -> dict[str, Any]:
        """Return the tool as in a chat completions request."""
        properties = {one.name: {"type": one.type, "description": one.description} for one in self.parameters}
        parameters = {"type": "object", "properties": properties, "required": list(properties)}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


class ToolCall(NamedTuple):
    """A call with its arguments as JSON text, as engines return it."""

    name: str
    arguments: str


class ToolResult(NamedTuple):
    """The state after a call, and its output. A failed call leaves the state unchanged."""

    state: State
    output: str
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolTask:
    """A task: `reference` leads from `state` to `expected`. Other calls that lead there are right, too."""

    id: str
    kind: str
    request: str
    state: State
    expected: State
    reference: tuple[ToolCall, ...]


class GeneratedTask(NamedTuple):
    """A generated task without its id and kind."""

    request: str
    state: State
    expected: State
    reference: tuple[ToolCall, ...]


@dataclass(frozen=True, slots=True)
class TaskKind:
    """A kind of tasks.

    Attributes:
        tools: The tools of its tasks.
        stories: Generators of its tasks; None if the random numbers make no valid task.
        outcome: Return the part of a state that decides the score, in one form for equal results.
    """

    tools: tuple[Tool, ...]
    stories: tuple[Callable[[ProblemRandom], GeneratedTask | None], ...]
    outcome: Callable[[State], object]


def call(name: str, /, **arguments: object) -> ToolCall:
    """Return a call of a reference solution."""
    return ToolCall(name, orjson.dumps(arguments).decode())


def apply(tools: Sequence[Tool], state: State, made: ToolCall) -> ToolResult:
    """Run a call. An invalid call and a tool's error are outputs that name the cause."""
    try:
        tool = next((one for one in tools if one.name == made.name), None)
        if tool is None:
            raise ToolError(f"there is no tool {made.name!r}; tools: {_listed(one.name for one in tools)}")
        after, output = tool.run(state, _arguments(tool, made.arguments))
    except ToolError as error:
        return ToolResult(state, f"Error: {error}", failed=True)
    return ToolResult(after, output)


def _arguments(tool: Tool, text: str) -> dict[str, Any]:
    if len(text) > _MAX_ARGUMENT_CHARS:
        raise ToolError("the arguments are too long")
    try:
        given = orjson.loads(text or "{}")
    except orjson.JSONDecodeError as error:
        raise ToolError("the arguments are not valid JSON") from error
    if not isinstance(given, dict):
        raise ToolError("the arguments must be a JSON object")
    names = [one.name for one in tool.parameters]
    if missing := [name for name in names if name not in given]:
        raise ToolError(f"missing: {_listed(missing)}")
    if unknown := [name for name in given if name not in names]:
        raise ToolError(f"unknown: {_listed(unknown)}; {tool.name} has {_listed(names)}")
    return {one.name: _value(one, given[one.name]) for one in tool.parameters}


def _value(parameter: Parameter, value: object) -> object:
    if parameter.type == "number":
        return number(parameter.name, value)
    if not isinstance(value, str):
        raise ToolError(f"{parameter.name} must be a string")
    return value


def number(name: str, value: object) -> int | float:
    """Return a number, also of a string with a number. A whole number is an int. Raises ToolError."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise InvalidOperation
        found = Decimal(str(value).strip())
        if not found.is_finite() or abs(found.adjusted()) > 15:
            raise InvalidOperation
    except InvalidOperation:
        raise ToolError(f"{name} must be a number") from None
    return int(found) if found == found.to_integral_value() else float(found)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
