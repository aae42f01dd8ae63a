"""The beginning of a streamed answer whose student failed after its first text was sent.

The next engine continues that text, as a student continues guidance. Only text can be continued: reasoning, tool calls,
several answers, constrained answers and log-probabilities cannot.

Limit. The next call gets the caller's limit less the tokens of the text so far. An engine's running count of them is
exact. Text without a count gets an upper bound. Then the answer may end before the limit, and never exceeds it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.accounting.estimate import FALLBACK, Encoding, bound_text, count_text
from gateway.errors import EngineRejected
from gateway.policy.constraints import placements
from gateway.protocol.capabilities.reasoning import begins_with_reasoning
from gateway.protocol.text import TextRequest
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from gateway.errors import EngineError
    from gateway.guidance.seam import SeamJoin
    from gateway.pipeline.generation import GenerationTracker
    from gateway.pipeline.stream import StreamRelay
    from gateway.policy.plan import StudentPlan
    from gateway.protocol.capabilities.reasoning import ReasoningFilter
    from gateway.protocol.requests import CompletionRequest

DEFAULT_ENCODING = Encoding(FALLBACK)


class BrokenAnswer(Record, frozen=True):
    """The text of an answer so far, which the next engine continues."""

    sent: str  # the text that the caller has
    max_tokens: int  # the largest number of its tokens that count toward the caller's limit
    guidance_in_prompt: bool  # whether the guidance is in the prompt, instead of in `sent`
    lead: str = ""  # the whitespace with which a chat's answer begins. Templates write their own.

    @property
    def text(self) -> str:
        """Return the text for the next engine. Engines continue text without trailing whitespace best."""
        return self.sent[len(self.lead) :].rstrip()

    @property
    def space(self) -> str:
        """Return the whitespace that follows `text`."""
        return self.sent[len(self.sent.rstrip()) :]

    def longer(self, sent: str, tokens: WrittenTokens, request: CompletionRequest) -> BrokenAnswer:
        """Return the answer so far after another call, which failed too."""
        lead = "" if isinstance(request, TextRequest) else sent[: len(sent) - len(sent.lstrip())]
        return BrokenAnswer(sent, self.max_tokens + tokens.bound, self.guidance_in_prompt, lead)

    def suits(self, student: StudentPlan) -> bool:
        """Return whether a student continues the text across the seam, without the loss of a space."""
        continuation = student.continuation
        if continuation is None or continuation.writes_again:
            return False
        return bool(self.space) or not continuation.strips_leading_space


class WrittenTokens(Record, frozen=True):
    """The tokens of a failed call's text."""

    likely: int
    bound: int


def may_continue(request: CompletionRequest, relay: StreamRelay, error: EngineError) -> bool:
    """Return whether the text that `relay` sent may be continued after this error."""
    if isinstance(error, EngineRejected) or relay.finish_reason is not None or relay.has_sent_other:
        return False
    if isinstance(request, TextRequest):
        return placements(request.body, "completions").prefix is None
    return request.messages[-1]["role"] != "assistant" and placements(request.body, "chat").prefix is None


def sent_text(
    before: str, received: str, seam: SeamJoin | None, reasoning_filter: ReasoningFilter | None
) -> str | None:
    """Return the text that the caller has after a call that failed; None if it cannot be continued.

    Args:
        before: the text that was sent before the call.
        received: the call's text.
        seam: a new join, equal to that of the call; the result does not depend on the chunks of the text.
        reasoning_filter: a new filter, equal to that of the call.
    """
    reasoning = ""
    if reasoning_filter is not None:
        received, reasoning = reasoning_filter.feed(received)
    sent = before + (received if seam is None else seam.feed(received))
    return None if reasoning or not sent.strip() or begins_with_reasoning(sent) else sent


async def written_tokens(generation: GenerationTracker, encoding: Encoding) -> WrittenTokens:
    """Return the tokens of a failed call. The engine's count is exact as far as it reaches."""
    counted, chars = generation.running_count
    rest = generation.text[chars:]
    if not rest:
        return WrittenTokens(counted, counted)
    likely = await asyncio.to_thread(count_text, encoding.name, rest)
    bound = await asyncio.to_thread(bound_text, encoding.name, rest, own=encoding.own)
    return WrittenTokens(counted + likely, counted + bound)
