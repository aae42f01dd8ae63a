"""An answer's chunks from the teacher's and the student's text."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.edge.relay import EdgeRelay, read_counts, whole
from gateway.guidance.seam import SeamJoin
from gateway.protocol.capabilities.reasoning import ReasoningFilter

OPENING = "The sky is blue because"


def chunk(content: str | None, finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    delta = {} if content is None else {"role": "assistant", "content": content}
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}], **more}


def relay(**seam: Any) -> tuple[EdgeRelay, list[dict[str, Any]]]:
    made = EdgeRelay("chatcmpl-1", 1, "chat", wants_usage=True)
    return made, made.join(SeamJoin(OPENING, **seam), None) if seam else []


def text_of(chunks: list[dict[str, Any]], by: str | None = None) -> str:
    kept = [one for one in chunks if by is None or one["gkt"].get("by") == by]
    return "".join(choice["delta"].get("content", "") for one in kept for choice in one["choices"])


def test_the_role_is_sent_once_and_the_source_with_each_chunk() -> None:
    made, chunks = relay(echo=False)
    chunks += made.feed(chunk(" small")) + made.feed(chunk(" molecules.", "stop"))
    assert [one["choices"][0]["delta"].get("role") for one in chunks] == ["assistant", None, None]
    assert [one["gkt"]["by"] for one in chunks] == ["teacher", "student", "student"]
    assert text_of(chunks) == f"{OPENING} small molecules."


def test_guidance_that_was_shown_in_pieces_is_shown_once() -> None:
    made = EdgeRelay("chatcmpl-1", 1, "chat", wants_usage=False)
    chunks = made.show("The sky") + made.show(" is blue")
    chunks += made.join(SeamJoin(OPENING, echo=True), None)
    chunks += made.feed(chunk(OPENING)) + made.feed(chunk(" small.", "stop"))
    assert text_of(chunks) == f"{OPENING} small."
    assert text_of(chunks, "teacher") == OPENING


def test_each_of_several_answers_ends_and_the_ends_come_last() -> None:
    made, _ = relay()
    chunks = made.feed(chunk("One.", "stop")) + made.feed(chunk("Two", index=1)) + made.feed(chunk(None, "length", 1))
    chunks += made.feed(chunk("no more"))
    ends = made.end({"mode": "student"})
    assert [choice["finish_reason"] for one in chunks for choice in one["choices"]] == [None, None]
    assert [(one["choices"][0]["index"], one["choices"][0]["finish_reason"]) for one in ends] == [
        (0, "stop"), (1, "length"),
    ]  # fmt: skip
    reply = whole([*chunks, *ends, *made.usage_chunk({"total_tokens": 3}, {"mode": "student"})])
    assert [choice["message"]["content"] for choice in reply["choices"]] == ["One.", "Two"]
    assert reply["usage"] == {"total_tokens": 3}


def test_a_student_that_ends_without_a_reason_leaves_nothing_held_back() -> None:
    made, chunks = relay(written_again=True)
    chunks += made.feed(chunk("The sky"))
    assert text_of(chunks) == ""
    chunks += made.flush()
    assert made.flush() == []
    assert made.restarted
    assert text_of([*chunks, *made.end({})]) == "The sky"
    assert made.finish_reason == "stop"


def test_a_student_with_only_reasoning_has_no_finished_answer() -> None:
    made = EdgeRelay("chatcmpl-1", 1, "chat", wants_usage=False)
    made.join(SeamJoin(OPENING, echo=False), ReasoningFilter(OPENING))
    chunks = made.feed(chunk("<think>hm")) + made.feed(chunk("</think>", "stop"))
    assert text_of(chunks) == ""
    assert made.finish_reason == "length"


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 0}, (9, 0)),
        ({"prompt_tokens": 0, "completion_tokens": 3}, None),
        ({"prompt_tokens": True, "completion_tokens": 3}, None),
        ({"prompt_tokens": 9, "completion_tokens": -1}, None),
        ({"completion_tokens": 3}, None),
        (None, None),
    ],
)
def test_counts_that_cannot_be_are_none(usage: Any, counts: tuple[int, int] | None) -> None:
    assert read_counts(usage) == counts
