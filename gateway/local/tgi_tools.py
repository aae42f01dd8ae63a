"""Tools of chats, with the behavior of text-generation-inference (TGI): a call is generated under a JSON schema.

TGI adds the tool `no_tool`, unless a call is required. If the model chooses it, the chat is answered without tools.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import orjson

from gateway.local import tgi_errors
from gateway.local.tgi_messages import TgiFunction
from gateway.local.tgi_request import TgiGrammar

if TYPE_CHECKING:
    from collections.abc import Sequence

TOOL_PROMPT = (
    "\nGiven the functions available, please respond with a JSON for a function call with its proper arguments that "
    "best answers the given prompt. Respond in the format {name: function name, parameters: dictionary of argument "
    "name and its value}.Do not use variables.\n"
)
_NO_TOOL = "no_tool"


class TgiTool(msgspec.Struct, frozen=True):
    """A tool of a chat."""

    type: str
    function: TgiFunction


class _Named(msgspec.Struct, frozen=True):
    name: str


class _TypedChoice(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    function: _Named


_NO_TOOL_FUNCTION = TgiFunction(
    _NO_TOOL, {"type": "object"}, description="Open ended response with no specific tool selected"
)


class ToolPlan(NamedTuple):
    """The grammar of a call, and the text that follows the last message."""

    grammar: TgiGrammar
    prompt: str


def check_choice(choice: Any) -> None:
    """Raise msgspec.ValidationError for a `tool_choice` that TGI cannot read."""
    msgspec.convert(choice, str | _TypedChoice | None)


def plan_tools(tools: Sequence[TgiTool], choice: Any, tool_prompt: str | None) -> ToolPlan | None:
    """Return how a call is generated; None if the choice is `none`. Raises TgiError 422 for an unknown function."""
    name = choice["function"]["name"] if isinstance(choice, dict) else choice
    match name:
        case "none":
            return None
        case None | "auto":
            offered = [*tools, TgiTool("function", _NO_TOOL_FUNCTION)]
        case "required":
            offered = list(tools)
        case _:
            offered = [tool for tool in tools if tool.function.name == name][:1]
            if not offered:
                raise tgi_errors.failure("tool_error", f"Tool with name {name} not found")
    if not offered:
        return None
    calls = [_call_schema(tool.function) for tool in offered]
    schema = {
        "type": "object",
        "properties": {"function": {"anyOf": calls}},
        "required": ["function"],
        "additionalProperties": False,  # as in TGI, whose expression of a schema allows no others
    }
    listed = orjson.dumps([{"type": tool.type, "function": tool.function.as_json} for tool in offered]).decode()
    return ToolPlan(TgiGrammar("json", schema), f"\n---\n{listed}\n{tool_prompt or TOOL_PROMPT}")


def _call_schema(function: TgiFunction) -> dict[str, Any]:
    schema = function.schema if isinstance(function.schema, dict) else {}
    required = schema.get("required")
    return {
        "type": "object",
        "properties": {"_name": {"type": "string", "const": function.name}, **(schema.get("properties") or {})},
        "required": ["_name", *(required if isinstance(required, list) else ())],
        "additionalProperties": False,
    }


def parse_call(text: str) -> dict[str, Any] | None:
    """Return the tool call in a generated text; None for `no_tool`. Raises TgiError 422 if the text is no call."""
    try:
        arguments = dict(orjson.loads(text)["function"])
        name = arguments.pop("_name")
    except (ValueError, KeyError, TypeError) as error:
        raise tgi_errors.failure("tool_error", f'Failed to parse generated text: {error} "{text}"') from error
    if name == _NO_TOOL:
        return None
    return {"id": "0", "type": "function", "function": TgiFunction(name, arguments).as_json}


class CallPart(NamedTuple):
    """A part of a streamed tool call: `name` is in the first part only."""

    name: str | None
    arguments: str

    @property
    def is_no_tool(self) -> bool:
        return self.name == _NO_TOOL

    @property
    def delta(self) -> dict[str, Any]:
        """The call as in the delta of a chunk."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"index": 0, "id": "0", "type": "function", "function": function}


class CallParser:
    """Reads a call token by token. Like TGI's, it returns no part for the tokens before the name and after the end."""

    def __init__(self) -> None:
        self._text = ""
        self._named = False

    def feed(self, token: str) -> CallPart | None:
        """Return the part of the call that a token adds; None if there is none."""
        self._text += token
        if not self._named:
            name = _name_in(self._text.rstrip(" \n\t\r,}") + "}}")
            if name is None:
                return None
            self._named = True
            return CallPart(name, "{")
        if _name_in(self._text) is None:
            return CallPart(None, token)
        self._named = False
        return CallPart(None, token.rstrip().removesuffix("}"))


def _name_in(text: str) -> str | None:
    try:
        name = orjson.loads(text)["function"]["_name"]
    except (ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) else None
