"""Build the teacher's request, and read from its reply the guidance that begins the answer.

Paper, section 2: guidance G = F(teacher, prompt), at most m tokens; the student then completes the prompt and G.
"""

from __future__ import annotations

import asyncio
from io import StringIO
from typing import TYPE_CHECKING, Any

from gateway.accounting.shares import EngineCall
from gateway.engines.base import CONTENT_FILTER, TeacherRequest
from gateway.engines.token_ends import tokens_in
from gateway.guidance.keep import keep
from gateway.guidance.projection import teacher_messages, teacher_prompt
from gateway.guidance.trim import without_begun
from gateway.policy.constraints import STOP_CONDITION
from gateway.protocol.text import TextRequest
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.engines.base import TeacherReply
    from gateway.guidance.keep import GrowingKeep, KeptGuidance
    from gateway.policy.plan import GuidancePlan, Plan
    from gateway.protocol.body import Json
    from gateway.protocol.requests import CompletionRequest

# English has about four bytes per token. This estimates the tokens of a teacher without usage.
_BYTES_PER_TOKEN = 4
# Counting a longer text takes more than a few milliseconds, which would block the event loop.
_MAX_COUNTED_CHARS = 4_000
# Constraints that depend on the number of tokens in the whole answer.
_COUNTED = frozenset({"min_tokens", "ignore_eos"})


class Guidance(Record, frozen=True):
    """The guidance of one answer, as it is shown and sent. It is empty if the answer is unguided."""

    text: str = ""
    lead: str = ""  # the whitespace before `text`: shown, and not sent, since a chat template may write its own
    pending_space: str = ""  # the whitespace that followed in the teacher's text
    tokens: int = 0  # the number of the teacher's tokens in `text`
    finish_reason: str | None = None  # set if `text` is the whole answer and no student is called
    dropped: str = ""  # the teacher's text after that, which is not shown


UNGUIDED = Guidance()
TEACHER_FILTERED = "teacher_content_filter"
"""The `unguided` reason of an answer whose teacher's content filter refused the request."""


class GuidanceStream:
    """The text of a teacher while it generates, and the part that the caller may be shown already.

    With `sends_lead` the leading whitespace is part of the guidance, as after a raw prompt. Otherwise it is only shown.
    With `sends_tokens` each piece is one token. Otherwise it may be a few.
    """

    def __init__(self, keep: GrowingKeep, *, sends_lead: bool, sends_tokens: bool = False) -> None:
        self.keep = keep
        self._sends_lead = sends_lead
        self.text = StringIO()
        self.sends_tokens = sends_tokens
        self.ends: list[int] = []  # the number of characters after each piece
        self.lead = ""  # whitespace that was shown before `shown`, and is not sent
        self.shown = ""
        self.pieces: asyncio.Queue[str] = asyncio.Queue()
        """Pieces to show, in order; an empty piece ends them."""
        self.closed = False  # the caller no longer reads: the call continues for the requests that share it

    @property
    def tokens(self) -> int:
        """Return the number of pieces."""
        return len(self.ends)

    def feed(self, piece: str) -> None:
        """Add the teacher's next piece, and queue what may be shown of it."""
        if self.closed:
            return
        self.text.write(piece)
        self.ends.append(self.text.tell())
        if more := self.keep.feed(piece):
            lead = ""
            if not self.shown:
                text = self.text.getvalue()
                if self._sends_lead:
                    more = _lead(text) + more
                else:
                    self.lead = lead = _lead_of(text, more)
            self.shown += more
            self.pieces.put_nowait(lead + more)


def build_teacher_request(guidance_plan: GuidancePlan, request: CompletionRequest) -> TeacherRequest:
    """Return the request to send to the teacher."""
    projection, constraints = guidance_plan.projection, guidance_plan.constraints
    if constraints is not None and (least := constraints.get("min_tokens")) is not None:
        constraints = {**constraints, "min_tokens": min(least, guidance_plan.requested_tokens)}
    read: dict[str, Any] = {}
    if isinstance(request, TextRequest):
        assert request.prompt is not None, "resolve() plans no guidance for several prompts or token ids"
        read["prompt"] = teacher_prompt(projection, request.prompt)
    else:
        read["messages"] = teacher_messages(projection, request.messages)
    return TeacherRequest(
        max_tokens=guidance_plan.requested_tokens,
        **read,
        temperature=guidance_plan.temperature,
        top_p=guidance_plan.top_p,
        seed=guidance_plan.seed,
        # A hint is not the answer, so the caller's stop strings do not end it.
        stop=request.stop if projection.teacher_may_finish else (),
        constraints=constraints,
    )


