"""One answer out of the teacher's words and the student's, in OpenAI's chunks. Sans-io.

The joint is the gateway's own (`guidance/seam.py`). Each chunk that says something tells under `gkt` who says it, and
the one with the `finish_reason` what the answer was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from gateway.protocol.messages import text_of

if TYPE_CHECKING:
    from gateway.capabilities.reasoning import ReasoningFilter
    from gateway.guidance.seam import SeamJoin
    from gateway.protocol.body import Json

By = Literal["teacher", "student"]


class EdgeRelay:
    """Makes the chunks of one answer.

    Args:
        created: Unix seconds.
        model: the route's name.
        wants_usage: whether a last chunk with `usage` is asked for.
    """

    def __init__(self, answer_id: str, created: int, model: str, *, wants_usage: bool) -> None:
        self._head: Json = {"id": answer_id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._wants_usage = wants_usage
        self._seam: SeamJoin | None = None
        self._thoughts: ReasoningFilter | None = None
        self._roles_sent: set[int] = set()
        self._finished: dict[int, str] = {}
        self.shown = ""
        """What of the guidance has been shown."""
        self.why_alone: str | None = None
        """Why there is no guidance, for the student's chunks to tell."""
        self.pieces = 0
        """How many of the student's chunks said something: about its tokens, where it counts none."""
        self.counts: tuple[int, int] | None = None
        """Tokens read and written, as the student counts them."""

    @property
    def stopped(self) -> bool:
        """A stop text was met across the seam: the student need not go on."""
        return self._seam is not None and self._seam.stopped

    @property
    def restarted(self) -> bool:
        """The student was told to begin with the guidance, and began otherwise."""
        return self._seam is not None and self._seam.restarted

    @property
    def finish_reason(self) -> str | None:
        """Of the first answer; None while it goes on."""
        return self._finished.get(0)

    def show(self, piece: str) -> list[Json]:
        """The next piece of the guidance."""
        if not piece:
            return []
        self.shown += piece
        return [self._said(0, {"content": piece}, "teacher")]

    def show_rest(self, text: str) -> list[Json]:
        """Of guidance what was not shown yet."""
        return self.show(text[len(self.shown) :])

    def join(self, seam: SeamJoin, thoughts: ReasoningFilter | None) -> list[Json]:
        """Let `seam` join the student's words to the guidance, without its `thoughts`."""
        self._seam, self._thoughts = seam, thoughts
        return self.show_rest(seam.initial_text())

    def feed(self, chunk: Json) -> list[Json]:
        """One chunk of the student's."""
        self.counts = read_counts(chunk.get("usage")) or self.counts
        return [one for choice in chunk["choices"] for one in self._relayed(choice)]

    def end(self, facts: Json, finish_reason: str | None = None) -> list[Json]:
        """The end of each answer with what it was, behind the `rest`."""
        self._finished.setdefault(0, "stop" if self.stopped else finish_reason or "stop")
        return [self._chunk([_choice(index, {}, reason)], facts) for index, reason in sorted(self._finished.items())]

    def rest(self) -> list[Json]:
        """What the joint held back, now that the student has ended; a second time nothing."""
        if self._seam is None:
            return []
        text, thought = self._thoughts.finish() if self._thoughts is not None else ("", "")
        text = self._seam.feed(text) + self._seam.finish()
        delta = ({"reasoning_content": thought} if thought else {}) | ({"content": text} if text else {})
        return [self._said(0, delta, "student")] if delta else []

    def usage_chunk(self, usage: Json, facts: Json) -> list[Json]:
        """The last chunk, where it is asked for."""
        return [{**self._chunk([], facts), "usage": usage}] if self._wants_usage else []

    def _relayed(self, choice: Json) -> list[Json]:
        index = choice.get("index") or 0
        if index in self._finished:
            return []
        delta = {name: value for name, value in (choice.get("delta") or {}).items() if name != "role"}
        self.pieces += any(value not in (None, "") for value in delta.values())
        said = [self._said(index, delta, "student", choice.get("logprobs"))] if self._joined(index, delta) else []
        if reason := choice.get("finish_reason"):
            if index == 0:
                said += self.rest()
                silent = self._thoughts is not None and self._thoughts.is_silent
                # It thought, though told not to, and did not go on: what was shown is not the answer's end.
                reason = "stop" if self.stopped else "length" if silent and reason == "stop" else reason
            self._finished[index] = reason
        return said

    def _joined(self, index: int, delta: Json) -> bool:
        """Put into a delta what of it may be shown now; whether that is anything."""
        if self._seam is not None and index == 0:
            text = text_of(delta.pop("content", None)) or ""
            if self._thoughts is not None:
                self._thoughts.note(delta.get("reasoning_content") or delta.get("reasoning"))
                text, thought = self._thoughts.feed(text)
                delta.update({"reasoning_content": thought} if thought else {})
            if joined := self._seam.feed(text):
                delta["content"] = joined
        return any(value not in (None, "") for value in delta.values())

    def _said(self, index: int, delta: Json, by: By, logprobs: Any = None) -> Json:
        facts: Json = {"by": by}
        if self.why_alone is not None and by == "student":
            facts["unguided"] = self.why_alone
        if index not in self._roles_sent:
            self._roles_sent.add(index)
            delta = {"role": "assistant", **delta}
        return self._chunk([{**_choice(index, delta), "logprobs": logprobs}], facts)

    def _chunk(self, choices: list[Json], facts: Json) -> Json:
        chunk = {**self._head, "choices": choices, "gkt": facts}
        return {**chunk, "usage": None} if self._wants_usage else chunk


def read_counts(usage: Any) -> tuple[int, int] | None:
    """Tokens read and written out of OpenAI's `usage`; None where it holds none that can be."""
    if not isinstance(usage, dict):
        return None
    read, wrote = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in (read, wrote)) or not read:
        return None
    return read, wrote  # type: ignore[return-value]


def whole(chunks: list[Json]) -> Json:
    """All chunks of an answer in words as one chat completion, with `gkt` as its end has it."""
    said: dict[int, dict[str, str]] = {}
    ends: dict[int, str | None] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        one = said.setdefault(choice["index"], {"content": ""})
        for name in ("content", "reasoning_content"):
            if piece := choice["delta"].get(name):
                one[name] = one.get(name, "") + piece
        ends[choice["index"]] = choice["finish_reason"] or ends.get(choice["index"])
    choices = [
        {"index": index, "message": {"role": "assistant", **one}, "logprobs": None, "finish_reason": ends[index]}
        for index, one in sorted(said.items())
    ]
    last = chunks[-1]
    head = {name: last[name] for name in ("id", "created", "model")}
    return {**head, "object": "chat.completion", "choices": choices, "usage": last["usage"], "gkt": last["gkt"]}


def _choice(index: int, delta: Json, finish_reason: str | None = None) -> Json:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
