"""Convert Anthropic's tools and its choice of tools to those of chat completions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec import Struct

from gateway.errors import InvalidRequest
from gateway.protocol.anthropic.blocks import Json

if TYPE_CHECKING:
    from collections.abc import Sequence

CLIENT_TOOL_PATTERN = r"^(bash|text_editor|computer|memory)_[0-9]{8}$"
"""Types of tools whose schema only Anthropic's models know, and that the caller runs. Other types run at Anthropic."""
_CLIENT_TOOL = re.compile(CLIENT_TOOL_PATTERN)
_EMPTY_SCHEMA: Json = {"type": "object", "properties": {}}


class AnthropicTool(Struct, frozen=True):
    """A tool of the caller, or one that Anthropic defines."""

    type: str | None = None
    name: str | None = None
    description: str | None = None
    input_schema: Json | None = None
    strict: bool | None = None
    cache_control: Json | None = None


class AnthropicToolChoice(Struct, frozen=True):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


def chat_tools(tools: Sequence[AnthropicTool], raw_tools: Sequence[Json]) -> list[Json]:
    """Return the tools of a chat. Tools that only Anthropic's models know stay as they are.

    Raises InvalidRequest for tools that run at Anthropic.
    """
    converted = []
    for index, (tool, raw) in enumerate(zip(tools, raw_tools, strict=True)):
        if tool.type in (None, "custom"):
            converted.append(_function(tool, index))
        elif _CLIENT_TOOL.fullmatch(tool.type or ""):
            converted.append(raw)
        elif tool.type == "function":
            at = f"tools[{index}].type"
            raise InvalidRequest(
                f"'{at}': tools of this type belong to /v1/chat/completions. Send 'name' and 'input_schema'.", param=at
            )
        else:
            at = f"tools[{index}].type"
            raise InvalidRequest(
                f"'{at}': the gateway does not support '{tool.type}', which Anthropic runs and bills. Remove it, or "
                "define a tool with 'input_schema' that the client runs.",
                param=at,
            )
    return converted


def first_foreign_tool(tools: Sequence[Json]) -> tuple[int, str] | None:
    """Return the index and the type of the first tool that only Anthropic's models know."""
    return next(((index, tool["type"]) for index, tool in enumerate(tools) if tool["type"] != "function"), None)


def _function(tool: AnthropicTool, index: int) -> Json:
    if not tool.name:
        raise InvalidRequest(f"'tools[{index}].name' is required.", param=f"tools[{index}].name")
    if tool.input_schema is None:
        at = f"tools[{index}].input_schema"
        raise InvalidRequest(f"'{at}' is required: a JSON schema such as {{'type': 'object'}}.", param=at)
    function: Json = {"name": tool.name, "parameters": tool.input_schema or _EMPTY_SCHEMA}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    converted: Json = {"type": "function", "function": function}
    if tool.cache_control is not None:
        converted["cache_control"] = tool.cache_control
    return converted


def chat_tool_choice(choice: AnthropicToolChoice) -> Json:
    """Return the fields `tool_choice` and `parallel_tool_calls` of a chat."""
    match choice.type:
        case "auto" | "none":
            fields: Json = {"tool_choice": choice.type}
        case "any":
            fields = {"tool_choice": "required"}
        case "tool" if choice.name:
            fields = {"tool_choice": {"type": "function", "function": {"name": choice.name}}}
        case "tool":
            raise InvalidRequest("'tool_choice.name' is required for the type 'tool'.", param="tool_choice.name")
        case _:
            at = "tool_choice.type"
            raise InvalidRequest(f"'{at}': there is no '{choice.type}'. Use auto, any, tool or none.", param=at)
    if choice.disable_parallel_tool_use:
        fields["parallel_tool_calls"] = False
    return fields
