"""Where an opening ends of its own accord, before its length is used up: with a sentence, or with a step's line.

A student goes on better from a whole thought than from a half, and a teacher that is not heard further need not write.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from io import StringIO
from typing import TYPE_CHECKING

from gateway.engines.base import OpeningReply
from gateway.errors import EnoughHeard
from gateway.guidance.trim import fences, first_end

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.engines.base import Engine, OpeningRequest
    from gateway.policy.length import Choice
    from gateway.policy.length_rules import StopAt


@dataclass(slots=True)
class Ending:
    """Looks for it while the teacher writes.

    Attributes:
        stop_at: `sentence`: the end of a sentence or line; `step`: of a line.
        least: no sooner than after so many tokens.
        at: after how many characters the opening ends, blanks that follow included; None: it did not yet.
    """

    stop_at: StopAt
    least: int
    at: int | None = None
    _told: StringIO = field(default_factory=StringIO)
    _tokens: int = 0
    _begin: int | None = None

    @property
    def text(self) -> str:
        """All that was heard."""
        return self._told.getvalue()

    @property
    def tokens(self) -> int:
        """How many pieces were heard: engines tell of one token at a time, or of a few."""
        return self._tokens

    def feed(self, piece: str) -> str:
        """The next piece; of it what stands before the end. After the end: nothing."""
        if self.at is not None:
            return ""
        before = self._told.tell()
        self._told.write(piece)
        self._tokens += 1
        if self._tokens < self.least:
            return piece
        if self._begin is None:
            self._begin = before
        text = self.text
        self.at = _end(text, self._begin, self.stop_at)
        return piece if self.at is None else piece[: max(0, self.at - before)]


async def open_to_end(
    engine: Engine,
    request: OpeningRequest,
    batch: str,
    length: Choice | None,
    least: int,
    tell: Callable[[str], None] | None,
) -> OpeningReply:
    """What the teacher writes, and no more of it than to the sentence or line with which it may end: `ends_at` of it.

    length: how it was chosen, which says where it may end; None: it ends where the teacher does.
    least: no sooner than after so many tokens.
    tell: hears each piece, up to that end.

    The call ends there as well, where the engine tells of what it writes. This is a part of the work: whoever shares it
    gets the same opening. Raises EngineErrors.
    """
    if length is None or length.stop_at == "none":
        return await engine.opening(request, batch=batch, tell=tell)
    ending = Ending(length.stop_at, least)

    def hear(piece: str) -> None:
        shown = ending.feed(piece)
        if tell is not None and shown:
            tell(shown)
        if ending.at is not None:
            raise EnoughHeard

    try:
        reply = await engine.opening(request, batch=batch, tell=hear)
    except EnoughHeard:
        return OpeningReply(ending.text, "length", None, ending.at)
    if ending.tokens or reply.finish != "length":
        return reply
    # Nothing was told while it wrote.
    written = reply.usage.output_tokens if reply.usage is not None else request.max_tokens
    return replace(reply, ends_at=ends_at(reply.text, written, length.stop_at, least))


def ends_at(text: str, tokens: int, stop_at: StopAt, least: int) -> int | None:
    """The same of a text that was not heard as it was written: its tokens are taken to be equally long.

    tokens: how many it has.
    """
    if tokens <= least or not text:
        return None
    return _end(text, len(text) * least // tokens, stop_at)


def _end(text: str, begin: int, stop_at: StopAt) -> int | None:
    """Where the first sentence or line ends after `begin`, and the blanks after it. In code and JSON only lines do."""
    fence, _ = fences(text)
    prose = stop_at == "sentence" and fence is None and not text.lstrip().startswith(("{", "["))
    at = first_end(text, begin, in_prose=prose)
    if at is None:
        return None
    return at + len(text[at:]) - len(text[at:].lstrip())
