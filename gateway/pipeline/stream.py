"""Convert the student's reply to the caller's: one id, one model and one role for the whole answer. Sans-io."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from msgspec.structs import replace

from gateway.protocol.content_run import template_of
from gateway.protocol.messages import text_of
from gateway.protocol.reply import engine_fields

if TYPE_CHECKING:
    from gateway.guidance.seam import SeamJoin
    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.reasoning import ReasoningFilter
    from gateway.protocol.content_run import ChunkTemplate
    from gateway.protocol.reply import ReplyHead


class StreamRelay:
    """Convert the student's chunks to the caller's. `head` has the fields of every chunk.

    The role is sent with the first text. Until then another student can still answer instead.
    """

    def __init__(self, head: ReplyHead, *, wants_usage: bool) -> None:
        self._head = head
        self._seam: SeamJoin | None = None
        self._reasoning_filter: ReasoningFilter | None = None
        self._shown_chars = 0  # the number of characters of the guidance that were sent
        self._wants_usage = wants_usage
        self._roles: dict[int, str] = {}
        self._roles_sent: set[int] = set()
        self._finished: set[int] = set()
        self._templates: tuple[ChunkTemplate, ChunkTemplate | None] | None = None  # the student's, the caller's
        self.finish_reason: str | None = None  # "length" if a choice ended at its limit, else that of the last to end
        self.has_sent_other = False  # whether something else than text was sent: reasoning, tool calls, logprobs

    @property
    def done(self) -> bool:
        """Return whether the caller's stop text was found across the seam: the student's call can end."""
        return self._seam is not None and self._seam.stopped

    @property
    def has_sent_guidance(self) -> bool:
        """Return whether a part of the guidance was sent: further text must continue it."""
        return self._shown_chars > 0

    @property
    def restarted(self) -> bool:
        """Return whether the student was to begin with the guidance and began differently. Final after its end."""
        return self._seam is not None and self._seam.restarted

    def name_model(self, model: str) -> None:
        """Set `model` of the following chunks."""
        self._head, self._templates = replace(self._head, model=model), None

    def restart(self) -> bool:
        """Discard the answer so far, if nothing was sent to the caller. Return whether it was discarded."""
        return False

    def join(self, seam: SeamJoin | None, reasoning_filter: ReasoningFilter | None = None) -> list[Json]:
        """Set the seam between the guidance and the next student's text; None: the student gets no prefix.

        Return chunks with the part of the guidance that can be shown now and was not shown before.
        """
        self._seam, self._reasoning_filter, self._templates = seam, reasoning_filter, None
        return self.show_rest(seam.initial_text) if seam is not None else []

    def resume(self, seam: SeamJoin | None, reasoning_filter: ReasoningFilter | None, shown_chars: int) -> None:
        """Set the seam between the `shown_chars` characters that the caller has and the next student's text."""
        self._seam, self._reasoning_filter, self._templates = seam, reasoning_filter, None
        self._shown_chars = shown_chars

    def show_rest(self, guidance: str) -> list[Json]:
        """Return chunks with the part of the guidance that was not shown before."""
        return self.show(guidance[self._shown_chars :])

    def show(self, piece: str) -> list[Json]:
        """Return chunks with the next piece of the guidance."""
        if not piece:
            return []
        self._shown_chars += len(piece)
        return [self._first_choice_chunk({"content": piece})]

    def feed(self, chunk: Json) -> Json | None:
        """Convert one chunk of the student; None if the caller gets nothing for it."""
        choices = [kept for choice in chunk["choices"] if (kept := self._relay_choice(choice)) is not None]
        return self._chunk(choices, chunk) if choices else None

    def template(self, template: ChunkTemplate) -> ChunkTemplate | None:
        """Return the template for chunks with text; None while the text or the fields of a chunk depend on others."""
        if self._templates is not None and self._templates[0] is template:
            return self._templates[1]
        index = template.index
        if index not in self._roles_sent or index in self._finished:
            return None
        if index == 0 and self._seam is not None:
            reasoning_filter = self._reasoning_filter
            if not self._seam.is_settled or not (reasoning_filter is None or reasoning_filter.is_settled):
                return None
        relayed = self.feed(template.with_content("x"))
        self._templates = template, None if relayed is None else template_of(orjson.dumps(relayed), relayed)
        return self._templates[1]

    def end(self, finish_reason: str | None = None) -> list[Json]:
        """End the answer: return the text that was held back, and the finish_reason if none was sent."""
        if self.finish_reason is not None:
            return []
        chunks: list[Json] = []
        reason: str | None = finish_reason or "stop"
        held: Json = {}
        if self._seam is not None:
            reason = _join(self._seam, self._reasoning_filter, held, reason)
            if held:
                chunks.append(self._first_choice_chunk(held))
        self.finish_reason = reason or "stop"
        choice = _choice({} if 0 in self._roles_sent else _first_delta("assistant", {}), self.finish_reason)
        _name_stop(choice, self._seam)
        chunks.append(self._chunk([choice]))
        return chunks

    def usage_chunk(self, usage: Json, facts: Json) -> Json:
        """Return the last chunk, for a caller that requested usage; `gkt` has the receipt's figures."""
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
            self._templates = None
            if self.finish_reason != "length":
                self.finish_reason = finish_reason
        has_content = bool(delta.get("content"))
        # Some servers send empty lists, such as `tool_calls`, in each delta. Content in parts may have thoughts.
        others = (value for name, value in delta.items() if name != "content" or isinstance(value, list))
        if choice.get("logprobs") or any(others):
            has_content = self.has_sent_other = True
        if role is not None:
            self._roles[index] = role
        if finish_reason is None and not has_content:
            return None
        if finish_reason is not None and index == 0:
            _name_stop(choice, self._seam)
        if index not in self._roles_sent:
            self._roles_sent.add(index)
            delta = _first_delta(self._roles.get(index, "assistant"), delta)
        return {"logprobs": None, **choice, "index": index, "delta": delta, "finish_reason": finish_reason}

    def _first_choice_chunk(self, fields: Json) -> Json:
        """Return a chunk of the first choice with text that is in no chunk of the student."""
        delta = fields if 0 in self._roles_sent else _first_delta("assistant", fields)
        self._roles_sent.add(0)
        return self._chunk([_choice(delta)])

    def _chunk(self, choices: list[Json], original: Json | None = None) -> Json:
        chunk = self._head.chunk(choices, with_usage=self._wants_usage)
        return chunk if original is None else {**chunk, **engine_fields(original)}


