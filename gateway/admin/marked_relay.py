"""A relay that says which words of an answer are the teacher's opening. Sans-io."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.pipeline.stream import StreamRelay

if TYPE_CHECKING:
    from gateway.capabilities.reasoning import ReasoningFilter
    from gateway.guidance.seam import SeamJoin
    from gateway.protocol.body import Json
    from gateway.protocol.reply import ReplyHead

MARK = "x_gkt"


class MarkedRelay(StreamRelay):
    """Like the one for callers; a chunk with words of the opening has them, by themselves, under `x_gkt.opening`.

    They stand first in its content. The seam may hold a few back and let them go with the student's: hence the counts.
    """

    def __init__(self, head: ReplyHead, *, wants_usage: bool) -> None:
        super().__init__(head, wants_usage=wants_usage)
        self._joined: SeamJoin | None = None
        self._told = 0  # characters of the answer that have left

    def join(self, seam: SeamJoin | None, thoughts: ReasoningFilter | None = None) -> list[Json]:
        self._joined = seam
        return super().join(seam, thoughts)

    def show(self, piece: str) -> list[Json]:
        chunks = super().show(piece)
        for chunk in chunks:
            chunk[MARK] = {"opening": piece}
        self._told += len(piece)
        return chunks

    def feed(self, chunk: Json) -> Json | None:
        relayed = super().feed(chunk)
        if relayed is not None:
            self._mark(relayed)
        return relayed

    def end(self, finish_reason: str | None = None) -> list[Json]:
        chunks = super().end(finish_reason)
        for chunk in chunks:
            self._mark(chunk)
        return chunks

    def _mark(self, chunk: Json) -> None:
        """Mark what of the opening leaves with the finisher's words: the end of it, or all where it was written again.

        Of a finisher that began otherwise nothing is the teacher's.
        """
        content = "".join(one["delta"].get("content") or "" for one in chunk["choices"] if one["index"] == 0)
        seam = self._joined
        if content and seam is not None and not seam.restarted and self._told < len(seam.guidance):
            chunk[MARK] = {"opening": content[: len(seam.guidance) - self._told]}
        self._told += len(content)
