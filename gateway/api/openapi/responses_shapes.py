"""Structs of the replies of the Responses API, for the OpenAPI document only."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from gateway.api.openapi.shapes import Count


class ResponsesUsage(Struct):
    """Tokens of the caller's input and of the whole answer, of teacher and student."""

    input_tokens: Count
    input_tokens_details: dict[str, Count]
    output_tokens: Count
    output_tokens_details: dict[str, Count]
    total_tokens: Count


class Response(Struct, kw_only=True):
    """A response, with the request's parameters. In the last event of a stream `gkt` has the facts of the headers."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    model: str
    output: list[dict[str, Any]]
    usage: ResponsesUsage | None
    service_tier: str
    store: bool
    previous_response_id: str | None
    instructions: str | None
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    text: dict[str, Any]
    reasoning: dict[str, Any]
    metadata: dict[str, str]
    temperature: float
    top_p: float
    top_logprobs: Count
    max_output_tokens: int | None
    truncation: str
    gkt: dict[str, Any] | None = None


class ResponseEvent(Struct):
    """An event of a streamed response. The last is response.completed, response.incomplete or response.failed."""

    type: str
    sequence_number: Count
    response: Response | None = None
    item: dict[str, Any] | None = None
    delta: str | None = None


class DeletedResponse(Struct):
    """Reply to the deletion of a stored response."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputItems(Struct):
    """A page of the input items of a stored response."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
