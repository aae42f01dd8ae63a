"""The content blocks of Anthropic's messages that the gateway converts."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from msgspec import Struct

Json: TypeAlias = dict[str, Any]


class TextBlock(Struct, frozen=True, tag_field="type", tag="text"):
    text: str
    cache_control: Json | None = None


class SoleTextBlock(Struct, frozen=True):
    """A text block where no block has another type. msgspec requires the tag of a struct in a union only."""

    type: Literal["text"]
    text: str
    cache_control: Json | None = None


class BlockSource(Struct, frozen=True):
    """The data of an image or a document, or the place of the data."""

    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    content: str | list[Json] | None = None


class ImageBlock(Struct, frozen=True, tag_field="type", tag="image"):
    source: BlockSource
    cache_control: Json | None = None


class DocumentBlock(Struct, frozen=True, tag_field="type", tag="document"):
    source: BlockSource
    title: str | None = None
    context: str | None = None
    cache_control: Json | None = None


class SearchResultBlock(Struct, frozen=True, tag_field="type", tag="search_result"):
    content: list[SoleTextBlock]
    source: str
    title: str
    cache_control: Json | None = None


class ThinkingBlock(Struct, frozen=True, tag_field="type", tag="thinking"):
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(Struct, frozen=True, tag_field="type", tag="redacted_thinking"):
    data: str


class ToolUseBlock(Struct, frozen=True, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: Any
    cache_control: Json | None = None


class ToolReferenceBlock(Struct, frozen=True, tag_field="type", tag="tool_reference"):
    tool_name: str
    cache_control: Json | None = None


class SystemBlock(Struct, frozen=True, tag_field="type", tag="mid_conv_system"):
    """Instructions within the conversation."""

    content: list[SoleTextBlock]
    cache_control: Json | None = None


ReadableBlock: TypeAlias = TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock
"""A block that a model reads, in a user's message or in the result of a tool."""


class ToolResultBlock(Struct, frozen=True, tag_field="type", tag="tool_result"):
    tool_use_id: str
    content: str | list[ReadableBlock] | None = None
    is_error: bool | None = None
    cache_control: Json | None = None


ContentBlock: TypeAlias = (
    ReadableBlock | SystemBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock
)

BLOCK_TYPES = (
    *("text", "image", "document", "search_result", "thinking", "redacted_thinking", "tool_use", "tool_result"),
    *("tool_reference", "mid_conv_system"),
)
"""The types of `ContentBlock`."""
