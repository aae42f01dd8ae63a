"""Convert the system prompt and the messages of Anthropic's API to the messages of a chat."""

from __future__ import annotations

from itertools import chain, groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import orjson

from gateway.errors import InvalidRequest
from gateway.protocol.anthropic.blocks import (
    DocumentBlock,
    ImageBlock,
    RedactedThinkingBlock,
    SearchResultBlock,
    SoleTextBlock,
    SystemBlock,
    TextBlock,
    ThinkingBlock,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from gateway.protocol.messages import TOOL_FAILED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.protocol.anthropic.blocks import BlockSource, ContentBlock, Json, ReadableBlock

# Claude Code begins its system prompt with a block that differs in each request. It would defeat every prompt cache.
_BILLING = "x-anthropic-billing-header:"
UNPARSED = "INVALID_JSON"
"""The only key of a tool's input that the model did not write as a JSON object. The value is the model's text."""
_GAP = "\n\n"  # between texts that Anthropic's models read as separate blocks


class MessagesChat:
    """The messages of one chat, built from Anthropic's.

    Attributes:
        non_text_parts: the number of images.
        is_marked: whether a message has fields that only some engines read: `cache_control`, `reasoning_content` and
            `thinking_blocks`.
    """

    def __init__(self) -> None:
        self._messages: list[Json] = []
        self.non_text_parts = 0
        self.is_marked = False

    def messages(self) -> list[Json]:
        """Return the chat. Anthropic's models read consecutive messages of the user, or of the assistant, as one."""
        merged: list[Json] = []
        for role, group in groupby(self._messages, itemgetter("role")):
            messages = list(group)
            if len(messages) == 1 or role not in ("user", "assistant"):
                merged += messages
            else:
                merged.append(_merged(role, messages))
        return merged

    def add_system(self, system: str | Sequence[SoleTextBlock]) -> None:
        """Add the system prompt."""
        if isinstance(system, str):
            content: str | list[Json] = system
        else:
            content = self._plain([block for block in system if not block.text.startswith(_BILLING)], _GAP)
        if content:
            self._messages.append({"role": "system", "content": content})

    def add(self, role: str, content: str | Sequence[ContentBlock], at: str) -> None:
        """Add a message. `at` is its path, for errors."""
        if role == "system":
            self._messages.append({"role": "system", "content": self._system_content(content, at)})
        elif isinstance(content, str):
            self._messages.append({"role": role, "content": content})
        elif role == "assistant":
            self._add_assistant(content, at)
        elif not content:
            raise InvalidRequest(f"'{at}.content' is an empty list. Send text or one block.", param=f"{at}.content")
        else:
            self._add_blocks(content, at)

    def _add_blocks(self, blocks: Sequence[ContentBlock], at: str) -> None:
        """Add a user's blocks. Results of tools come first: they must follow the assistant's message."""
        parts: list[Json] = []
        rules: list[Json] = []
        for index, block in enumerate(blocks):
            here = f"{at}.content[{index}]"
            if isinstance(block, ToolResultBlock):
                images = self._add_tool_result(block, here)
                parts += images
            elif isinstance(block, SystemBlock):
                rules.append({"role": "system", "content": self._plain(block.content, _GAP)})
            elif isinstance(block, ThinkingBlock | RedactedThinkingBlock | ToolUseBlock):
                raise InvalidRequest(f"'{here}.type': only assistant messages have such blocks.", param=f"{here}.type")
            else:
                parts += self._readable(block, here)
        if parts:
            is_plain = len(parts) == 1 and parts[0].keys() == {"type", "text"}
            self._messages.append({"role": "user", "content": parts[0]["text"] if is_plain else parts})
        self._messages += rules

    def _add_tool_result(self, block: ToolResultBlock, at: str) -> list[Json]:
        """Add the result of a tool. Return its images, which a tool's message cannot have."""
        parts: list[Json] = []
        content = block.content
        if isinstance(content, str):
            parts.append({"type": "text", "text": content})
        else:
            for index, inner in enumerate(content or ()):
                parts += self._readable(inner, f"{at}.content[{index}]")
        texts = [part for part in parts if part["type"] == "text"]
        if block.is_error:
            texts.insert(0, {"type": "text", "text": TOOL_FAILED})
        message: Json = {"role": "tool", "tool_call_id": block.tool_use_id, "content": _joined(texts, "\n")}
        if block.cache_control is not None:
            message["cache_control"], self.is_marked = block.cache_control, True
        self._messages.append(message)
        return [part for part in parts if part["type"] != "text"]

    def _add_assistant(self, blocks: Sequence[ContentBlock], at: str) -> None:
        message: Json = {"role": "assistant", "content": None}
        texts: list[Json] = []
        calls: list[Json] = []
        thoughts: list[Json] = []
        for index, block in enumerate(blocks):
            match block:
                case TextBlock():
                    texts.append(self._text(block))
                case ToolUseBlock():
                    calls.append(self._tool_call(block))
                case ThinkingBlock():
                    thoughts.append({"type": "thinking", "thinking": block.thinking, "signature": block.signature})
                case RedactedThinkingBlock():
                    thoughts.append({"type": "redacted_thinking", "data": block.data})
                case _:
                    here = f"{at}.content[{index}]"
                    raise InvalidRequest(
                        f"'{here}.type': assistant messages cannot have such blocks.", param=f"{here}.type"
                    )
        if texts or not calls:
            message["content"] = _joined(texts, "")
        if calls:
            message["tool_calls"] = calls
        if thoughts:
            self.is_marked = True
            if reasoning := "".join(thought.get("thinking", "") for thought in thoughts):
                message["reasoning_content"] = reasoning
            message["thinking_blocks"] = thoughts
        self._messages.append(message)

    def _tool_call(self, block: ToolUseBlock) -> Json:
        given = block.input
        if isinstance(given, dict) and given.keys() == {UNPARSED} and isinstance(given[UNPARSED], str):
            arguments = given[UNPARSED]
        else:
            arguments = orjson.dumps(given).decode()
        call: Json = {
            "id": block.id,
            "type": "function",
            "function": {"name": block.name, "arguments": arguments},
        }
        return self._marked(call, block.cache_control)

    def _system_content(self, content: str | Sequence[ContentBlock], at: str) -> str | list[Json]:
        if isinstance(content, str):
            return content
        texts = [block for block in content if isinstance(block, TextBlock)]
        if len(texts) < len(content):
            raise InvalidRequest(f"'{at}.content': system messages can only have text.", param=f"{at}.content")
        return self._plain(texts, _GAP)

    def _readable(self, block: ReadableBlock, at: str) -> list[Json]:
        match block:
            case TextBlock():
                return [self._text(block)]
            case ImageBlock():
                self.non_text_parts += 1
                url = _image_url(block.source, f"{at}.source")
                return [self._marked({"type": "image_url", "image_url": {"url": url}}, block.cache_control)]
            case DocumentBlock():
                return self._document(block, f"{at}.source")
            case SearchResultBlock():
                lines = [block.title, block.source, *(text.text for text in block.content)]
                return [self._marked({"type": "text", "text": "\n".join(lines)}, block.cache_control)]
            case ToolReferenceBlock():
                return [self._marked({"type": "text", "text": block.tool_name}, block.cache_control)]

    def _document(self, block: DocumentBlock, at: str) -> list[Json]:
        """Return a document's text, after its title and its context."""
        source = block.source
        lead = [text for text in (block.title, block.context) if text]
        if source.type == "text" and source.data is not None:
            body = source.data
        elif source.type == "content" and isinstance(source.content, str):
            body = source.content
        elif source.type == "content" and isinstance(source.content, list):
            texts = [part.get("text") for part in source.content if part.get("type") == "text"]
            if len(texts) < len(source.content) or not all(isinstance(text, str) for text in texts):
                raise InvalidRequest(f"'{at}.content': documents can only have text blocks.", param=f"{at}.content")
            body = "\n".join(map(str, texts))
        else:
            raise InvalidRequest(
                f"'{at}.type': documents of type '{source.type}' are not supported. Send the document's text in "
                "'data', with the type 'text'.",
                param=f"{at}.type",
            )
        return [self._marked({"type": "text", "text": "\n".join([*lead, body])}, block.cache_control)]

    def _text(self, block: SoleTextBlock | TextBlock) -> Json:
        return self._marked({"type": "text", "text": block.text}, block.cache_control)

    def _marked(self, part: Json, cache_control: Json | None) -> Json:
        if cache_control is not None:
            part["cache_control"], self.is_marked = cache_control, True
        return part

    def _plain(self, blocks: Sequence[SoleTextBlock | TextBlock], gap: str) -> str | list[Json]:
        return _joined([self._text(block) for block in blocks], gap)


def _joined(texts: list[Json], gap: str) -> str | list[Json]:
    """Return text parts as one text, which every template reads; as parts if one has `cache_control`."""
    if any("cache_control" in part for part in texts):
        return texts
    return gap.join(part["text"] for part in texts)


def _merged(role: str, messages: list[Json]) -> Json:
    """Return several messages of a role as one."""
    merged: Json = {"role": role, "content": _merged_content([message["content"] for message in messages])}
    for name in ("tool_calls", "thinking_blocks"):
        if values := list(chain.from_iterable(message.get(name, ()) for message in messages)):
            merged[name] = values
    if reasoning := "".join(message.get("reasoning_content", "") for message in messages):
        merged["reasoning_content"] = reasoning
    return merged


def _merged_content(contents: list[str | list[Json] | None]) -> str | list[Json] | None:
    """Return contents as one: a text if all are texts, else parts; None if there is none."""
    given = [content for content in contents if content]
    texts = [content for content in given if isinstance(content, str)]
    if len(texts) == len(given):
        return _GAP.join(texts) if given or None not in contents else None
    parts = ([{"type": "text", "text": content}] if isinstance(content, str) else content for content in given)
    return list(chain.from_iterable(parts))


def _image_url(source: BlockSource, at: str) -> str:
    if source.type == "base64":
        if source.media_type and source.data:
            return f"data:{source.media_type};base64,{source.data}"
        problem = "an image of type 'base64' requires 'media_type' and 'data'"
    elif source.type == "url":
        if source.url:
            return source.url
        problem = "an image of type 'url' requires 'url'"
    else:
        problem = f"images of type '{source.type}' are not supported. Use 'base64' or 'url'"
        at = f"{at}.type"
    raise InvalidRequest(f"'{at}': {problem}.", param=at)