def _first_delta(role: str, fields: Json) -> Json:
    """Return the first delta of a choice, with the fields that OpenAI sends."""
    return {"role": role, "content": None, "refusal": None, **fields}


def _choice(delta: Json, finish_reason: str | None = None) -> Json:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def join_reply(reply: Json, seam: SeamJoin, reasoning_filter: ReasoningFilter | None = None) -> None:
    """Put shown guidance before the student's first choice, in place."""
    choice = reply["choices"][0]
    finish_reason = choice.get("finish_reason") or "stop"
    choice["finish_reason"] = _join(seam, reasoning_filter, choice["message"], finish_reason)
    choice["message"]["content"] = seam.initial_text + (choice["message"].get("content") or "")
    _name_stop(choice, seam)


def _name_stop(choice: Json, seam: SeamJoin | None) -> None:
    """Add the stop string that was found across the seam, in the field in which vLLM reports its own."""
    if seam is not None and seam.stopped_by is not None:
        choice["stop_reason"] = seam.stopped_by


def _join(
    seam: SeamJoin, reasoning_filter: ReasoningFilter | None, message: Json, finish_reason: str | None
) -> str | None:
    """Replace the text of a message or delta by the text that may be sent now. Return the resulting finish_reason."""
    text = text_of(message.pop("content", None)) or ""
    if reasoning_filter is not None:
        finish_reason = _split_reasoning(reasoning_filter, message, text, finish_reason)
        text = message.pop("content")
    joined = seam.feed(text)
    if finish_reason is not None:
        joined += seam.finish()
    if joined:
        message["content"] = joined
    return "stop" if seam.stopped else finish_reason


def _split_reasoning(
    reasoning_filter: ReasoningFilter, message: Json, text: str, finish_reason: str | None
) -> str | None:
    """Move reasoning that the student was not to generate to the field where servers put reasoning."""
    reasoning_filter.note(message.get("reasoning_content") or message.get("reasoning"))
    text, reasoning = reasoning_filter.feed(text)
    if finish_reason is not None:
        rest, more_reasoning = reasoning_filter.finish()
        text, reasoning = text + rest, reasoning + more_reasoning
    if reasoning:
        message["reasoning_content"] = (message.get("reasoning_content") or "") + reasoning
    message["content"] = text
    # The student reasoned and wrote no text, so the shown guidance is not the end of the answer.
    return "length" if finish_reason == "stop" and reasoning_filter.is_silent else finish_reason
