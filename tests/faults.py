"""The faults that an engine can have, as data: the engine's behavior and the outcome of a call that meets it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tests import fault_plays as plays
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
        breaker: the state of the engine's breaker afterwards; empty if closed.
    """

    reply: str
    receipt: str
    calls: int = 1
    breaker: str = ""


Row = tuple[Cell | None, ...]
"""A cell for each column; None where such a call cannot meet the fault."""


FAULTS = (
    Fault("none", "has no fault", plays.nothing),
    Fault("refused", "refuses the connection", None, UNREACHABLE, UNREACHABLE),
    Fault(
        "reset-before-head",
        "resets the connection before it answers",
        plays.reset_before_head,
        UNREACHABLE,
        UNREACHABLE,
    ),
    Fault("reset-after-head", "resets it after the headers", plays.reset_after_head, UNREACHABLE, UNREACHABLE),
    Fault("reset-between", "resets it in the middle of the answer", plays.reset_between, UNREACHABLE, UNREACHABLE),
    Fault("reset-in-chunk", "resets it in the middle of a chunk", plays.reset_inside_chunk, UNREACHABLE, UNREACHABLE),
    Fault("closed-before-head", "hangs up before it answers", plays.closed_before_head, UNREACHABLE, UNREACHABLE),
    Fault("closed-in-head", "hangs up in the middle of the headers", plays.head_alone, UNREACHABLE, UNREACHABLE),
    Fault("closed-halfway", "hangs up in the middle of the answer", plays.closed_halfway, UNREACHABLE, UNREACHABLE),
    Fault("ends-halfway", "ends the reply in the middle of the answer", plays.ends_halfway, GARBLED, FAILED),
    Fault("not-http", "speaks something else than HTTP", plays.not_http, UNREACHABLE, UNREACHABLE),
    Fault(
        "stall-before-head",
        "takes the call and says nothing",
        plays.stall_before_head,
        TIMEOUT,
        TIMEOUT,
        stalls="first_token",
    ),
    Fault(
        "stall-before-token",
        "stalls before its first token",
        plays.stall_before_token,
        TIMEOUT,
        TIMEOUT,
        stalls="first_token",
    ),
    Fault("stall-between", "stalls in the middle of the answer", plays.stall_between, TIMEOUT, TIMEOUT, stalls="idle"),
    Fault(
        "stall-after-last",
        "stalls after the last token, without [DONE]",
        plays.stall_after_last,
        TIMEOUT,
        stalls="idle",
    ),
    Fault("split-character", "cuts its packets inside UTF-8 characters", plays.split_character),
    Fault("split-field", "cuts its packets inside `data:`", plays.streamed(plays.split_field), None),
    Fault("in-pairs", "sends two events in one packet", plays.streamed(plays.in_pairs), None),
    Fault("all-at-once", "sends all events in one packet", plays.streamed(plays.all_at_once), None),
    Fault("crlf", "ends its lines with CRLF", plays.streamed(plays.crlf), None),
    Fault("split-crlf", "cuts its packets inside CRLF", plays.streamed(plays.split_crlf), None),
    Fault("no-space", "sends `data:` without a space", plays.streamed(plays.without_space), None),
    Fault("comments", "sends comments and other fields", plays.streamed(plays.commented), None),
    Fault("byte-order-mark", "begins with a byte order mark", plays.streamed(plays.with_mark), None),
    Fault(
        "loud-type",
        "writes its content type in capitals",
        plays.streamed(lambda events: map(event, events), content_type="Text/Event-Stream; Charset=UTF-8"),
        None,
    ),
    Fault("no-done", "sends no [DONE]", plays.streamed(plays.without_last), None),
    Fault("no-last-blank", "ends without [DONE] and without the last blank line", plays.streamed(plays.unended), None),
    Fault("no-finish", "sends [DONE] and no finish_reason", plays.streamed(plays.unfinished), None),
    Fault("no-end", "sends neither [DONE] nor a finish_reason", plays.streamed(plays.cut_off), None, FAILED),
    Fault(
        "openai-error-first",
        "sends OpenAI's error, HTTP 200, in the place of an answer",
        plays.fails_with(plays.OPENAI_ERROR),
        FAILED,
        FAILED,
    ),
    Fault(
        "openai-error",
        "sends OpenAI's error event in the middle",
        plays.fails_with(plays.OPENAI_ERROR, after=4),
        None,
        sse=FAILED,
    ),
    Fault(
        "vllm-error",
        "sends vLLM's error event in the middle, then [DONE]",
        plays.fails_with(plays.VLLM_ERROR, after=4, done=True),
        None,
        sse=FAILED,
        protocols=("openai",),
    ),
    Fault(
        "tgi-error",
        "sends TGI's error, HTTP 200, as /generate_stream does",
        plays.fails_with(plays.TGI_ERROR, after=4),
        FAILED,
        FAILED,
        protocols=("tgi",),
    ),
    Fault(
        "tgi-chat-error",
        "sends TGI's error event for chats, then [DONE]",
        plays.fails_with(plays.TGI_CHAT_ERROR, after=4, done=True),
        None,
        sse=FAILED,
        protocols=("tgi",),
    ),
    Fault(
        "html-200",
        "answers an HTML page, HTTP 200",
        plays.answers(200, plays.HTML, content_type="text/html"),
        GARBLED,
        GARBLED,
    ),
    Fault(
        "html-502",
        "answers an HTML page, HTTP 502",
        plays.answers(502, plays.HTML, content_type="text/html"),
        FAILED,
        FAILED,
    ),
    Fault("status-500", "answers 500", plays.answers(500, plays.OPENAI_ERROR), FAILED, FAILED),
    Fault("status-424", "answers TGI's 424", plays.answers(424, plays.TGI_ERROR), FAILED, FAILED, protocols=("tgi",)),
    Fault("status-429", "answers 429", plays.answers(429, plays.TOO_MUCH), OVERLOADED, OVERLOADED, retry_after_s=1),
    Fault(
        "status-429-seconds",
        "answers 429, Retry-After: 7",
        plays.answers(429, plays.TOO_MUCH, retry_after="7"),
        OVERLOADED,
        OVERLOADED,
        retry_after_s=7,
    ),
    Fault(
        "status-429-date",
        "answers 429, Retry-After: a date in 30 s",
        plays.quota_date,
        OVERLOADED,
        OVERLOADED,
        retry_after_s=30,
    ),
    Fault(
        "status-503", "answers 503", plays.answers(503, {"detail": "loading"}), OVERLOADED, OVERLOADED, retry_after_s=1
    ),
    Fault(
        "status-401",
        "answers 401 to the gateway's key",
        plays.answers(401, {"error": {"message": "no such key: KEY"}}),
        REJECTED,
        REJECTED,
    ),
    Fault(
        "status-404",
        "answers 404",
        plays.answers(404, {"error": {"message": "no such model at WHERE"}}),
        REJECTED,
        REJECTED,
    ),
    Fault(
        "status-422",
        "answers 422",
        plays.answers(422, {"error": "inputs too long", "error_type": "validation"}),
        REJECTED,
        REJECTED,
    ),
    Fault("redirect", "answers 307 with another address", plays.redirects, GARBLED, GARBLED),
    Fault("huge-line", "sends a line of 50 MB", plays.endless_line, GARBLED, GARBLED, huge=True),
    Fault("huge-event", "sends an event of empty lines, 50 MB", plays.endless_lines, None, GARBLED, huge=True),
    Fault("gzip-bomb", "sends 50 MB, gzipped to 50 KB", plays.bomb, GARBLED, GARBLED, huge=True),
    Fault("length-too-long", "promises more bytes than it sends, and hangs up", plays.longer_than_it_is, UNREACHABLE),
    Fault(
        "length-too-long-stall",
        "promises more bytes than it sends, and waits",
        plays.longer_and_waits,
        TIMEOUT,
        stalls="idle",
    ),
    Fault("length-too-short", "sends more bytes than it promises", plays.shorter_than_it_is, UNREACHABLE, UNREACHABLE),
    Fault("broken-chunks", "sends a chunk without a size", plays.broken_chunks, UNREACHABLE, UNREACHABLE),
    Fault("gzip", "gzips, though asked not to", plays.gzipped),
    Fault("gzip-in-name", "says that it gzips, and does not", plays.gzip_in_name, UNREACHABLE, UNREACHABLE),
    Fault(
        "unknown-encoding",
        "sends an encoding that it was not asked for",
        plays.unknown_encoding,
        UNREACHABLE,
        UNREACHABLE,
    ),
    Fault("usage-missing", "sends no usage", plays.counting(MISSING), counts=False),
    Fault("usage-null", "sends usage null", plays.counting(None), counts=False),
    Fault("usage-zero", "counts no tokens", plays.counting(plays.ZERO), counts=False),
    Fault("changing-ids", "changes id, model and time between chunks", plays.streamed(plays.changing), None),
    Fault("early-hints", "sends 103 Early Hints first", plays.early_hints),
    Fault("continue", "sends 100 Continue and 102 Processing first", plays.other_heads),
)

PLAYS: dict[str, Play] = {fault.name: fault.play for fault in FAULTS if fault.play is not None}
