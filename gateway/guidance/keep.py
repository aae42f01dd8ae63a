"""Keep a part of a teacher's text: apply the projection's skip rules (skip.py), then trim the rest (trim.py). Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gateway.guidance.growing import GrowingTrim
from gateway.guidance.skip import GrowingSkip, skipped
from gateway.guidance.trim import trim

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.guidance.trim import TrimmedText
    from gateway.policy.projections import SkipRule
    from gateway.policy.schema import Boundary


class KeptGuidance(NamedTuple):
    """The kept part of a teacher's text.

    Attributes:
        cut: the text is incomplete: the teacher was stopped by length, or wrote more than m tokens after the skipped
            text.
        skipped: whether boilerplate was dropped from its beginning.
    """

    trimmed: TrimmedText
    cut: bool
    skipped: bool


class GrowingKeep:
    """`keep` for a text that arrives in pieces."""

    def __init__(self, skip: SkipRule | None, tokens: int, *, boundary: Boundary, stop: Sequence[str]) -> None:
        self._trim = GrowingTrim(boundary=boundary, stop=stop)
        self._skip = GrowingSkip(skip, tokens) if skip is not None else None

    def feed(self, piece: str) -> str:
        """Read the teacher's next text, of any length. Return what can be shown now."""
        return self._trim.feed(piece if self._skip is None else self._skip.feed(piece))

    def finish(self, *, cut: bool) -> KeptGuidance:
        """Return the kept part after the teacher has ended. It begins with all shown text.

        Args:
            cut: whether the teacher was stopped by its length limit.
        """
        if self._skip is None:
            return KeptGuidance(self._trim.finish(cut=cut), cut, skipped=False)
        self._trim.feed(self._skip.finish())
        cut = cut or self._skip.cut
        return KeptGuidance(self._trim.finish(cut=cut), cut, self._skip.dropped)


def keep(
    text: str, skip: SkipRule | None, tokens: int, *, cut: bool, stop: Sequence[str], boundary: Boundary
) -> KeptGuidance:
    """Return the kept part of a complete text.

    Args:
        skip, tokens: as for GrowingSkip; a skip of None keeps the whole beginning.
        cut, stop, boundary: as for `trim`.
    """
    if skip is None:
        return KeptGuidance(trim(text, cut=cut, stop=stop, boundary=boundary), cut, skipped=False)
    rest, skip_filter = skipped(text, skip, tokens)
    cut = cut or skip_filter.cut
    return KeptGuidance(trim(rest, cut=cut, stop=stop, boundary=boundary), cut, skip_filter.dropped)
