"""Tools of the Responses API as chat tools, and the calls of a chat as calls of these tools."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

import orjson

from gateway.errors import InvalidRequest
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from gateway.protocol.body import Json

ToolKind = Literal["function", "custom", "tool_search"]

MAX_TOOLS = 1024
"""Largest number of tools of one request. OpenAI accepts 128."""
_MAX_NAME_CHARS = 64  # of a chat function
_VALID_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{_MAX_NAME_CHARS}}}")
_INVALID_CHARS = re.compile(r"[^A-Za-z0-9_-]")
_DIGEST_CHARS = 8
# Codex puts its own tools into this namespace. Their chat names are the plain ones.
_DEFAULT_NAMESPACE = "functions"
_CLIENT_TOOLS = frozenset({"function", "custom", "namespace"})
_SEARCH_PARAMETERS: Json = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
SEARCH_NAME = "tool_search"
"""The name and type of the tool with which Codex loads more tools."""
INPUT_FIELD = "input"
"""The only argument of the function that stands for a custom tool."""
_NO_PARAMETERS: Json = {"type": "object", "properties": {}}
_INPUT_PARAMETERS: Json = {
    "type": "object",
    "properties": {INPUT_FIELD: {"type": "string", "description": "The tool's input, as plain text."}},
    "required": [INPUT_FIELD],
    "additionalProperties": False,
}
_INPUT_BYTES, _NO_PARAMETERS_BYTES = (len(orjson.dumps(schema)) for schema in (_INPUT_PARAMETERS, _NO_PARAMETERS))


class CalledTool(Record, frozen=True):
    """A tool that the client runs, as the client declared it."""

    kind: ToolKind
    name: str
    namespace: str | None = None


def chat_name(name: str, namespace: str | None) -> str:
    """Return the name of a tool in a chat: with its namespace, and with at most 64 characters."""
    joined = name
    if namespace is not None and namespace != _DEFAULT_NAMESPACE:
        joined = f"{namespace}{'' if namespace.endswith('__') else '__'}{name}"
    return joined if _VALID_NAME.fullmatch(joined) else _hashed(joined, name, namespace)


def _hashed(joined: str, name: str, namespace: str | None) -> str:
    digest = sha256(f"{namespace}\0{name}".encode()).hexdigest()[:_DIGEST_CHARS]
    return f"{_INVALID_CHARS.sub('_', joined[: _MAX_NAME_CHARS - _DIGEST_CHARS - 1])}_{digest}"


class Toolbox:
    """The tools of one request."""

    def __init__(self) -> None:
        self.chat_tools: dict[str, Json] = {}  # by their chat names
        self.declared: list[Json] = []  # of the request's `tools`, those that the model gets
        self.namespaces: set[str] = set()
        self.added_bytes = 0  # of names and schemas that the request lacks and the chat has
        self._called: dict[str, CalledTool] = {}
        self._chat_names: dict[tuple[str, str | None], str] = {}

    def declare(self, tools: list[Any]) -> None:
        """Add the tools of the request's `tools`. Raises InvalidRequest."""
        self.declared += self.add(tools, "tools")

    def add(self, tools: list[Any], at: str) -> list[Json]:
        """Add tools. Return those that the model gets, with all fields. Raises InvalidRequest.

        Codex sends hosted tools without being asked to. Beside tools that the client runs, they are left out.
        """
        kinds = [tool.get("type") if isinstance(tool, dict) else None for tool in tools]
        has_client_tools = not _CLIENT_TOOLS.isdisjoint(kind for kind in kinds if isinstance(kind, str))
        added: list[Json] = []
        for index, (kind, tool) in enumerate(zip(kinds, tools, strict=True)):
            path = f"{at}[{index}]"
            if not isinstance(tool, dict) or not isinstance(kind, str):
                raise InvalidRequest(f"'{path}.type' is required: a string such as 'function'.", param=f"{path}.type")
            if kind == "namespace":
                added.append(self._add_namespace(tool, path))
            elif kind in ("function", "custom"):
                added.append(self._add_called(tool, path, None, ""))
            elif kind == SEARCH_NAME and tool.get("execution") == "client":
                self._add_search(tool, path)
                added.append(tool)
            elif not (has_client_tools and _is_optional(tool)):
                raise InvalidRequest(
                    f"'{path}.type': the gateway does not run '{kind}' tools. Send tools of type function, custom or "
                    "namespace, which your client runs.",
                    param=f"{path}.type",
                )
        return added

    def name_of(self, name: str, namespace: str | None = None) -> str:
        """Return the chat name of a tool, whether or not it was declared."""
        return self._chat_names.get((name, namespace)) or chat_name(name, namespace)

    def is_declared(self, name: str, namespace: str | None = None) -> bool:
        return (name, namespace) in self._chat_names

    def called(self, name: str) -> CalledTool:
        """Return the tool of a call by its chat name. A name that the model made up is a function's."""
        return self._called.get(name) or CalledTool("function", name)

    def _add_namespace(self, tool: Json, path: str) -> Json:
        namespace = _text(tool, "name", path)
        self.namespaces.add(namespace)
        tools = tool.get("tools")
        if not isinstance(tools, list) or not tools:
            text = f"'{path}.tools' is required: a list of function and custom tools."
            raise InvalidRequest(text, param=f"{path}.tools")
        description = tool.get("description")
        added: list[Json] = []
        for index, part in enumerate(tools):
            at = f"{path}.tools[{index}]"
            if not isinstance(part, dict) or part.get("type") not in ("function", "custom"):
                text = f"'{at}.type': a namespace contains tools of type function and custom."
                raise InvalidRequest(text, param=f"{at}.type")
            about = description if index == 0 and isinstance(description, str) else ""
            added.append(self._add_called(part, at, namespace, about))
        return {**tool, "description": description if isinstance(description, str) else "", "tools": added}

    def _add_called(self, tool: Json, path: str, namespace: str | None, about: str) -> Json:
        name = _text(tool, "name", path)
        description = tool.get("description")
        if namespace is not None:
            self.added_bytes += _MAX_NAME_CHARS
        texts = [about, description if isinstance(description, str) else ""]
        function: Json = {}
        if tool["type"] == "custom":
            texts.append(_grammar(tool.get("format")))
            function["parameters"] = _INPUT_PARAMETERS
            self.added_bytes += _INPUT_BYTES
            complete = tool
            called = CalledTool("custom", name, namespace)
        else:
            parameters, strict = tool.get("parameters"), tool.get("strict")
            if parameters is not None and not isinstance(parameters, dict):
                text = f"'{path}.parameters' must be a JSON schema: an object."
                raise InvalidRequest(text, param=f"{path}.parameters")
            function["parameters"] = parameters or _NO_PARAMETERS
            if not parameters:
                self.added_bytes += _NO_PARAMETERS_BYTES
            if isinstance(strict, bool):
                function["strict"] = strict
            complete = {"description": None, **tool, "parameters": parameters, "strict": bool(strict)}
            called = CalledTool("function", name, namespace)
        if text := "\n\n".join(filter(None, texts)):
            function["description"] = text
        self._put(called, function)
        return complete

    def _add_search(self, tool: Json, path: str) -> None:
        parameters, description = tool.get("parameters"), tool.get("description")
        if parameters is not None and not isinstance(parameters, dict):
            text = f"'{path}.parameters' must be a JSON schema: an object."
            raise InvalidRequest(text, param=f"{path}.parameters")
        function: Json = {"parameters": parameters or _SEARCH_PARAMETERS}
        if isinstance(description, str):
            function["description"] = description
        self._put(CalledTool("tool_search", SEARCH_NAME), function)

    def _put(self, called: CalledTool, function: Json) -> None:
        identity = (called.name, called.namespace)
        name = chat_name(*identity)
        if (other := self._called.get(name)) is not None and (other.name, other.namespace) != identity:
            name = _hashed(name, *identity)
        if len(self._called) == MAX_TOOLS and name not in self._called:
            raise InvalidRequest(f"The request has more than {MAX_TOOLS} tools, the limit.", param="tools")
        self._called[name], self._chat_names[identity] = called, name
        self.chat_tools[name] = {"type": "function", "function": {"name": name, **function}}


def _is_optional(tool: Json) -> bool:
    """Return whether a hosted tool is one that Codex sends by default."""
    return tool["type"] == "image_generation" or (tool["type"] == "web_search" and "external_web_access" in tool)


def _text(tool: Json, field: str, path: str) -> str:
    value = tool.get(field)
    if not isinstance(value, str) or not value:
        at = f"{path}.{field}"
        hint = " Unlike in chat completions, a tool has no 'function' object." if "function" in tool else ""
        raise InvalidRequest(f"'{at}' is required: a string.{hint}", param=at)
    return value


def _grammar(form: Any) -> str:
    if not isinstance(form, dict) or form.get("type") != "grammar":
        return ""
    return f"The input must match this {form.get('syntax', 'lark')} grammar:\n{form.get('definition', '')}"
