"""Read the chunks of one student's call: count them, and convert them to the caller's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gateway.protocol.content_run import ContentRun
from gateway.protocol.messages import text_of

if TYPE_CHECKING:
    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.pipeline.generation import GenerationTracker
    from gateway.pipeline.prefill_echo import PrefillEcho
    from gateway.pipeline.stream import StreamRelay
    from gateway.protocol.body import Json
    from gateway.protocol.content_run import ChunkGroup


class StudentStream:
    """The stream of one call. `echo` removes the repeated beginning of the answer; None: there is none."""

    __slots__ = ("_builder", "_echo", "_generation", "_now", "_relay", "_relayed", "done")

    def __init__(
        self, generation: GenerationTracker, echo: PrefillEcho | None, relay: StreamRelay, builder: ReceiptBuilder
    ) -> None:
        self._generation, self._echo, self._relay, self._builder = generation, echo, relay, builder
        self._now = 0.0
        self._relayed: list[Json | ContentRun] = []
        # Whether the answer is complete although the student may still generate, so that the call is canceled.
        self.done = False

    def read(self, group: ChunkGroup) -> ChunkGroup:
        """Return what the caller gets for chunks that arrived together."""
        self._now = time.perf_counter()
        self._relayed = []
        for part in group:
            if isinstance(part, ContentRun):
                self._read_run(part)
            else:
                self._read_chunk(part)
            if self._relay.done:
                self._generation.end_answer()
                break
        if self._relayed and self._builder.student_began is None:
            self._builder.student_began = self._now
        return self._relayed

    def _read_run(self, run: ContentRun) -> None:
        """Read chunks at once, from the first one for which that is possible."""
        at_once = self._echo is None
        for place, content in enumerate(run.contents):
            if self._relay.done:
                return
            if at_once and (template := self._relay.template(run.template)) is not None:
                contents = [content for content in run.contents[place:] if content]
                text = "".join(contents)
                if self._generation.read_text(run.template.index, text, self._now, len(contents)):
                    if text:
                        self._builder.mark_first_token()
                        self._relayed.append(ContentRun(template, contents))
                    return
                at_once = False
            self._read_chunk(run.template.with_content(content))

    def _read_chunk(self, chunk: Json) -> None:
        self._generation.read(chunk, self._now)
        if self._echo is not None:
            self._echo.chunk(chunk)
        if self._builder.first_token is None and _has_text(chunk):
            self._builder.mark_first_token()
        if (relayed := self._relay.feed(chunk)) is not None:
            self._relayed.append(relayed)
        self.done = self._relay.done or self._generation.stopped


def _has_text(chunk: Json) -> bool:
    return any(text_of((choice.get("delta") or {}).get("content")) for choice in chunk["choices"])
