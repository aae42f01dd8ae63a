"""From the student's reply to the caller's: one id, one model, one role over the whole answer. Sans-io."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.protocol.messages import text_of
from gateway.protocol.reply import engine_fields

if TYPE_CHECKING:
    from gateway.capabilities.reasoning import ReasoningFilter
    from gateway.guidance.seam import SeamJoin
    from gateway.protocol.body import Json
    from gateway.protocol.reply import ReplyHead


class StreamRelay:
    """Turns the student's chunks into the caller's.

    The role goes with the first words: until then nothing has left that a second student could not say as well.

    Args:
        head: what every chunk shares.
        wants_usage: whether the caller asked for a usage chunk.
    """

    def __init__(self, head: ReplyHead, *, wants_usage: bool) -> None:
        self._head = head
        self._seam: SeamJoin | None = None
        self._reasoning_filter: ReasoningFilter | None = None
        self._shown_chars = 0  # how many characters of the opening have left
        self._wants_usage = wants_usage
        self._roles: dict[int, str] = {}
        self._roles_sent: set[int] = set()
        self._finished: set[int] = set()
        self.finish_reason: str | None = None

    @property
    def done(self) -> bool:
        """The caller's stop text was met across the seam: the student need not go on."""
        return self._seam is not None and self._seam.stopped

    @property
    def opened(self) -> bool:
        """Some of the opening has left: what follows must continue it."""
        return self._shown_chars > 0

    @property
    def restarted(self) -> bool:
        """The student was told to begin with the opening, and began otherwise. Final when it has ended."""
        return self._seam is not None and self._seam.restarted

    def join(self, seam: SeamJoin | None, reasoning_filter: ReasoningFilter | None = None) -> list[Json]:
        """Let `seam` join the next student's text to the opening, or nothing with None; without its `thoughts`.

        Returns chunks with what of the opening can be shown now, and was not.
        """
        self._seam, self._reasoning_filter = seam, reasoning_filter
        return self.show_rest(seam.opening()) if seam is not None else []

    def show_rest(self, guidance: str) -> list[Json]:
        """Show an opening from where it was shown before, as far as the student's words are not needed for it."""
        return self.show(guidance[self._shown_chars :])

    def show(self, piece: str) -> list[Json]:
        """Show the next piece of an opening."""
        if not piece:
            return []
        self._shown_chars += len(piece)
        return [self._first_choice_chunk({"content": piece})]

    def feed(self, chunk: Json) -> Json | None:
        """One chunk of the student's: what the caller gets for it, if anything."""
        choices = [kept for choice in chunk["choices"] if (kept := self._relay_choice(choice)) is not None]
        return self._chunk(choices, chunk) if choices else None

    def end(self, finish_reason: str | None = None) -> list[Json]:
        """The student has ended, or the answer has: what was held back, and the finish if none was sent."""
        if self.finish_reason is not None:
            return []
        chunks: list[Json] = []
        reason: str | None = finish_reason or "stop"
        if self._seam is not None:
            held: Json = {}
            reason = _join(self._seam, self._reasoning_filter, held, reason)
            if held:
                chunks.append(self._first_choice_chunk(held))
        self.finish_reason = reason or "stop"
        chunks.append(self._chunk([_choice({}, self.finish_reason)]))
        return chunks

    def usage_chunk(self, usage: Json, facts: Json) -> Json:
        """The last chunk, for a caller that asked for usage; `gkt` carries the receipt's figures."""
        return {**self._head.chunk([], with_usage=True, usage=usage), "gkt": facts}

    def _relay_choice(self, choice: Json) -> Json | None:
        index = choice.get("index", 0)
        if index in self._finished:
            return None
        delta = dict(choice.get("delta") or {})
        role = delta.pop("role", None)
        finish_reason = choice.get("finish_reason") or None
        if self._seam is not None and index == 0:
            finish_reason = _join(self._seam, self._reasoning_filter, delta, finish_reason)
        if finish_reason is not None:
            self._finished.add(index)
            self.finish_reason = finish_reason
        has_content = any(value not in (None, "") for value in delta.values()) or bool(choice.get("logprobs"))
        if role is not None:
            self._roles[index] = role
        if finish_reason is None and not has_content:
            return None
        if index not in self._roles_sent:
            self._roles_sent.add(index)
            delta = _first_delta(self._roles.get(index, "assistant"), delta)
        return {"logprobs": None, **choice, "index": index, "delta": delta, "finish_reason": finish_reason}

    def _first_choice_chunk(self, said: Json) -> Json:
        """A chunk of the first choice with what is in no chunk of the student's."""
        delta = said if 0 in self._roles_sent else _first_delta("assistant", said)
        self._roles_sent.add(0)
        return self._chunk([_choice(delta)])

    def _chunk(self, choices: list[Json], original: Json | None = None) -> Json:
        chunk = self._head.chunk(choices, with_usage=self._wants_usage)
        if original is None:
            return chunk
        return {**chunk, **engine_fields(original)}


def _first_delta(role: str, said: Json) -> Json:
    """The first delta of a choice, with the fields that OpenAI's has."""
    return {"role": role, "content": None, "refusal": None, **said}


def _choice(delta: Json, finish_reason: str | None = None) -> Json:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def join_reply(reply: Json, seam: SeamJoin, reasoning_filter: ReasoningFilter | None = None) -> None:
    """Put shown guidance in front of the student's first choice, in place."""
    choice = reply["choices"][0]
    finish_reason = choice.get("finish_reason") or "stop"
    choice["finish_reason"] = _join(seam, reasoning_filter, choice["message"], finish_reason)
    choice["message"]["content"] = seam.opening() + (choice["message"].get("content") or "")


def _join(
    seam: SeamJoin, reasoning_filter: ReasoningFilter | None, said: Json, finish_reason: str | None
) -> str | None:
    """Replace the text of a message or delta by what may leave now; return the finish_reason that is true then."""
    text = text_of(said.pop("content", None)) or ""
    if reasoning_filter is not None:
        finish_reason = _split_reasoning(reasoning_filter, said, text, finish_reason)
        text = said.pop("content")
    joined = seam.feed(text)
    if finish_reason is not None:
        joined += seam.finish()
    if joined:
        said["content"] = joined
    return "stop" if seam.stopped else finish_reason


def _split_reasoning(reasoning_filter: ReasoningFilter, said: Json, text: str, finish_reason: str | None) -> str | None:
    """Put what the student thought, though told not to, where servers put thoughts; the rest is its content."""
    reasoning_filter.note(said.get("reasoning_content") or said.get("reasoning"))
    text, reasoning = reasoning_filter.feed(text)
    if finish_reason is not None:
        rest, more_reasoning = reasoning_filter.finish()
        text, reasoning = text + rest, reasoning + more_reasoning
    if reasoning:
        said["reasoning_content"] = (said.get("reasoning_content") or "") + reasoning
    said["content"] = text
    # It thought, and did not go on: what was shown is not the answer's end.
    return "length" if finish_reason == "stop" and reasoning_filter.is_silent else finish_reason
