"""Input items of the Responses API as messages of a chat."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import orjson

from gateway.errors import InvalidRequest, NotFound
from gateway.protocol.responses.tools import INPUT_FIELD, SEARCH_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.protocol.body import Json
    from gateway.protocol.responses.tools import Toolbox

_RULES = ("system", "developer")
_ROLES = ("user", "assistant", *_RULES)
# Calls of hosted tools that another service ran. Chats have no form for them, and the next message has their result.
_HOSTED_CALLS = frozenset(
    {"web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "mcp_list_tools"}
)
TEXT_TYPES = ("input_text", "output_text", "summary_text", "reasoning_text")
_REFERENCE = "item_reference"
MAX_ID_CHARS = 64
"""Longest part of an id in an error."""
_ENCODED = "gkt1."  # the beginning of `encrypted_content` that the gateway wrote


def is_reference(item: Json) -> bool:
    """Return whether an item stands for an item of a stored response. Its type may be missing."""
    kind = item.get("type")
    return kind == _REFERENCE or (kind is None and "id" in item and "role" not in item)


def unknown_item(item_id: object, param: str = "input") -> NotFound:
    """Return the error for a reference to an item that is not stored."""
    return NotFound(
        f"Item '{str(item_id)[:MAX_ID_CHARS]}' not found: no stored response has it. Send the item itself, as clients "
        "do with 'store': false.",
        param=param,
    )


def encode_reasoning(text: str) -> str:
    """Return reasoning as `encrypted_content`. It is encoded, not encrypted: the client has its text anyway."""
    return _ENCODED + base64.b64encode(text.encode()).decode()


def add_tools(items: Sequence[Json], toolbox: Toolbox, first: int = 0) -> None:
    """Add the tools of input items to the toolbox. The first item has the index `first` in `input`."""
    for index, item in enumerate(items, first):
        if item.get("type") in ("additional_tools", "tool_search_output"):
            tools, at = item.get("tools"), f"input[{index}].tools"
            if not isinstance(tools, list):
                raise InvalidRequest(f"'{at}' is required: a list of tools.", param=at)
            toolbox.add(tools, at)


@dataclass(slots=True)
class _Turn:
    """A message of the chat. Outputs of its calls follow it directly, as engines require."""

    message: Json
    outputs: list[Json] = field(default_factory=list)
    images: list[Json] = field(default_factory=list)  # parts of the outputs that tool messages cannot have
    reasoning: list[str] = field(default_factory=list)


class ChatMessages:
    """Converts input items to messages, in order."""

    def __init__(self, instructions: str | None, toolbox: Toolbox) -> None:
        self.non_text_parts = 0
        self._toolbox = toolbox
        self._turns: list[_Turn] = []
        self._calls: dict[str, _Turn] = {}
        self._rules: list[str] = []  # the texts of the system message at the beginning
        self._reasoning: list[str] = []
        if instructions:
            self._rules.append(instructions)

    def add(self, items: Sequence[Json], first: int = 0) -> None:
        """Add items. The first has the index `first` in `input`. Raises InvalidRequest with the path."""
        for index, item in enumerate(items, first):
            self._add(item, f"input[{index}]")

    def messages(self) -> list[Json]:
        """Return the chat's messages."""
        messages: list[Json] = []
        if self._rules:
            messages.append({"role": "system", "content": "\n\n".join(self._rules)})
        for turn in self._turns:
            if turn.reasoning:
                turn.message["reasoning_content"] = "".join(turn.reasoning)
            messages += (turn.message, *turn.outputs)
            if turn.images:
                messages.append({"role": "user", "content": turn.images})
        return messages

    def _add(self, item: Json, at: str) -> None:
        kind = item.get("type")
        if kind is None:
            kind = _REFERENCE if is_reference(item) else "message"
        if not isinstance(kind, str):
            raise InvalidRequest(f"'{at}.type' must be a string.", param=f"{at}.type")
        if kind in _HOSTED_CALLS or kind == "additional_tools":  # `add_tools` has read the tools
            return
        if (add := self._ADDERS.get(kind)) is None:
            supported = ", ".join(self._ADDERS)
            text = f"'{at}.type': '{kind}' is not supported. Use {supported} or additional_tools."
            raise InvalidRequest(text, param=f"{at}.type")
        add(self, item, at)

    def _add_function_call(self, item: Json, at: str) -> None:
        self._add_call(item, at, _required(item, "arguments", at, may_be_empty=True) or "{}")

    def _add_custom_call(self, item: Json, at: str) -> None:
        text = _required(item, "input", at, may_be_empty=True)
        self._add_call(item, at, orjson.dumps({INPUT_FIELD: text}).decode())

    def _add_search(self, item: Json, at: str) -> None:
        if item.get("call_id") is not None:  # null: the service searched
            arguments = orjson.dumps(item.get("arguments") or {}).decode()
            self._add_call({**item, "name": SEARCH_NAME}, at, arguments)

    def _add_found(self, item: Json, at: str) -> None:
        if item.get("call_id") is not None:
            names = ", ".join(self._loaded(item["tools"]))
            self._add_output({**item, "output": f"Loaded tools: {names or 'none'}"}, at)

    def _read_reasoning(self, item: Json, at: str) -> None:
        if text := _reasoning_text(item, at):
            self._reasoning.append(text)

    def _reject_reference(self, item: Json, at: str) -> None:
        raise unknown_item(item.get("id"), f"{at}.id")

    def _loaded(self, tools: list[Any]) -> list[str]:
        names: list[str] = []
        for tool in tools:
            if tool["type"] == "namespace":
                names += [self._toolbox.name_of(part["name"], tool["name"]) for part in tool["tools"]]
            elif tool["type"] in ("function", "custom"):
                names.append(self._toolbox.name_of(tool["name"]))
        return names

    def _add_message(self, item: Json, at: str) -> None:
        role = item.get("role")
        if role not in _ROLES:
            text = f"'{at}.role': use one of {', '.join(_ROLES)}."
            raise InvalidRequest(text, param=f"{at}.role")
        if role == "assistant":
            self._add_answer(item, at)
            return
        content = self._content(item.get("content"), f"{at}.content")
        if role == "user":
            self._reasoning = []
            self._turns.append(_Turn({"role": "user", "content": content}))
            return
        # Templates accept one system message, at the beginning.
        texts = [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]
        if not self._turns and (isinstance(content, str) or len(texts) == len(content)):
            self._rules += texts
        else:
            self._turns.append(_Turn({"role": "system", "content": content}))

    def _add_answer(self, item: Json, at: str) -> None:
        content, text, refusal = item.get("content"), "", ""
        if isinstance(content, str):
            text = content
        else:
            for index, part in enumerate(_list(content, f"{at}.content")):
                path = f"{at}.content[{index}]"
                kind = _object(part, path).get("type")
                if kind == "refusal":
                    refusal += _required(part, "refusal", path, may_be_empty=True)
                elif kind in TEXT_TYPES:
                    text += _required(part, "text", path, may_be_empty=True)
                else:
                    raise _no_such_part(path, kind, "output_text and refusal")
        message: Json = {"role": "assistant", "content": text}
        if refusal:
            message["refusal"] = refusal
        last = self._turns[-1] if self._turns else None
        if last is not None and "tool_calls" in last.message and not last.outputs and last.message["content"] is None:
            last.message.update(message)
        else:
            self._turns.append(_Turn(message))
        self._add_reasoning()

    def _add_call(self, item: Json, at: str, arguments: str) -> None:
        name, call_id = _required(item, "name", at), _required(item, "call_id", at)
        namespace = item.get("namespace")
        chat_name = self._toolbox.name_of(name, namespace if isinstance(namespace, str) else None)
        last = self._turns[-1] if self._turns else None
        if last is None or last.message["role"] != "assistant" or last.outputs:
            last = _Turn({"role": "assistant", "content": None})
            self._turns.append(last)
        call = {"id": call_id, "type": "function", "function": {"name": chat_name, "arguments": arguments}}
        last.message.setdefault("tool_calls", []).append(call)
        self._calls[call_id] = last
        self._add_reasoning()

    def _add_reasoning(self) -> None:
        """Move the reasoning that was read to the message that it led to."""
        if self._reasoning:
            self._turns[-1].reasoning += self._reasoning
            self._reasoning = []

    def _add_output(self, item: Json, at: str) -> None:
        call_id = _required(item, "call_id", at)
        if (turn := self._calls.get(call_id)) is None:
            raise InvalidRequest(f"No tool call found for function call output with call_id {call_id}.", param="input")
        output = item.get("output")
        if not isinstance(output, str):
            content = self._content(output, f"{at}.output")
            parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
            images = [part for part in parts if part["type"] != "text"]
            texts = [part["text"] for part in parts if part["type"] == "text"]
            if images:
                turn.images += [{"type": "text", "text": f"Output of call {call_id}:"}, *images]
                texts.append("The next user message has the rest of this output.")
            output = "\n".join(texts)
        turn.outputs.append({"role": "tool", "tool_call_id": call_id, "content": output})

    def _content(self, content: Any, at: str) -> str | list[Json]:
        """Return content as text, or as a chat's content parts."""
        if isinstance(content, str):
            return content
        parts = [self._part(part, f"{at}[{index}]") for index, part in enumerate(_list(content, at))]
        if len(parts) <= 1 and all(part["type"] == "text" for part in parts):
            return parts[0]["text"] if parts else ""  # chats reject an empty list
        return parts

    def _part(self, part: Any, at: str) -> Json:
        kind = _object(part, at).get("type")
        if kind in TEXT_TYPES:
            return {"type": "text", "text": _required(part, "text", at, may_be_empty=True)}
        self.non_text_parts += 1
        if kind == "input_image":
            image: Json = {"url": _inline(part, "image_url", at, "an http(s) or data URL")}
            if (detail := part.get("detail")) not in (None, "auto"):
                image["detail"] = "high" if detail == "original" else detail
            return {"type": "image_url", "image_url": image}
        if kind == "input_file":
            file: Json = {"file_data": _inline(part, "file_data", at, "a data URL")}
            if isinstance(name := part.get("filename"), str):
                file["filename"] = name
            return {"type": "file", "file": file}
        if kind == "input_audio":
            return {"type": "input_audio", "input_audio": part.get("input_audio")}
        raise _no_such_part(at, kind, "input_text, input_image and input_file")

    _ADDERS: ClassVar[dict[str, Callable[[ChatMessages, Json, str], None]]] = {
        "message": _add_message,
        "function_call": _add_function_call,
        "function_call_output": _add_output,
        "custom_tool_call": _add_custom_call,
        "custom_tool_call_output": _add_output,
        "tool_search_call": _add_search,
        "tool_search_output": _add_found,
        "reasoning": _read_reasoning,
        _REFERENCE: _reject_reference,
    }


