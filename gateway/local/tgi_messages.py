"""The messages of chats, as text-generation-inference (TGI) reads and renders them."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from gateway.local import tgi_errors


class TgiFunction(msgspec.Struct, frozen=True):
    """The function of a tool or of a tool call. TGI takes `parameters` as an alias of `arguments`."""

    name: str
    arguments: Any = msgspec.UNSET
    parameters: Any = msgspec.UNSET
    description: str | None = None

    def __post_init__(self) -> None:
        if (self.arguments is msgspec.UNSET) == (self.parameters is msgspec.UNSET):
            raise ValueError("missing or duplicate field `arguments`")

    @property
    def schema(self) -> Any:
        """The value of `arguments` or `parameters`."""
        return self.parameters if self.arguments is msgspec.UNSET else self.arguments

    @property
    def as_json(self) -> dict[str, Any]:
        """The function as TGI serializes it: the arguments become a text."""
        arguments = orjson.dumps(self.schema).decode()
        return {"description": self.description, "name": self.name, "arguments": arguments}


class TgiToolCall(msgspec.Struct, frozen=True):
    """A tool call in a message."""

    id: str
    type: str
    function: TgiFunction


class TgiMessage(msgspec.Struct, frozen=True):
    """A message of a chat: a text, a list of chunks or, without either, tool calls. Only `text` chunks are supported.

    Like TGI, a message with neither content nor a list of tool calls is rejected.
    """

    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: Any = None

    def __post_init__(self) -> None:
        if self.content is None:
            try:
                self._calls()
            except msgspec.ValidationError:
                raise ValueError("data did not match any variant of untagged enum MessageBody") from None

    def _calls(self) -> list[TgiToolCall]:
        return msgspec.convert(self.tool_calls, list[TgiToolCall])

    @property
    def text(self) -> str:
        """The content as one string, joined as TGI joins it. Raises TgiError 422 for an image."""
        if isinstance(self.content, str):
            return self.content
        if self.content is None:
            calls = [{"id": call.id, "type": call.type, "function": call.function.as_json} for call in self._calls()]
            return orjson.dumps(calls).decode()
        if any(chunk.get("type") != "text" for chunk in self.content):
            raise tgi_errors.invalid("only text can be read by this model")
        return "".join(str(chunk.get("text", "")) for chunk in self.content)
