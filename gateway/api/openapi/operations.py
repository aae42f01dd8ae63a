"""Of each handler: what it takes, what it gives, and how it can fail."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gateway.accounting.receipt import Receipt
from gateway.api.completions import chat_completions, text_completions
from gateway.api.embeddings import embeddings
from gateway.api.guidance import guidance, guidance_usage, offline_usage
from gateway.api.limits import show_limits
from gateway.api.lookups import list_models, show_model, show_receipt
from gateway.api.openapi.route import openapi_json
from gateway.api.openapi.shapes import (
    ChatCompletion,
    ChatCompletionChunk,
    EmbeddingsReply,
    GuidanceReply,
    LimitsReply,
    Model,
    Models,
    ShownReceipt,
    TextCompletion,
    UsageReply,
)
from gateway.api.probes import healthz, readyz
from gateway.api.usage import show_usage
from gateway.api.usage_query import PARAMETERS
from gateway.errors import (
    BodyTooLarge,
    BodyTooSlow,
    BudgetSpent,
    EdgeClosed,
    EdgeExpired,
    EdgeVersion,
    EngineError,
    GatewayError,
    GuidanceUnavailable,
    HeadTooLarge,
    HeadTooSlow,
    InvalidRequest,
    ModelNotFound,
    NotAuthenticated,
    NotFound,
    Overloaded,
    QueueFull,
    RateLimited,
    RouteWithoutGuidance,
    StoreUnavailable,
)
from gateway.protocol.chat import ChatBody
from gateway.protocol.edge import OfflineBody, UsageBody
from gateway.protocol.embeddings import EmbeddingsBody
from gateway.protocol.text import TextBody

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from msgspec import Struct

    from gateway.protocol.body import Json

ErrorType = type[GatewayError]


@dataclass(frozen=True, slots=True)
class Operation:
    """One handler.

    Attributes:
        gives: the body of a 200: a struct, in JSON, or the words of a plain text.
        takes: the body of the request.
        streams: what the events of a stream hold, where the request may ask for one.
        accounted: whether the receipt's facts come as headers.
        edge: whether a device may say which version of the edge protocol it speaks.
        open: whether it needs no key.
        errors: beyond those that every handler has.
        query: by name, what may stand in the query: a description, and a schema.
        otherwise: by status, what else it answers that is no error: a description, and the words of a plain text.
    """

    summary: str
    tag: str
    gives: type[Struct] | tuple[str, ...] | None = None
    takes: type[Struct] | None = None
    streams: type[Struct] | None = None
    accounted: bool = False
    edge: bool = False
    open: bool = False
    errors: tuple[ErrorType, ...] = ()
    query: Mapping[str, tuple[str, Json]] = field(default_factory=dict)
    otherwise: Mapping[int, tuple[str, tuple[str, ...]]] = field(default_factory=dict)

    @property
    def all_errors(self) -> tuple[ErrorType, ...]:
        """Every error that a caller may meet."""
        own = self.errors
        if self.takes is not None:
            own = (*own, BodyTooLarge, BodyTooSlow)
        own = (*own, HeadTooLarge, HeadTooSlow)
        if not self.open:
            own = (InvalidRequest, NotAuthenticated, *own)
        return (*own, GatewayError)


def family(root: ErrorType) -> tuple[ErrorType, ...]:
    """An error's descendants."""
    found: list[ErrorType] = []
    for child in root.__subclasses__():
        found += [child, *family(child)]
    return tuple(found)


_ANSWERING: tuple[ErrorType, ...] = (
    ModelNotFound,
    Overloaded,
    StoreUnavailable,
    BudgetSpent,
    *family(RateLimited),
    *family(EngineError),
)