def _reasoning_text(item: Json, at: str) -> str:
    """Return the text of a reasoning item. Content that another service encrypted cannot be read.

    Raises InvalidRequest for a summary that OpenAI's API rejects, also where another field has the text.
    """
    path = f"{at}.summary"
    for part in _list(item.get("summary") or [], path):
        if _object(part, path).get("type") not in TEXT_TYPES:
            raise InvalidRequest(f"'{path}.type' must be one of {', '.join(TEXT_TYPES)}.", param=f"{path}.type")
    encrypted = item.get("encrypted_content")
    if isinstance(encrypted, str) and encrypted.startswith(_ENCODED):
        try:
            return base64.b64decode(encrypted[len(_ENCODED) :], validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            path = f"{at}.encrypted_content"
            raise InvalidRequest(f"'{path}' was changed. Send it as you got it.", param=path) from None
    for name in ("content", "summary"):
        if parts := item.get(name):
            path = f"{at}.{name}"
            texts = [_required(_object(part, path), "text", path, may_be_empty=True) for part in _list(parts, path)]
            return "\n\n".join(texts)
    return ""


def _required(item: Json, name: str, at: str, *, may_be_empty: bool = False) -> str:
    value = item.get(name)
    if not isinstance(value, str) or not (value or may_be_empty):
        raise InvalidRequest(f"'{at}.{name}' is required: a string.", param=f"{at}.{name}")
    return value


def _list(value: Any, at: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRequest(f"'{at}' is required: a string or a list.", param=at)
    return value


def _object(value: Any, at: str) -> Json:
    if not isinstance(value, dict):
        raise InvalidRequest(f"'{at}' must be an object.", param=at)
    return value


def _inline(part: Json, name: str, at: str, form: str) -> str:
    """Return data that the part contains. The gateway stores no files and fetches none."""
    value = part.get(name)
    if isinstance(value, str) and value:
        return value
    other = next((one for one in ("file_id", "file_url") if part.get(one) is not None), name)
    raise InvalidRequest(f"'{at}.{other}': the gateway reads no files. Send '{name}': {form}.", param=f"{at}.{other}")


def _no_such_part(at: str, kind: Any, supported: str) -> InvalidRequest:
    text = f"'{at}.type': '{kind}' is not supported. Supported values are {supported}."
    return InvalidRequest(text, param=f"{at}.type")