def guidance_from_reply(
    plan: Plan,
    guidance_plan: GuidancePlan,
    request: CompletionRequest,
    builder: ReceiptBuilder,
    reply: TeacherReply,
    stream: GuidanceStream | None = None,
    count: Callable[[str], int] | None = None,
) -> Guidance | str:
    """Return the guidance in a teacher's reply, or the reason if nothing of it is kept. Record it in the builder.

    Text that a content filter ended is the whole answer, unless the policy says otherwise.
    `stream` is the reply as it was streamed; None: it was not streamed. `count` is the teacher's own tokenizer, where
    config.yaml names one.
    """
    may_finish = guidance_plan.projection.teacher_may_finish and guidance_plan.may_answer
    shown = guidance_plan.placement == "prefix"
    cut = reply.finish != "stop"
    is_refused = reply.finish == CONTENT_FILTER and plan.retries.is_filter_final
    if stream is not None and stream.tokens:
        found = stream.keep.finish(cut=cut)
    else:
        stop, skip = request.stop if may_finish or shown else (), guidance_plan.projection.skip
        found = keep(reply.text, skip, guidance_plan.tokens, cut=cut, stop=stop, boundary=guidance_plan.boundary)
    trimmed = found.trimmed
    if (why_empty := _why_empty(reply, found, is_refused=is_refused, shown=shown)) is not None:
        return why_empty
    tokens, estimated = _kept_tokens(reply, trimmed.text, guidance_plan.tokens, count)
    ended = not found.cut and not trimmed.dropped
    constraints = guidance_plan.constraints
    least = constraints.get("min_tokens", 0) if constraints is not None else 0
    finish_reason: str | None = None
    if (trimmed.stopped and (may_finish or shown)) or (ended and may_finish and tokens >= least):
        finish_reason = "stop"
    elif is_refused:
        finish_reason = CONTENT_FILTER
    elif shown and plan.max_tokens is not None and tokens >= plan.max_tokens:
        finish_reason = "length"
    if constraints is not None and finish_reason is None and (words := constraints.get("bad_words")):
        trimmed = without_begun(trimmed, _token_starts(reply, trimmed.text), words, guidance_plan.boundary)
        if not trimmed.text:
            return "guidance_empty"
        tokens, estimated = _kept_tokens(reply, trimmed.text, guidance_plan.tokens, count)
    is_whole = finish_reason in ("stop", CONTENT_FILTER)
    if constraints is not None and not is_whole and estimated and not _COUNTED.isdisjoint(constraints):
        builder.unguided = STOP_CONDITION
        return UNGUIDED
    builder.kept_tokens, builder.kept_estimated = tokens, estimated
    builder.complete = finish_reason == "stop"
    # A whole answer includes its trailing whitespace. Guidance that a student continues does not.
    text = trimmed.text + trimmed.pending_space if finish_reason == "stop" else trimmed.text
    if isinstance(request, TextRequest) and shown:
        # Streamed text keeps the whitespace that was shown: the pieces and the final text may begin differently.
        text = _lead(stream.text.getvalue() if stream is not None and stream.tokens else reply.text) + text
    builder.guidance_text = text
    if isinstance(request, TextRequest):
        lead = ""
    elif stream is not None and stream.tokens:
        lead = stream.lead or ("" if stream.shown else _lead_of(stream.text.getvalue(), text))
    else:
        lead = _lead_of(reply.text, text)
    return Guidance(text, lead, trimmed.pending_space, tokens, finish_reason, trimmed.dropped)


def _why_empty(reply: TeacherReply, found: KeptGuidance, *, is_refused: bool, shown: bool) -> str | None:
    """Return the reason if no guidance is kept of a reply; None: it is kept, or a refusal ends the answer."""
    if is_refused:
        return None if shown else TEACHER_FILTERED
    if found.trimmed.text:
        return None
    if reply.finish == CONTENT_FILTER:
        return TEACHER_FILTERED
    return "guidance_boilerplate" if found.skipped else "guidance_empty"


def _lead_of(text: str, kept: str) -> str:
    """Return the whitespace before the kept text; empty if other text, such as reasoning, is between them."""
    if not text[:1].isspace():
        return ""
    lead = _lead(text)
    return lead if text.startswith(kept, len(lead)) else ""


def _lead(text: str) -> str:
    """Return the leading whitespace."""
    return text[: len(text) - len(text.lstrip())]


def teacher_input(teacher_request: TeacherRequest) -> Sequence[Json]:
    """Return the teacher's input as messages, for the gateway's own token count."""
    messages = teacher_request.messages
    return messages if messages is not None else [{"role": "user", "content": teacher_request.prompt}]


def answered_call(
    guidance_plan: GuidancePlan,
    teacher_request: TeacherRequest,
    reply: TeacherReply,
    shared: str = "",
) -> EngineCall:
    """Return the teacher's call as the receipt charges it; `shared` as in `EngineCall`."""
    return EngineCall(
        guidance_plan.teacher,
        teacher_input(teacher_request),
        reply.usage,
        StringIO(reply.text),
        limit_tokens=guidance_plan.requested_tokens,
        shared=shared,
        span=reply.span,
        role="guidance",
    )


def _kept_tokens(
    reply: TeacherReply, kept: str, max_tokens: int, count: Callable[[str], int] | None
) -> tuple[int, bool]:
    """Return the teacher's tokens before the seam, and whether the number is an estimate."""
    usage, ends = reply.usage, reply.token_ends
    if not kept:
        return 0, False
    if usage is not None and reply.finish == "stop" and len(kept) >= len(reply.text.strip()):
        return usage.output_tokens, usage.estimated  # with the token that ended the answer
    if ends is not None:
        return kept_of_tokens(reply.text, ends, kept), False
    if count is not None and len(kept) <= _MAX_COUNTED_CHARS:
        return max(1, min(max_tokens, count(kept))), False
    if usage is None:
        return max(1, min(max_tokens, len(kept.encode()) // _BYTES_PER_TOKEN)), True
    written = usage.output_tokens
    if len(kept) >= len(reply.text.strip()):
        return written, usage.estimated or len(kept) < len(reply.text.lstrip())
    return max(1, min(written, round(written * len(kept) / len(reply.text)))), True


def _token_starts(reply: TeacherReply, kept: str) -> Sequence[int]:
    """Return where tokens of the kept text begin; every character if the teacher did not report its tokens."""
    if reply.token_ends is None:
        return range(len(kept))
    begin = max(0, reply.text.find(kept))
    return [0, *(end - begin for end in reply.token_ends)]


def kept_of_tokens(text: str, ends: Sequence[int], kept: str) -> int:
    """Return the number of tokens of the kept part of a text. Whitespace before the part is shown, and counts."""
    begin = max(0, text.find(kept))
    return tokens_in(ends, begin if text[:begin].strip() else 0, begin + len(kept))