OPERATIONS: dict[Callable[..., Any], Operation] = {
    chat_completions: Operation(
        "Answer a chat: the teacher opens the answer, the student finishes it.",
        "Answers",
        takes=ChatBody,
        gives=ChatCompletion,
        streams=ChatCompletionChunk,
        accounted=True,
        errors=(*_ANSWERING, GuidanceUnavailable, QueueFull),
    ),
    text_completions: Operation(
        "Continue a raw prompt: the teacher opens the answer, the student finishes it.",
        "Answers",
        takes=TextBody,
        gives=TextCompletion,
        streams=TextCompletion,
        accounted=True,
        errors=(*_ANSWERING, GuidanceUnavailable, QueueFull),
    ),
    embeddings: Operation(
        "Make a vector of each text.",
        "Answers",
        takes=EmbeddingsBody,
        gives=EmbeddingsReply,
        accounted=True,
        errors=_ANSWERING,
    ),
    guidance: Operation(
        "Open the answer to a chat, for a device that finishes it: the teacher's first words, and no student's.",
        "Edge",
        takes=ChatBody,
        gives=GuidanceReply,
        streams=GuidanceReply,
        accounted=True,
        edge=True,
        errors=(*_ANSWERING, GuidanceUnavailable, QueueFull, RouteWithoutGuidance, EdgeVersion),
    ),
    guidance_usage: Operation(
        "Report how a device finished an answer that it had guidance for: once, and in time.",
        "Edge",
        takes=UsageBody,
        gives=Receipt,
        edge=True,
        errors=(NotFound, EdgeClosed, EdgeExpired, EdgeVersion, Overloaded, StoreUnavailable),
    ),
    offline_usage: Operation(
        "Report an answer that a device made alone.",
        "Edge",
        takes=OfflineBody,
        gives=Receipt,
        edge=True,
        errors=(
            ModelNotFound,
            RouteWithoutGuidance,
            EdgeClosed,
            EdgeExpired,
            EdgeVersion,
            Overloaded,
            RateLimited,
            StoreUnavailable,
        ),
    ),
    list_models: Operation("The models that the key may use.", "Models", gives=Models),
    show_model: Operation("One of them.", "Models", gives=Model, errors=(ModelNotFound,)),
    show_receipt: Operation(
        "What one request cost, and what it would have cost without the gateway; by the x-request-id of its reply.",
        "Receipts",
        gives=ShownReceipt,
        errors=(NotFound, StoreUnavailable),
    ),
    show_limits: Operation(
        "What the key and its tenant may use, and what they have used of it. It counts for no limit itself.",
        "Limits",
        gives=LimitsReply,
        errors=(StoreUnavailable,),
    ),
    show_usage: Operation(
        "What the key's tenant has used, and what it cost and saved. It counts for no limit itself.",
        "Usage",
        gives=UsageReply,
        query=PARAMETERS,
        errors=(Overloaded, StoreUnavailable),
    ),
    healthz: Operation("The process lives.", "Probes", gives=("ok\n",), open=True),
    readyz: Operation(
        "Whether to send requests here.",
        "Probes",
        gives=("ready\n", "degraded\n"),
        open=True,
        otherwise={503: ("Not now.", ("starting\n", "draining\n"))},
    ),
    openapi_json: Operation(
        "This document.", "Probes", open=True, otherwise={304: ("It is the one that If-None-Match names.", ())}
    ),
}

FACTS = {
    "mode": "What happened: guided, teacher_complete, student, teacher, embeddings or guidance.",
    "unguided": "Why a guided route was answered without guidance.",
    "hint": "The policy setting to change and its value, where the route's guidance is often late.",
    "teacher": "The teacher's name.",
    "student": "The student's name.",
    "teacher_tokens": "What the teacher read and wrote, as in 120+40.",
    "student_tokens": "What the student read and wrote, as in 120+40.",
    "placement": "Where the guidance stands: context, in the student's prompt. Absent: in front of the answer.",
    "guidance_tokens": "The teacher's tokens that open the answer.",
    "shared": "Whose call made the guidance: flight or cache, an identical request's. Absent: this one's own.",
    "budget": "soft: a budget has passed its soft line. Absent: none has.",
    "estimated": "true: an engine did not count, and the cost is an upper bound. Absent: all counted.",
    "failed_attempts": "The calls that failed, and in whose place others were made. Absent: none.",
    "batch": "The batch that the teacher's call belonged to.",
    "batch_size": "The calls in that batch, over all replicas.",
    "admission_ms": "Milliseconds until the request had its place.",
    "batch_wait_ms": "Milliseconds of waiting for the batch.",
    "teacher_ms": "Milliseconds until the opening was there.",
    "first_token_ms": "Milliseconds until the first words could leave.",
    "total_ms": "Milliseconds in all.",
    "cost_usd": "What the answer cost, where the route shows it.",
    "baseline_usd": "What the baseline model alone would have cost, where the route shows it.",
    "savings_usd": "The savings that count, or 'about 0' where their error is as large. Negative: guidance cost more.",
    "savings_class": "The class that decides which savings count, where the route shows the cost.",
}
"""What a receipt tells in headers, by the names of `Receipt.facts`."""
