"""Build one answer's chunks in OpenAI's format from the teacher's and the student's text. No I/O.

The seam is joined as on the gateway (`guidance/seam.py`). The `gkt` field of a chunk with text names its author, and
that of the chunk with `finish_reason` has the facts of the answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from gateway.protocol.messages import text_of

if TYPE_CHECKING:
    from gateway.guidance.seam import SeamJoin
    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.reasoning import ReasoningFilter

By = Literal["teacher", "student"]


class EdgeRelay:
    """Build the chunks of one answer. `created` is in Unix seconds, and `model` is the route's name."""

    def __init__(self, answer_id: str, created: int, model: str, *, wants_usage: bool) -> None:
        self._head: Json = {"id": answer_id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._wants_usage = wants_usage
        self._seam: SeamJoin | None = None
        self._thoughts: ReasoningFilter | None = None
        self._roles_sent: set[int] = set()
        self._finished: dict[int, str] = {}
        self.shown = ""  # guidance sent to the caller so far
        self.unguided_reason: str | None = None  # the reason for no guidance, in the student's chunks
        self.chunk_count = 0  # the student's chunks with content; estimates its tokens if it reports no usage
        self.counts: tuple[int, int] | None = None  # prompt and completion tokens reported by the student

    @property
    def stopped(self) -> bool:
        """Return whether a stop text occurred, so that the student can be stopped."""
        return self._seam is not None and self._seam.stopped

    @property
    def restarted(self) -> bool:
        """Return whether the student did not continue the guidance and started another answer."""
        return self._seam is not None and self._seam.restarted

    @property
    def finish_reason(self) -> str | None:
        return self._finished.get(0)

    def show(self, piece: str) -> list[Json]:
        """Return the chunks of the next piece of guidance."""
        if not piece:
            return []
        self.shown += piece
        return [self._content_chunk(0, {"content": piece}, "teacher")]

    def show_remaining(self, text: str) -> list[Json]:
        """Return the chunks of the guidance not shown yet."""
        return self.show(text[len(self.shown) :])

    def join(self, seam: SeamJoin, thoughts: ReasoningFilter | None) -> list[Json]:
        """Join the student's text to the guidance with `seam`; `thoughts` filters its reasoning."""
        self._seam, self._thoughts = seam, thoughts
        return self.show_remaining(seam.initial_text)

    def feed(self, chunk: Json) -> list[Json]:
        """Return the chunks for one chunk of the student."""
        self.counts = read_counts(chunk.get("usage")) or self.counts
        return [one for choice in chunk["choices"] for one in self._relay(choice)]

    def end(self, facts: Json, finish_reason: str | None = None) -> list[Json]:
        """Return the last chunk of each choice, with the facts. Call `flush` before."""
        self._finished.setdefault(0, "stop" if self.stopped else finish_reason or "stop")
        return [self._chunk([_choice(index, {}, reason)], facts) for index, reason in sorted(self._finished.items())]

    def flush(self) -> list[Json]:
        """Return the text that the seam held back, after the student ended; a second call returns nothing."""
        if self._seam is None:
            return []
        text, thought = self._thoughts.finish() if self._thoughts is not None else ("", "")
        text = self._seam.feed(text) + self._seam.finish()
        delta = ({"reasoning_content": thought} if thought else {}) | ({"content": text} if text else {})
        return [self._content_chunk(0, delta, "student")] if delta else []

    def usage_chunk(self, usage: Json, facts: Json) -> list[Json]:
        """Return the usage chunk, if requested."""
        return [{**self._chunk([], facts), "usage": usage}] if self._wants_usage else []

    def _relay(self, choice: Json) -> list[Json]:
        index = choice.get("index") or 0
        if index in self._finished:
            return []
        delta = {name: value for name, value in (choice.get("delta") or {}).items() if name != "role"}
        self.chunk_count += any(value not in (None, "") for value in delta.values())
        chunks = []
        if self._join_delta(index, delta):
            chunks.append(self._content_chunk(index, delta, "student", choice.get("logprobs")))
        if reason := choice.get("finish_reason"):
            if index == 0:
                chunks += self.flush()
                only_reasoned = self._thoughts is not None and self._thoughts.is_silent
                # The student only reasoned, although disabled, so the shown text is incomplete.
                reason = "stop" if self.stopped else "length" if only_reasoned and reason == "stop" else reason
            self._finished[index] = reason
        return chunks

    def _join_delta(self, index: int, delta: Json) -> bool:
        """Replace a delta's content by the text that may be shown now. Return whether the delta has content."""
        if self._seam is not None and index == 0:
            text = text_of(delta.pop("content", None)) or ""
            if self._thoughts is not None:
                self._thoughts.note(delta.get("reasoning_content") or delta.get("reasoning"))
                text, thought = self._thoughts.feed(text)
                delta.update({"reasoning_content": thought} if thought else {})
            if joined := self._seam.feed(text):
                delta["content"] = joined
        return any(value not in (None, "") for value in delta.values())

    def _content_chunk(self, index: int, delta: Json, by: By, logprobs: Any = None) -> Json:
        facts: Json = {"by": by}
        if self.unguided_reason is not None and by == "student":
            facts["unguided"] = self.unguided_reason
        if index not in self._roles_sent:
            self._roles_sent.add(index)
            delta = {"role": "assistant", **delta}
        return self._chunk([{**_choice(index, delta), "logprobs": logprobs}], facts)

    def _chunk(self, choices: list[Json], facts: Json) -> Json:
        chunk = {**self._head, "choices": choices, "gkt": facts}
        return {**chunk, "usage": None} if self._wants_usage else chunk


def read_counts(usage: Any) -> tuple[int, int] | None:
    """Return the prompt and completion tokens of OpenAI's `usage`; None if it is invalid."""
    if not isinstance(usage, dict):
        return None
    counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
    valid = all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in counts)
    return counts if valid and counts[0] else None  # type: ignore[return-value]


def whole(chunks: list[Json]) -> Json:
    """Return the chunks of a text answer as one chat completion, with the `gkt` facts of its end."""
    messages: dict[int, dict[str, str]] = {}
    ends: dict[int, str | None] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        message = messages.setdefault(choice["index"], {"content": ""})
        for name in ("content", "reasoning_content"):
            if piece := choice["delta"].get(name):
                message[name] = message.get(name, "") + piece
        ends[choice["index"]] = choice["finish_reason"] or ends.get(choice["index"])
    choices = [
        {"index": index, "message": {"role": "assistant", **message}, "logprobs": None, "finish_reason": ends[index]}
        for index, message in sorted(messages.items())
    ]
    last = chunks[-1]
    head = {name: last[name] for name in ("id", "created", "model")}
    return {**head, "object": "chat.completion", "choices": choices, "usage": last["usage"], "gkt": last["gkt"]}


def _choice(index: int, delta: Json, finish_reason: str | None = None) -> Json:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
