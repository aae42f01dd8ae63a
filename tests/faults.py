"""The faults that an engine can have, as data: the engine's behavior and the outcome of a call that meets it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tests import fault_behaviors as behaviors
from tests.fault_engine import MISSING, event

if TYPE_CHECKING:
    from tests.fault_engine import Play

UNREACHABLE, TIMEOUT, OVERLOADED = "engine_unreachable", "engine_timeout", "engine_overloaded"
REJECTED, FAILED, GARBLED = "engine_rejected", "engine_failed", "engine_protocol_error"
OK = "ok"


@dataclass(frozen=True)
class Fault:
    """One way to fail.

    Attributes:
        name: the fault's name in URLs and test ids.
        does: the engine's behavior, for the page.
        play: plays the fault. None: nothing listens.
        json: the outcome of a call with a whole reply: `ok`, or its error label. None: such a call cannot meet it.
        sse: the outcome of a call with a streamed reply.
        protocols: the protocols that have the fault.
        stalls: the deadline that ends a stalled stream; `total` ends a stalled whole reply.
        counts: whether the tokens are counted nevertheless.
        retry_after_s: the pause that the engine requests, in seconds.
        huge: whether the reply has megabytes.
    """

    name: str
    does: str
    play: Play | None
    json: str | None = OK
    sse: str | None = OK
    protocols: tuple[str, ...] = ("openai", "tgi")
    stalls: Literal["", "first_token", "idle"] = ""
    counts: bool = True
    retry_after_s: float | None = None
    huge: bool = False


@dataclass(frozen=True)
class Cell:
    """The outcome of one call.

    Attributes:
        reply: a description of the caller's reply.
        receipt: the receipt's status, and how the faulty engine's tokens count: `counted`, `estimated` or `free`.
        calls: the number of calls to the faulty engine.
        breaker: whether the engine's breaker is open afterwards or pauses a tenant; empty if all calls pass.
    """

    reply: str
    receipt: str
    calls: int = 1
    breaker: str = ""


Row = tuple[Cell | None, ...]
"""A cell for each column; None where such a call cannot meet the fault."""


FAULTS = (
    Fault("none", "has no fault", behaviors.nothing),
    Fault("refused", "refuses the connection", None, UNREACHABLE, UNREACHABLE),
    Fault(
        "reset-before-head",
        "resets the connection before it answers",
        behaviors.reset_before_head,
        UNREACHABLE,
        UNREACHABLE,
    ),
    Fault("reset-after-head", "resets it after the headers", behaviors.reset_after_head, UNREACHABLE, UNREACHABLE),
    Fault("reset-between", "resets it in the middle of the answer", behaviors.reset_between, UNREACHABLE, UNREACHABLE),
    Fault(
        "reset-in-chunk", "resets it in the middle of a chunk", behaviors.reset_inside_chunk, UNREACHABLE, UNREACHABLE
    ),
    Fault("closed-before-head", "hangs up before it answers", behaviors.closed_before_head, UNREACHABLE, UNREACHABLE),
    Fault("closed-in-head", "hangs up in the middle of the headers", behaviors.head_alone, UNREACHABLE, UNREACHABLE),
    Fault("closed-halfway", "hangs up in the middle of the answer", behaviors.closed_halfway, UNREACHABLE, UNREACHABLE),
    Fault("ends-halfway", "ends the reply in the middle of the answer", behaviors.ends_halfway, GARBLED, FAILED),
    Fault("not-http", "speaks something else than HTTP", behaviors.not_http, UNREACHABLE, UNREACHABLE),
    Fault(
        "stall-before-head",
        "takes the call and says nothing",
        behaviors.stall_before_head,
        TIMEOUT,
        TIMEOUT,
        stalls="first_token",
    ),
    Fault(
        "stall-before-token",
        "stalls before its first token",
        behaviors.stall_before_token,
        TIMEOUT,
        TIMEOUT,
        stalls="first_token",
    ),
    Fault(
        "stall-between", "stalls in the middle of the answer", behaviors.stall_between, TIMEOUT, TIMEOUT, stalls="idle"
    ),
    Fault(
        "stall-after-last",
        "stalls after the last token, without [DONE]",
        behaviors.stall_after_last,
        TIMEOUT,
        stalls="idle",
    ),
    Fault("split-character", "cuts its packets inside UTF-8 characters", behaviors.split_character),
    Fault("split-field", "cuts its packets inside `data:`", behaviors.streamed(behaviors.split_field), None),
    Fault("in-pairs", "sends two events in one packet", behaviors.streamed(behaviors.in_pairs), None),
    Fault("all-at-once", "sends all events in one packet", behaviors.streamed(behaviors.all_at_once), None),
    Fault("crlf", "ends its lines with CRLF", behaviors.streamed(behaviors.crlf), None),
    Fault("split-crlf", "cuts its packets inside CRLF", behaviors.streamed(behaviors.split_crlf), None),
    Fault("no-space", "sends `data:` without a space", behaviors.streamed(behaviors.without_space), None),
    Fault("comments", "sends comments and other fields", behaviors.streamed(behaviors.commented), None),
    Fault("byte-order-mark", "begins with a byte order mark", behaviors.streamed(behaviors.with_mark), None),
    Fault(
        "loud-type",
        "writes its content type in capitals",
        behaviors.streamed(lambda events: map(event, events), content_type="Text/Event-Stream; Charset=UTF-8"),
        None,
    ),
    Fault("no-done", "sends no [DONE]", behaviors.streamed(behaviors.without_last), None),
    Fault(
        "no-last-blank",
        "ends without [DONE] and without the last blank line",
        behaviors.streamed(behaviors.unended),
        None,
    ),
    Fault("no-finish", "sends [DONE] and no finish_reason", behaviors.streamed(behaviors.unfinished), None),
    Fault("no-end", "sends neither [DONE] nor a finish_reason", behaviors.streamed(behaviors.cut_off), None, FAILED),
    Fault(
        "openai-error-first",
        "sends OpenAI's error, HTTP 200, in the place of an answer",
        behaviors.fails_with(behaviors.OPENAI_ERROR),
        FAILED,
        FAILED,
    ),
    Fault(
        "openai-error",
        "sends OpenAI's error event in the middle",
        behaviors.fails_with(behaviors.OPENAI_ERROR, after=4),
        None,
        sse=FAILED,
    ),
    Fault(
        "vllm-error",
        "sends vLLM's error event in the middle, then [DONE]",
        behaviors.fails_with(behaviors.VLLM_ERROR, after=4, done=True),
        None,
        sse=FAILED,
        protocols=("openai",),
    ),
    Fault(
        "tgi-error",
        "sends TGI's error, HTTP 200, as /generate_stream does",
        behaviors.fails_with(behaviors.TGI_ERROR, after=4),
        FAILED,
        FAILED,
        protocols=("tgi",),
    ),
    Fault(
        "tgi-chat-error",
        "sends TGI's error event for chats, then [DONE]",
        behaviors.fails_with(behaviors.TGI_CHAT_ERROR, after=4, done=True),
        None,
        sse=FAILED,
        protocols=("tgi",),
    ),
    Fault(
        "html-200",
        "answers an HTML page, HTTP 200",
        behaviors.answers(200, behaviors.HTML, content_type="text/html"),
        GARBLED,
        GARBLED,
    ),
    Fault(
        "html-502",
        "answers an HTML page, HTTP 502",
        behaviors.answers(502, behaviors.HTML, content_type="text/html"),
        FAILED,
        FAILED,
    ),
    Fault("status-500", "answers 500", behaviors.answers(500, behaviors.OPENAI_ERROR), FAILED, FAILED),
    Fault(
        "status-424",
        "answers TGI's 424, or its error event first in a stream",
        behaviors.rejects(424, behaviors.TGI_ERROR),
        FAILED,
        FAILED,
        protocols=("tgi",),
    ),
    Fault(
        "status-429",
        "answers 429; TGI: its error event first in a stream",
        behaviors.rejects(429, behaviors.TOO_MUCH),
        OVERLOADED,
        OVERLOADED,
        retry_after_s=1,
    ),
    Fault(
        "status-429-seconds",
        "answers 429, Retry-After: 7",
        behaviors.answers(429, behaviors.TOO_MUCH, retry_after="7"),
        OVERLOADED,
        OVERLOADED,
        retry_after_s=7,
    ),
    Fault(
        "status-429-date",
        "answers 429, Retry-After: a date in 30 s",
        behaviors.quota_date,
        OVERLOADED,
        OVERLOADED,
        retry_after_s=30,
    ),
    Fault(
        "status-503",
        "answers 503",
        behaviors.answers(503, {"detail": "loading"}),
        OVERLOADED,
        OVERLOADED,
        retry_after_s=1,
    ),
    Fault(
        "status-401",
        "answers 401 to the gateway's key",
        behaviors.answers(401, {"error": {"message": "no such key: KEY"}}),
        REJECTED,
        REJECTED,
    ),
    Fault(
        "status-404",
        "answers 404",
        behaviors.answers(404, {"error": {"message": "no such model at WHERE"}}),
        REJECTED,
        REJECTED,
    ),
    Fault(
        "status-422",
        "answers 422; TGI: its error event first in a stream",
        behaviors.rejects(422, behaviors.TGI_VALIDATION_ERROR),
        REJECTED,
        REJECTED,
    ),
    Fault("redirect", "answers 307 with another address", behaviors.redirects, GARBLED, GARBLED),
    Fault("huge-line", "sends a line of 50 MB", behaviors.endless_line, GARBLED, GARBLED, huge=True),
    Fault("huge-event", "sends an event of empty lines, 50 MB", behaviors.endless_lines, None, GARBLED, huge=True),
    Fault("gzip-bomb", "sends 50 MB, gzipped to 50 KB", behaviors.bomb, GARBLED, GARBLED, huge=True),
    Fault(
        "length-too-long", "promises more bytes than it sends, and hangs up", behaviors.longer_than_it_is, UNREACHABLE
    ),
    Fault(
        "length-too-long-stall",
        "promises more bytes than it sends, and waits",
        behaviors.longer_and_waits,
        TIMEOUT,
        stalls="idle",
    ),
    Fault(
        "length-too-short", "sends more bytes than it promises", behaviors.shorter_than_it_is, UNREACHABLE, UNREACHABLE
    ),
    Fault("broken-chunks", "sends a chunk without a size", behaviors.broken_chunks, UNREACHABLE, UNREACHABLE),
    Fault("gzip", "gzips, though asked not to", behaviors.gzipped),
    Fault("gzip-in-name", "says that it gzips, and does not", behaviors.gzip_in_name, UNREACHABLE, UNREACHABLE),
    Fault(
        "unknown-encoding",
        "sends an encoding that it was not asked for",
        behaviors.unknown_encoding,
        UNREACHABLE,
        UNREACHABLE,
    ),
    Fault("usage-missing", "sends no usage", behaviors.counting(MISSING), counts=False),
    Fault("usage-null", "sends usage null", behaviors.counting(None), counts=False),
    Fault("usage-zero", "counts no tokens", behaviors.counting(behaviors.ZERO), counts=False),
    Fault("changing-ids", "changes id, model and time between chunks", behaviors.streamed(behaviors.changing), None),
    Fault("early-hints", "sends 103 Early Hints first", behaviors.early_hints),
    Fault("continue", "sends 100 Continue and 102 Processing first", behaviors.other_heads),
)

PLAYS: dict[str, Play] = {fault.name: fault.play for fault in FAULTS if fault.play is not None}
