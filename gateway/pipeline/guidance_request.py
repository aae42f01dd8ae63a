"""How an answer opens: what a teacher is asked for, and what its reply opens the answer with.

Paper, section 2: guidance G = F(teacher, prompt), at most m tokens; the student then completes the prompt and G.
"""

from __future__ import annotations

import asyncio
from io import StringIO
from typing import TYPE_CHECKING, Any

from gateway.accounting.draft import EngineCall
from gateway.engines.base import OpeningRequest
from gateway.guidance.keep import keep
from gateway.guidance.projection import teacher_messages, teacher_prompt
from gateway.protocol.text import TextRequest
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.accounting.draft import ReceiptBuilder
    from gateway.engines.base import OpeningReply
    from gateway.guidance.keep import GrowingKeep
    from gateway.policy.projections import Projection
    from gateway.policy.resolve import GuidancePlan, Plan
    from gateway.protocol.body import Json
    from gateway.protocol.requests import CompletionRequest

# English has about four bytes to a token. So are counted the words of a teacher that was hung up on.
_BYTES_PER_TOKEN = 4


class Guidance(Record, frozen=True):
    """How an answer opens.

    Attributes:
        text: the guidance as it is shown and sent; empty when the answer goes unguided.
        owed: the whitespace that followed it in what the teacher wrote.
        tokens: of the teacher's tokens, those in `text`.
        whole: the finish_reason when `text` is the whole answer and no student is called; else None.
        dropped: what the teacher wrote after that, and nobody is shown.
    """

    text: str = ""
    pending_space: str = ""
    tokens: int = 0
    finish_reason: str | None = None
    dropped: str = ""


UNGUIDED = Guidance()


class GuidanceStream:
    """What a teacher was heard to write while its caller listens, and of that what may be shown already."""

    def __init__(self, keep: GrowingKeep, *, keeps_lead: bool) -> None:
        self.keep = keep
        self._keeps_lead = keeps_lead
        self.text = StringIO()
        self.tokens = 0  # an engine tells of one token at a time, or of a few
        self.shown = ""
        self.pieces: asyncio.Queue[str] = asyncio.Queue()
        """What may be shown, piece by piece; at the end an empty one."""
        self.closed = False  # the caller listens no longer: others share the call, and it goes on for them

    def feed(self, piece: str) -> None:
        if self.closed:
            return
        self.text.write(piece)
        self.tokens += 1
        if more := self.keep.feed(piece):
            if self._keeps_lead and not self.shown:
                more = _lead(self.text.getvalue()) + more
            self.shown += more
            self.pieces.put_nowait(more)


def build_opening_request(guidance_plan: GuidancePlan, request: CompletionRequest) -> OpeningRequest:
    """What the teacher is asked."""
    projection = guidance_plan.projection
    return OpeningRequest(
        max_tokens=guidance_plan.asked_tokens,
        **_read_by_teacher(projection, request),
        temperature=guidance_plan.temperature,
        top_p=guidance_plan.top_p,
        seed=guidance_plan.seed,
        # A hint is not the answer: what stops the answer need not stop it.
        stop=request.stop if projection.teacher_may_finish else (),
    )


def guidance_from_reply(
    plan: Plan,
    guidance_plan: GuidancePlan,
    request: CompletionRequest,
    builder: ReceiptBuilder,
    reply: OpeningReply,
    stream: GuidanceStream | None = None,
) -> Guidance | str:
    """What a teacher's reply opens the answer with, written down in the draft; why, where nothing of it is left."""
    may_finish = guidance_plan.projection.teacher_may_finish and guidance_plan.may_answer
    shown = guidance_plan.placement == "prefix"
    cut = reply.finish == "length"
    if stream is not None and stream.tokens:
        found = stream.keep.finish(cut=cut)
    else:
        stop, skip = request.stop if may_finish or shown else (), guidance_plan.projection.skip
        text = reply.text[: reply.ends_at]
        found = keep(text, skip, guidance_plan.tokens, cut=cut, stop=stop, boundary=guidance_plan.boundary)
    trimmed = found.trimmed
    if not trimmed.text:
        return "guidance_boilerplate" if found.skipped else "guidance_empty"
    tokens = _kept_tokens(reply, trimmed.text, guidance_plan.tokens)
    ended = not found.cut and not trimmed.dropped
    finish_reason: str | None = None
    if (trimmed.stopped and (may_finish or shown)) or (ended and may_finish):
        finish_reason = "stop"
    elif shown and plan.max_tokens is not None and tokens >= plan.max_tokens:
        finish_reason = "length"
    builder.kept_tokens = tokens
    builder.ended_at = plan.length.stop_at if plan.length is not None and reply.ends_at is not None else None
    builder.complete = finish_reason == "stop"
    # An answer that is whole is shown to its end, blanks and all; one that goes on leaves them to the student.
    text = trimmed.text + trimmed.pending_space if finish_reason == "stop" else trimmed.text
    if isinstance(request, TextRequest) and shown:
        # As it was shown, where it was: a stream's pieces and its last word need not begin alike.
        text = _lead(stream.text.getvalue() if stream is not None and stream.tokens else reply.text) + text
    builder.opening = text
    return Guidance(text, trimmed.pending_space, tokens, finish_reason, trimmed.dropped)


def _read_by_teacher(projection: Projection, request: CompletionRequest) -> dict[str, Any]:
    """What the teacher reads, as an OpeningRequest has it."""
    if isinstance(request, TextRequest):
        assert request.prompt is not None, "resolve() leaves several prompts, and token ids, unguided"
        return {"prompt": teacher_prompt(projection, request.prompt)}
    return {"messages": teacher_messages(projection, request.messages)}


def _lead(text: str) -> str:
    """The blanks with which a text begins. In a chat the template puts them; after a raw prompt they matter."""
    return text[: len(text) - len(text.lstrip())]


def teacher_input(opening_request: OpeningRequest) -> Sequence[Json]:
    """What the teacher reads, for a count of our own."""
    return (
        opening_request.messages
        if opening_request.messages is not None
        else [{"role": "user", "content": opening_request.prompt}]
    )


def answered_call(
    guidance_plan: GuidancePlan,
    opening_request: OpeningRequest,
    reply: OpeningReply,
    shared: str = "",
    unread: int | None = None,
) -> EngineCall:
    """Return the teacher's call as the receipt charges it.

    Args:
        shared: as in `EngineCall`.
        unread: tokens that the teacher may have written after the gateway ended its call with a sentence or step; None:
            the teacher is not known to stop, and may have written as many as it was asked for.
    """
    was_ended = reply.usage is None and reply.ends_at is not None
    most = guidance_plan.asked_tokens
    return EngineCall(
        guidance_plan.teacher,
        teacher_input(opening_request),
        reply.usage,
        StringIO(reply.text),
        lost_tokens=(most if unread is None else unread) if was_ended else 0,
        limit_tokens=most,
        shared=shared,
        span=reply.span,
        role="guidance",
    )


def _kept_tokens(reply: OpeningReply, kept: str, most: int) -> int:
    """The teacher's tokens before the seam: its own count, in proportion to the text that was kept."""
    if reply.usage is None:
        return max(1, min(most, len(kept.encode()) // _BYTES_PER_TOKEN))
    written = reply.usage.output_tokens
    if len(kept) >= len(reply.text.strip()):
        return written
    return max(1, min(written, round(written * len(kept) / len(reply.text))))
