"""End guidance at a sentence or a step's line before its maximum length is used up.

A student continues a complete sentence better than half of one. Ending the teacher's call early also saves its tokens.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from io import StringIO
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from msgspec.structs import replace

from gateway.engines.base import TeacherReply
from gateway.errors import StopStream
from gateway.guidance.keep import GrowingSkip
from gateway.guidance.trim import fences, first_end

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.engines.base import Engine, TeacherRequest
    from gateway.policy.plan import GuidancePlan, Plan
    from gateway.policy.projections import SkipRule


class EndRule(NamedTuple):
    """The condition for the end of the guidance; `skip` and `tokens` are as for GrowingSkip."""

    stop_at: Literal["sentence", "step"]  # at the end of a sentence or line; at the end of a line
    min_tokens: int  # the number of kept tokens before which the guidance does not end
    skip: SkipRule | None = None
    tokens: int = 0

    @classmethod
    def of(cls, plan: Plan, guidance: GuidancePlan) -> Self | None:
        """Return the rule of a plan; None: the guidance ends where the teacher does."""
        length = plan.length
        if length is None or length.stop_at == "none":
            return None
        return cls(length.stop_at, length.least, guidance.projection.skip, guidance.tokens)

    @property
    def facts(self) -> tuple[object, ...]:
        """Return all values that the end depends on, for a hash."""
        skipped = () if self.skip is None else (self.tokens, *(pattern.text for pattern in self.skip.patterns))
        return self.stop_at, self.min_tokens, *skipped


@dataclass(slots=True)
class EndDetector:
    """Find the end while the teacher generates."""

    rule: EndRule
    at: int | None = None  # the number of characters before the end, whitespace after it included; None: not found yet
    piece_ends: list[int] = field(default_factory=list)
    _text: StringIO = field(default_factory=StringIO)
    _piece_starts: list[int] = field(default_factory=list)  # an engine sends one token per piece, or a few
    _skip: GrowingSkip | None = field(init=False)
    _earliest_end: int | None = None  # the earliest possible end

    def __post_init__(self) -> None:
        self._skip = _skip_of(self.rule)

    @property
    def text(self) -> str:
        return self._text.getvalue()

    def feed(self, piece: str) -> str:
        """Read the next piece. Return the part of it that is before the end."""
        if self.at is not None:
            return ""
        before = self._text.tell()
        self._text.write(piece)
        self.piece_ends.append(before + len(piece))
        if self._skip is not None:
            self._skip.feed(piece)
        if self._earliest_end is None:
            self._piece_starts.append(before)
            self._earliest_end = self._earliest_end_at()
            if self._earliest_end is None:
                return piece
        self.at = _end(self.text, self._earliest_end, self.rule, self._skip)
        return piece if self.at is None else piece[: max(0, self.at - before)]

    def _earliest_end_at(self) -> int | None:
        """Return where the last of the minimum number of tokens begins; None: it has not arrived."""
        begins_at = 0 if self._skip is None else self._skip.begins_at
        if begins_at is None:
            return None
        last = max(0, bisect_right(self._piece_starts, begins_at) - 1) + max(1, self.rule.min_tokens) - 1
        return max(begins_at, self._piece_starts[last]) if last < len(self._piece_starts) else None


async def open_to_end(
    engine: Engine,
    request: TeacherRequest,
    batch: str | None,
    rule: EndRule | None,
    on_text: Callable[[str], None] | None,
) -> TeacherReply:
    """Call the teacher, and end the call where its text may end. Return the reply, with the end as `ends_at`.

    The rule is part of the call's dedupe key, so requests that share the call get the same text. Without a rule, or if
    the engine does not stream, the call is made to the teacher's end. `on_text` gets each piece before the end. Raises
    EngineErrors.
    """
    if rule is None:
        return await engine.generate_guidance(request, batch=batch, on_text=on_text)
    ending = EndDetector(rule)

    def on_piece(piece: str) -> None:
        visible = ending.feed(piece)
        if on_text is not None and visible:
            on_text(visible)
        if ending.at is not None:
            raise StopStream

    try:
        reply = await engine.generate_guidance(request, batch=batch, on_text=on_piece)
    except StopStream:
        ends = tuple(ending.piece_ends) if engine.state.sends_tokens else None
        return TeacherReply(ending.text, "length", None, ending.at, token_ends=ends)
    if ending.text or reply.finish != "length":
        return reply
    # The engine did not stream.
    output_tokens = reply.usage.output_tokens if reply.usage is not None else request.max_tokens
    return replace(reply, ends_at=ends_at(reply.text, output_tokens, rule))


def ends_at(text: str, tokens: int, rule: EndRule) -> int | None:
    """Return the end of a text that was not streamed; None: it has none. Its `tokens` are assumed equally long."""
    skip_filter = _skip_of(rule)
    if skip_filter is not None:
        skip_filter.feed(text)
        skip_filter.finish()
    begins_at = 0 if skip_filter is None else skip_filter.begins_at
    if begins_at is None or not tokens:
        return None
    begin = begins_at + len(text) * rule.min_tokens // tokens
    return _end(text, begin, rule, skip_filter) if begin < len(text) else None


def _skip_of(rule: EndRule) -> GrowingSkip | None:
    return GrowingSkip(rule.skip, rule.tokens) if rule.skip is not None else None


def _end(text: str, begin: int, rule: EndRule, skip_filter: GrowingSkip | None) -> int | None:
    """Return the end of the first sentence or line after `begin`, with the whitespace after it.

    In code and JSON only lines end.
    """
    visible = text if skip_filter is None else text[skip_filter.begins_at :]
    fence, _ = fences(visible)
    prose = rule.stop_at == "sentence" and fence is None and not visible.lstrip().startswith(("{", "["))
    at = first_end(text, begin, in_prose=prose)
    if at is None or (skip_filter is not None and skip_filter.cut_at is not None and at > skip_filter.cut_at):
        return None
    return at + len(text[at:]) - len(text[at:].lstrip())
