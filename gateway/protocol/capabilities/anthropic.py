"""Fields and headers of Anthropic's Messages API that chat completions lacks, and the engines that read them."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

from gateway.protocol.capabilities.continuation import Continuation, Prefill
from gateway.protocol.capabilities.reasoning import SWITCHES, asks_for_reasoning, without_reasoning
from gateway.protocol.messages import text_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.continuation import Known
    from gateway.protocol.capabilities.reasoning import Reasoning

CLAUDE = frozenset(
    {"cache_control", "client_tools", "context_management", "headers", "output_config", "service_tier", "thinking",
     "thinking_blocks", "top_k"}
)  # fmt: skip
"""Fields, headers and tools (`client_tools`) that Anthropic's models read, and other engines do not."""
_CLAUDE_PROVIDERS = frozenset({"azure_ai", "bedrock", "vertex_ai"})  # LiteLLM's names of providers of many models
_PART_FIELDS = ("cache_control",)
_BODY_FIELDS = ("thinking", "top_k")
_MESSAGE_FIELDS = ("cache_control", "reasoning_content", "thinking_blocks")
_NOTHING: Json = {}


def read_by(model: str) -> frozenset[str]:
    """Return what a model of LiteLLM reads, by its name `provider/name`."""
    provider, _, name = model.partition("/")
    is_claude = provider == "anthropic" or (provider in _CLAUDE_PROVIDERS and "claude" in name.lower())
    return CLAUDE if is_claude else frozenset()


class MessagesFields(NamedTuple):
    """The fields and headers of a request to /v1/messages beyond its chat.

    The chat has `top_k`, and `thinking` if it is enabled, since policies depend on them.
    """

    headers: Mapping[str, str]
    fields: Json
    is_marked: bool = False  # whether messages or tools have fields that only some engines read
    foreign_tool: tuple[int, str] | None = None  # index and type of the first tool that only Anthropic's models know

    def unsupported(self, body: Json, reads: frozenset[str]) -> tuple[str, str] | None:
        """Return the path and the type of a tool that an engine does not know; None: it knows all."""
        if self.foreign_tool is None or "client_tools" in reads or not body.get("tools"):
            return None
        index, kind = self.foreign_tool
        return f"tools[{index}].type", kind

    def chat(self, body: Json, reads: frozenset[str]) -> Json:
        """Return the chat body without the fields that an engine does not read. The input is not changed."""
        body = _without(body, tuple(name for name in _BODY_FIELDS if name not in reads))
        if self.is_marked and not reads.issuperset(_MESSAGE_FIELDS):
            body["messages"] = without_fields(body["messages"], reads)
            if (tools := body.get("tools")) and "cache_control" not in reads:
                body["tools"] = [_without(tool, _PART_FIELDS) for tool in tools]
        return body

    def more(self, reads: frozenset[str]) -> Json:
        """Return the fields beyond those of the chat that an engine reads."""
        return {name: value for name, value in self.fields.items() if name in reads}

    def template_fields(self, body: Json, reasoning: Reasoning) -> Json:
        """Return the fields that switch the reasoning of a model, if its reasoning is switchable."""
        thinking = self.fields.get("thinking")
        kind = thinking.get("type") if isinstance(thinking, dict) else None
        if reasoning != "switchable" or kind not in ("enabled", "disabled"):
            return _NOTHING
        switches = dict.fromkeys(SWITCHES, kind == "enabled")
        return {"chat_template_kwargs": {**switches, **(body.get("chat_template_kwargs") or {})}}


def without_fields(messages: list[Json], reads: frozenset[str]) -> list[Json]:
    """Return messages without the fields that an engine does not read. The input is not changed."""
    unread = tuple(name for name in _MESSAGE_FIELDS if name not in reads)
    plain = [_without(message, unread) for message in messages]
    if "cache_control" in reads:
        return plain
    for message in plain:
        if isinstance(content := message.get("content"), list):
            message["content"] = _plain_content(message["role"], content)
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [_without(call, _PART_FIELDS) for call in calls]
    return plain


def _plain_content(role: str, parts: list[Json]) -> list[Json] | str:
    """Return the content without marks. Text of all roles but the user is one text, which every template reads."""
    parts = [_without(part, _PART_FIELDS) for part in parts]
    if role == "user":
        return parts
    return {"system": "\n\n", "tool": "\n"}.get(role, "").join(part["text"] for part in parts)


def _without(holder: Json, names: tuple[str, ...]) -> Json:
    return {name: value for name, value in holder.items() if name not in names}


def continue_last(body: Json, known: Known, reasoning: Reasoning) -> tuple[Json, Prefill | None]:
    """Return the request to continue the assistant's message at the end of a chat, as Anthropic's models do.

    The chat is unchanged if it ends otherwise, or the engine is not known to continue an answer.
    """
    last = body["messages"][-1]
    if last["role"] != "assistant" or last.get("tool_calls") or not isinstance(known, Continuation):
        return body, None
    text = text_of(last.get("content"))
    if not text or known.writes_again or known.unsupported(body) is not None or asks_for_reasoning(body):
        return body, None
    shorter = {**body, "messages": body["messages"][:-1]}
    return without_reasoning(reasoning, shorter), Prefill(text, known)


_fields: ContextVar[MessagesFields | None] = ContextVar("messages_fields", default=None)


def messages_fields() -> MessagesFields | None:
    """Return the fields of the request that this task answers; None for a request to another API."""
    return _fields.get()


@contextmanager
def answering(fields: MessagesFields | None) -> Iterator[None]:
    """Attribute the engine calls in the `with` block, and of the tasks that it starts, to a request.

    None: the calls have a body of the gateway's own.
    """
    token = _fields.set(fields)
    try:
        yield
    finally:
        _fields.reset(token)
