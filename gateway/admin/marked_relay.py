"""A relay that marks the guidance in an answer, for the playground. It does no I/O."""

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
    """Relays chunks as StreamRelay does, and copies the guidance in a chunk's content to `x_gkt.opening`.

    Guidance precedes the student's text in a chunk. The seam may hold back the end of the guidance and release it with
    the student's text. The relay therefore counts the characters that it sent.
    """

    def __init__(self, head: ReplyHead, *, wants_usage: bool) -> None:
        super().__init__(head, wants_usage=wants_usage)
        self._joined: SeamJoin | None = None
        self._sent = 0  # characters of the answer

    def join(self, seam: SeamJoin | None, thoughts: ReasoningFilter | None = None) -> list[Json]:
        self._joined = seam
        return super().join(seam, thoughts)

    def show(self, piece: str) -> list[Json]:
        chunks = super().show(piece)
        for chunk in chunks:
            chunk[MARK] = {"opening": piece}
        self._sent += len(piece)
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
        """Mark the rest of the guidance in a chunk of the student: its end, or all of it if the student repeated it.

        If the student restarted the answer with another text, no part of its answer is guidance.
        """
        content = "".join(one["delta"].get("content") or "" for one in chunk["choices"] if one["index"] == 0)
        seam = self._joined
        if content and seam is not None and not seam.restarted and self._sent < len(seam.guidance):
            chunk[MARK] = {"opening": content[: len(seam.guidance) - self._sent]}
        self._sent += len(content)
