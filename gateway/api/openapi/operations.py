"""Describe each handler for the OpenAPI document: request body, reply, parameters and errors."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway import errors
from gateway.accounting.receipt import Receipt
from gateway.api.completions import chat_completions, embeddings, text_completions
from gateway.api.feedback import FeedbackBody, add_feedback
from gateway.api.guidance import guidance, guidance_usage, offline_usage
from gateway.api.limits import show_limits
from gateway.api.lookups import openapi_json, show_receipt
from gateway.api.messages import count_tokens, messages
from gateway.api.models import DEFAULT_PAGE, MAX_PAGE, list_models, show_model
from gateway.api.openapi import anthropic_shapes, shapes
from gateway.api.openapi.anthropic_shapes import AnthropicModel, AnthropicModels
from gateway.api.openapi.responses_shapes import DeletedResponse, InputItems, Response, ResponseEvent
from gateway.api.probes import healthz, readyz
from gateway.api.responses import responses
from gateway.api.stored_responses import INPUT_ITEMS_QUERY, delete_response, list_input_items, show_response
from gateway.api.usage import PARAMETERS, show_usage
from gateway.protocol.anthropic.request import CountTokensBody, MessagesBody
from gateway.protocol.chat import ChatBody
from gateway.protocol.edge import OfflineBody, UsageBody
from gateway.protocol.embeddings import EmbeddingsBody
from gateway.protocol.responses.request import ResponsesBody
from gateway.protocol.text import TextBody

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from msgspec import Struct

    from gateway.protocol.body import Json

ErrorType = type[errors.GatewayError]


class Operation(NamedTuple):
    """Description of one handler."""

    summary: str
    tag: str
    reply: type[Struct] | tuple[str, ...] | None = None  # body of a 200: a JSON object, or the values of a plain text
    body: type[Struct] | None = None
    anthropic_reply: type[Struct] | None = None  # body of a 200 to a request with the header anthropic-version
    event: type[Struct] | None = None  # struct of the events, if the handler can stream
    has_receipt: bool = False  # headers contain the facts of the receipt
    versioned: bool = False  # the request may have the header of the edge protocol's version
    public: bool = False  # no key is required
    errors: tuple[ErrorType, ...] = ()  # beyond those of every handler
    query: Mapping[str, tuple[str, Json]] = MappingProxyType({})  # description and schema of each parameter
    # Description and possible values of plain texts, by status, for replies that are no errors.
    other_replies: Mapping[int, tuple[str, tuple[str, ...]]] = MappingProxyType({})

    @property
    def all_errors(self) -> tuple[ErrorType, ...]:
        """All errors of the handler."""
        of_body = () if self.body is None else (errors.BodyTooLarge, errors.BodyTooSlow)
        of_key = () if self.public else (errors.InvalidRequest, errors.NotAuthenticated)
        return (*of_key, *self.errors, *of_body, errors.HeadTooLarge, errors.HeadTooSlow, errors.GatewayError)


def family(root: ErrorType) -> tuple[ErrorType, ...]:
    """Return all subclasses of an error."""
    found: list[ErrorType] = []
    for child in root.__subclasses__():
        found += [child, *family(child)]
    return tuple(found)


_BUSY = (errors.Overloaded, errors.StoreUnavailable)
_REPORTED = (errors.EdgeClosed, errors.EdgeExpired, errors.EdgeVersion, *_BUSY)
_LIMITED: tuple[ErrorType, ...] = (errors.BudgetSpent, errors.RateLimited, *family(errors.RateLimited))
_ANSWERING: tuple[ErrorType, ...] = (errors.ModelNotFound, *_BUSY, *_LIMITED, *family(errors.EngineError))
_GUIDED: tuple[ErrorType, ...] = (*_ANSWERING, errors.GuidanceUnavailable, errors.QueueFull)

OPERATIONS: dict[Callable[..., Any], Operation] = {
    chat_completions: Operation(
        "Create a chat completion. The teacher starts the answer, the student finishes it.",
        "Answers",
        body=ChatBody,
        reply=shapes.ChatCompletion,
        event=shapes.ChatCompletionChunk,
        has_receipt=True,
        errors=_GUIDED,
    ),
    text_completions: Operation(
        "Complete a raw prompt. The teacher starts the answer, the student finishes it.",
        "Answers",
        body=TextBody,
        reply=shapes.TextCompletion,
        event=shapes.TextCompletion,
        has_receipt=True,
        errors=_GUIDED,
    ),
    responses: Operation(
        "Create a response. The teacher starts the answer, the student finishes it.",
        "Answers",
        body=ResponsesBody,
        reply=Response,
        event=ResponseEvent,
        has_receipt=True,
        errors=(*_GUIDED, errors.PreviousResponseNotFound, errors.NotFound),
    ),
    messages: Operation(
        "Create a message with Anthropic's API. The teacher starts the answer, the student finishes it.",
        "Answers",
        body=MessagesBody,
        reply=anthropic_shapes.AnthropicMessageReply,
        event=anthropic_shapes.MessageEvent,
        has_receipt=True,
        errors=_GUIDED,
    ),
    count_tokens: Operation(
        "Count the tokens of a message's prompt, without a call to an engine. The request counts toward no limit.",
        "Answers",
        body=CountTokensBody,
        reply=anthropic_shapes.MessageTokens,
        errors=(errors.ModelNotFound, errors.Overloaded),
    ),
    show_response: Operation(
        "Return a stored response.",
        "Answers",
        reply=Response,
        errors=(errors.NotFound, *_BUSY),
    ),
    delete_response: Operation(
        "Delete a stored response.",
        "Answers",
        reply=DeletedResponse,
        errors=(errors.NotFound, *_BUSY),
    ),
    list_input_items: Operation(
        "List the input items of a stored response: the whole conversation before its output.",
        "Answers",
        reply=InputItems,
        query=INPUT_ITEMS_QUERY,
        errors=(errors.NotFound, *_BUSY),
    ),
    embeddings: Operation(
        "Create an embedding of each text.",
        "Answers",
        body=EmbeddingsBody,
        reply=shapes.EmbeddingsReply,
        has_receipt=True,
        errors=_ANSWERING,
    ),
    guidance: Operation(
        "Create guidance for a chat completion that a device finishes.",
        "Edge",
        body=ChatBody,
        reply=shapes.GuidanceReply,
        event=shapes.GuidanceReply,
        has_receipt=True,
        versioned=True,
        errors=(*_GUIDED, errors.RouteWithoutGuidance, errors.EdgeVersion),
    ),
    guidance_usage: Operation(
        "Report the usage of a device that finished an answer with guidance, once and before the deadline.",
        "Edge",
        body=UsageBody,
        reply=Receipt,
        versioned=True,
        errors=(errors.NotFound, *_REPORTED),
    ),
    offline_usage: Operation(
        "Report an answer that a device generated without guidance.",
        "Edge",
        body=OfflineBody,
        reply=Receipt,
        versioned=True,
        errors=(errors.ModelNotFound, errors.RouteWithoutGuidance, *_REPORTED, errors.RateLimited),
    ),
    list_models: Operation(
        "List the models that the key may use.",
        "Models",
        reply=shapes.Models,
        anthropic_reply=AnthropicModels,
        query={
            "client_version": ("Version of Codex. The reply then has the field `models`.", {"type": "string"}),
            "limit": (
                "With anthropic-version: maximum number of models.",
                {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE},
            ),
            "after_id": ("With anthropic-version: the last model of the previous page.", {"type": "string"}),
            "before_id": ("With anthropic-version: the first model of the following page.", {"type": "string"}),
        },
        errors=(errors.ModelNotFound,),
    ),
    show_model: Operation(
        "Return one model.",
        "Models",
        reply=shapes.Model,
        anthropic_reply=AnthropicModel,
        errors=(errors.ModelNotFound,),
    ),
    show_receipt: Operation(
        "Return the receipt of a request by the x-request-id of its reply: cost, baseline and savings.",
        "Receipts",
        reply=shapes.ShownReceipt,
        errors=(errors.NotFound, errors.StoreUnavailable),
    ),
    add_feedback: Operation(
        "Report the outcome of a request, once and while Redis has its receipt. The first score counts.",
        "Receipts",
        body=FeedbackBody,
        reply=shapes.Feedback,
        errors=(errors.NotFound, errors.FeedbackGiven, *_BUSY),
    ),
    show_limits: Operation(
        "Return the limits of the key, its tenant and labels, with their current use. The request counts toward none.",
        "Limits",
        reply=shapes.LimitsReply,
        errors=(errors.StoreUnavailable,),
    ),
    show_usage: Operation(
        "Return the usage of the key's tenant, with cost and savings. The request counts toward no limit.",
        "Usage",
        reply=shapes.UsageReply,
        query=PARAMETERS,
        errors=(errors.Overloaded, errors.StoreUnavailable),
    ),
    healthz: Operation("Return 200 while the process runs.", "Probes", reply=("ok\n",), public=True),
    readyz: Operation(
        "Return whether the gateway accepts requests.",
        "Probes",
        reply=("ready\n", "degraded\n"),
        public=True,
        other_replies={503: ("The gateway is not ready.", ("starting\n", "draining\n"))},
    ),
    openapi_json: Operation(
        "Return this document.",
        "Probes",
        public=True,
        other_replies={304: ("The document is unchanged: If-None-Match contains its ETag.", ())},
    ),
}

FACTS = {
    "mode": "How the request was answered: guided, teacher_complete, student, teacher, embeddings or guidance.",
    "variant": "Variant of a split route that served the request. Absent: the route is not split.",
    "unguided": "Reason for an answer without guidance on a guided route, as in field_not_known: max_tokenss.",
    "max_tokens": "Token limit of the answer, if the caller's was reduced to the policy's maximum or the context.",
    "hint": "The policy setting to change and its value, if the route's guidance is often late.",
    "teacher": "Name of the teacher.",
    "student": "Name of the student.",
    "teacher_tokens": "Input and output tokens of the teacher, as in 120+40.",
    "student_tokens": "Input and output tokens of the student, as in 120+40.",
    "placement": "Placement of the guidance: context, in the student's prompt. Absent: at the start of the answer.",
    "guidance_tokens": "Number of guidance tokens in the answer.",
    "shared": "Source of shared guidance: flight, a concurrent identical request; or cache. Absent: not shared.",
    "budget": "soft: the soft limit of a budget is exceeded. Absent: no soft limit is exceeded.",
    "estimated": "true: an engine reported no token counts, and the cost is an upper bound. Absent: all reported them.",
    "failed_attempts": "Failed engine calls that were retried. Absent: none.",
    "continued_tokens": "Answer tokens of failed calls that another call continued. Absent: none.",
    "batch": "Id of the batch of the teacher's call.",
    "batch_size": "Number of calls in the batch, over all replicas.",
    "admission_ms": "Milliseconds until the request was admitted.",
    "batch_wait_ms": "Milliseconds of waiting for the batch to start.",
    "teacher_ms": "Milliseconds until the guidance was complete.",
    "first_token_ms": "Milliseconds until the first token could be sent.",
    "handover_ms": "Milliseconds from the complete guidance to the student's first token, in a stream.",
    "total_ms": "Milliseconds in total.",
    "cost_usd": "Cost of the request, if the route shows it.",
    "baseline_usd": "Cost of the baseline model alone, if the route shows it.",
    "savings_usd": "Savings that count, or 'about 0' if their error is as large. Negative: guidance cost more.",
    "savings_class": "Savings class, which decides which savings count, if the route shows the cost.",
}
"""Descriptions of the receipt's headers, by the names of `Receipt.facts`."""
