"""Requests to /v1/responses."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from gateway.errors import InvalidRequest
from gateway.protocol.body import MAX_TOKENS, DecodedInt, Json, read_known_fields
from gateway.protocol.chat import MAX_MESSAGES, ChatRequest
from gateway.protocol.other_endpoint import missing_content
from gateway.protocol.responses.items import ChatMessages, add_tools, is_reference
from gateway.protocol.responses.tools import MAX_TOOLS, SEARCH_NAME, Toolbox
from gateway.protocol.tags import tags_of_metadata
from gateway.runtime.record import Record

_MIN_OUTPUT_TOKENS = 16
MAX_PAIRS, MAX_KEY_CHARS, MAX_VALUE_CHARS = 16, 64, 512
"""Limits of `metadata`."""
_LOGPROBS = "message.output_text.logprobs"
_ENCRYPTED = "reasoning.encrypted_content"
_CALLER_FIELDS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
    "reasoning_effort": "reasoning.effort",
}
_MODES = ("auto", "none", "required")
_TIERS = (None, "auto", "default")


class TextOptions(Struct, frozen=True):
    """The Responses API's `text`."""

    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(Struct, frozen=True):
    """The Responses API's `reasoning`."""

    effort: str | None = None
    summary: str | None = None


class ResponsesBody(Struct, frozen=True, kw_only=True):
    """The fields of /v1/responses that the gateway reads, with OpenAI's ranges. Others are ignored."""

    model: Annotated[str, Meta(min_length=1)]
    input: str | Annotated[list[dict[str, Any]], Meta(max_length=MAX_MESSAGES)] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: DecodedInt | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    include: list[str] | None = None
    max_output_tokens: Annotated[int, Meta(ge=_MIN_OUTPUT_TOKENS, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    stream: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    service_tier: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    background: bool | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None


class ResponsesRequest(Record, frozen=True):
    """A checked request. `items` are the items of `input`, after those of earlier responses if there are any.

    With `needs_stored`, the input refers to stored responses. `StoredInput` then completes it: before, it has no
    messages.
    """

    known: ResponsesBody
    items: list[Json]
    toolbox: Toolbox
    messages: list[Json]  # of the chat
    size_bytes: int
    non_text_parts: int
    needs_stored: bool = False

    @property
    def stream(self) -> bool:
        return bool(self.known.stream)

    @property
    def previous_response_id(self) -> str | None:
        return self.known.previous_response_id

    @property
    def store(self) -> bool:
        """Return whether the caller wants the response to be stored: OpenAI's default is true."""
        return self.known.store is not False

    @property
    def wants_logprobs(self) -> bool:
        return _LOGPROBS in (self.known.include or ()) or bool(self.known.top_logprobs)

    @property
    def wants_summary(self) -> bool:
        """Return whether reasoning is returned as a summary, rather than as content."""
        return self.known.reasoning is not None and self.known.reasoning.summary not in (None, "none")

    @property
    def wants_encoded_reasoning(self) -> bool:
        return _ENCRYPTED in (self.known.include or ())

    def with_items(self, items: list[Json], size_bytes: int) -> ResponsesRequest:
        """Return the request with another, complete input. The last items are its own. Raises InvalidRequest."""
        if len(items) > MAX_MESSAGES:
            raise InvalidRequest(f"The conversation has more than {MAX_MESSAGES} items, the limit.", param="input")
        return _convert(self.known, items, len(self.items) - len(items), size_bytes)

    def chat(self) -> ChatRequest:
        """Return the request as a chat. Raises InvalidRequest."""
        known = self.known
        body: Json = {"model": known.model, "messages": self.messages}
        if known.stream:
            body["stream"] = True
        if known.max_output_tokens is not None:
            body["max_tokens"] = known.max_output_tokens
        for name in ("temperature", "top_p", "user", "safety_identifier"):
            if (value := getattr(known, name)) is not None:
                body[name] = value
        if known.service_tier not in _TIERS:
            body["service_tier"] = known.service_tier
        if self.wants_logprobs:
            body["logprobs"] = True
            if known.top_logprobs:
                body["top_logprobs"] = known.top_logprobs
        if known.reasoning is not None and known.reasoning.effort is not None:
            body["reasoning_effort"] = known.reasoning.effort
        if known.text is not None:
            body |= _text_fields(known.text)
        body |= self._tool_fields()
        return ChatRequest(
            body=body,
            model=known.model,
            max_tokens=known.max_output_tokens,
            stop=(),
            stream=self.stream,
            wants_usage=self.stream,
            size_bytes=self.size_bytes,
            non_text_parts=self.non_text_parts,
            is_converted=True,
            cache_key=known.prompt_cache_key,
            may_store=self.store,
            metadata=dict(known.metadata) if known.metadata else None,
            tags=tags_of_metadata(known.metadata),
        )

    def _tool_fields(self) -> Json:
        """Return the chat's fields for tools: none without tools, as engines require."""
        choice, tools = self.known.tool_choice, self.toolbox.chat_tools
        if isinstance(choice, str) and choice not in _MODES:
            text = f"'tool_choice': '{choice}' is not supported. Use {', '.join(_MODES)}, or an object."
            raise InvalidRequest(text, param="tool_choice")
        if isinstance(choice, dict):
            choice, tools = self._chosen(choice)
        if not tools:
            if choice == "required":
                text = "'tool_choice' is 'required', and there is no tool. Send 'tools'."
                raise InvalidRequest(text, param="tool_choice")
            return {}
        fields: Json = {"tools": list(tools.values())}
        if choice is not None:
            fields["tool_choice"] = choice
        if self.known.parallel_tool_calls is not None:
            fields["parallel_tool_calls"] = self.known.parallel_tool_calls
        return fields

    def _chosen(self, choice: Json) -> tuple[Any, dict[str, Json]]:
        """Return the chat's `tool_choice` and the tools that it allows."""
        tools, kind = self.toolbox.chat_tools, choice.get("type")
        if kind in ("function", "custom"):
            name = self._chosen_name(choice, "tool_choice")
            return {"type": "function", "function": {"name": name}}, tools
        if kind == "allowed_tools":
            allowed, mode = choice.get("tools"), choice.get("mode", "auto")
            if mode not in ("auto", "required"):
                raise InvalidRequest("'tool_choice.mode': use auto or required.", param="tool_choice.mode")
            if not isinstance(allowed, list) or len(allowed) > MAX_TOOLS:
                text = f"'tool_choice.tools' is required: a list of at most {MAX_TOOLS} tools."
                raise InvalidRequest(text, param="tool_choice.tools")
            chosen: set[str] = set()
            namespaces: set[str | None] = set()
            for index, tool in enumerate(allowed):
                if (namespace := self._chosen_namespace(tool)) is not None:
                    namespaces.add(namespace)
                else:
                    chosen.add(self._chosen_name(tool, f"tool_choice.tools[{index}]"))
            called = self.toolbox.called
            return mode, {
                name: tool for name, tool in tools.items() if name in chosen or called(name).namespace in namespaces
            }
        text = f"'tool_choice.type': '{kind}' is not supported. Use function, custom or allowed_tools."
        raise InvalidRequest(text, param="tool_choice.type")

    def _chosen_namespace(self, choice: Any) -> str | None:
        """Return the name of a chosen namespace; None if a tool is chosen."""
        if isinstance(choice, dict) and choice.get("type") == "namespace":
            name = choice.get("name")
            return name if isinstance(name, str) and name in self.toolbox.namespaces else None
        return None

    def _chosen_name(self, choice: Any, at: str) -> str:
        """Return the chat name of a chosen tool."""
        if isinstance(choice, dict):
            name, namespace = choice.get("name"), choice.get("namespace")
            if choice.get("type") == "tool_search":
                name = SEARCH_NAME
            namespace = namespace if isinstance(namespace, str) else None
            if isinstance(name, str) and self.toolbox.is_declared(name, namespace):
                return self.toolbox.name_of(name, namespace)
        raise InvalidRequest(f"'{at}': there is no such tool in 'tools'.", param="tool_choice")


def caller_field(field: str | None) -> str | None:
    """Return the caller's name of a field of the chat that an engine rejected. Positions within it are the chat's."""
    if field is None:
        return None
    name = re.split(r"[.\[]", field, maxsplit=1)[0]
    return _CALLER_FIELDS.get(name, name)


def parse_responses(raw: bytes) -> ResponsesRequest:
    """Decode and check the body of a request. Raises InvalidRequest with the field."""
    body, known = read_known_fields(raw, ResponsesBody, "'model' and 'input'")
    _check_unsupported(known)
    for key, value in (known.metadata or {}).items():
        if len(key) > MAX_KEY_CHARS or len(value) > MAX_VALUE_CHARS:
            text = f"'metadata': keys have at most {MAX_KEY_CHARS} characters, values at most {MAX_VALUE_CHARS}."
            raise InvalidRequest(text, param="metadata")
    if known.metadata is not None and len(known.metadata) > MAX_PAIRS:
        raise InvalidRequest(f"'metadata' has more than {MAX_PAIRS} pairs, the limit.", param="metadata")
    if known.input is None and known.previous_response_id is None:
        refused = InvalidRequest("'input' is required: a string or a list of items.", param="input")
        raise missing_content(body, ResponsesBody.__struct_fields__) or refused
    items: list[Json] = known.input if isinstance(known.input, list) else []
    if isinstance(known.input, str):
        items = [{"type": "message", "role": "user", "content": known.input}]
    if known.previous_response_id is not None or any(map(is_reference, items)):
        return ResponsesRequest(known, items, Toolbox(), [], len(raw), 0, needs_stored=True)
    return _convert(known, items, 0, len(raw))


def _convert(known: ResponsesBody, items: list[Json], first: int, size_bytes: int) -> ResponsesRequest:
    toolbox = Toolbox()
    if known.tools:
        toolbox.declare(known.tools)
    add_tools(items, toolbox, first)
    chat = ChatMessages(known.instructions, toolbox)
    chat.add(items, first)
    messages = chat.messages()
    if not messages:
        raise InvalidRequest("'input' has no message. Send at least one.", param="input")
    return ResponsesRequest(known, items, toolbox, messages, size_bytes + toolbox.added_bytes, chat.non_text_parts)


def _check_unsupported(known: ResponsesBody) -> None:
    """Reject what only a service with its own storage can do."""
    for name, value, fix in (
        ("background", known.background or None, "Leave it out, and read the reply or its stream"),
        ("conversation", known.conversation, "Send the whole conversation in 'input'"),
        ("prompt", known.prompt, "Send the prompt's text in 'instructions' and 'input'"),
    ):
        if value is not None:
            raise InvalidRequest(f"'{name}' is not supported. {fix}.", param=name)


def _text_fields(text: TextOptions) -> Json:
    fields: Json = {}
    if text.verbosity is not None:
        fields["verbosity"] = text.verbosity
    if text.format is None:
        return fields
    match text.format.get("type"):
        case "text":
            pass
        case "json_object":
            fields["response_format"] = {"type": "json_object"}
        case "json_schema":
            for name, kind in (("name", str), ("schema", dict)):
                if not isinstance(text.format.get(name), kind):
                    at = f"text.format.{name}"
                    raise InvalidRequest(f"'{at}' is required in a format of type 'json_schema'.", param=at)
            schema = {
                name: text.format[name]
                for name in ("name", "description", "schema", "strict")
                if text.format.get(name) is not None
            }
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        case kind:
            text_of = f"'text.format.type': '{kind}' is not supported. Use text, json_object or json_schema."
            raise InvalidRequest(text_of, param="text.format.type")
    return fields


def echo(request: ResponsesRequest, *, stored: bool) -> Json:
    """Return the request's parameters as every response has them, with OpenAI's defaults."""
    known = request.known
    text, reasoning = known.text or TextOptions(), known.reasoning or ReasoningOptions()
    form = text.format or {"type": "text"}
    if form.get("type") == "json_schema":
        form = {"description": None, "strict": False, **form}
    return {
        "background": False,
        "frequency_penalty": 0.0,
        "instructions": known.instructions,
        "max_output_tokens": known.max_output_tokens,
        "max_tool_calls": known.max_tool_calls,
        "metadata": known.metadata or {},
        "parallel_tool_calls": known.parallel_tool_calls is not False,
        "presence_penalty": 0.0,
        "previous_response_id": known.previous_response_id,
        "prompt_cache_key": known.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary},
        "safety_identifier": known.safety_identifier,
        "store": stored,
        "temperature": 1.0 if known.temperature is None else known.temperature,
        "text": {"format": form, "verbosity": text.verbosity or "medium"},
        "tool_choice": "auto" if known.tool_choice is None else known.tool_choice,
        "tools": request.toolbox.declared,
        "top_logprobs": known.top_logprobs or 0,
        "top_p": 1.0 if known.top_p is None else known.top_p,
        "truncation": known.truncation or "disabled",
        "user": known.user,
    }
