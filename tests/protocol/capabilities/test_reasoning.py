"""A student's reasoning is disabled where a prefix begins its answer, unless the caller requests reasoning."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.models import ModelSettings
from gateway.guidance.seam import SeamJoin
from gateway.pipeline.stream import StreamRelay, join_reply
from gateway.protocol.capabilities.reasoning import ReasoningFilter, asks_for_reasoning, takes_prefix, without_reasoning
from gateway.protocol.reply import ReplyHead

ASKING: list[dict[str, Any]] = [
    {"reasoning_effort": "low"},
    {"chat_template_kwargs": {"enable_thinking": True}},
    {"chat_template_kwargs": {"thinking": True}},
    {"thinking": {"type": "enabled", "budget_tokens": 100}},
    {"thinking": True},
    {"enable_thinking": True},
    {"reasoning": {"effort": "high"}},
    {"reasoning": {"max_tokens": 100}},
    {"include_reasoning": True},
    {"thinking_budget": 100},
]
NOT_ASKING: list[dict[str, Any]] = [
    {},
    {"reasoning_effort": None},
    {"reasoning_effort": "none"},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"chat_template_kwargs": {"documents": []}},
    {"chat_template_kwargs": "odd"},
    {"thinking": {"type": "disabled"}},
    {"enable_thinking": False},
    {"reasoning": {"enabled": False}},
    {"reasoning": {"effort": "none"}},
    {"reasoning": {}},
    {"include_reasoning": False},
    {"thinking_budget": 0},
]


@pytest.mark.parametrize("body", ASKING)
def test_a_caller_that_requests_reasoning_gets_it_and_no_prefix(body: dict[str, Any]) -> None:
    assert asks_for_reasoning(body)
    assert not takes_prefix("switchable", body)
    assert takes_prefix("none", body)


@pytest.mark.parametrize("body", NOT_ASKING)
def test_a_caller_that_requests_no_reasoning_gets_a_prefix(body: dict[str, Any]) -> None:
    assert not asks_for_reasoning(body)
    assert takes_prefix("switchable", body)
    assert not takes_prefix("always", body)


def test_reasoning_is_disabled_by_both_names() -> None:
    body = {"messages": [], "chat_template_kwargs": {"thinking": None, "x": 1}}
    disabled = without_reasoning("switchable", body)
    assert disabled["chat_template_kwargs"] == {"enable_thinking": False, "thinking": None, "x": 1}
    assert body["chat_template_kwargs"] == {"thinking": None, "x": 1}
    assert without_reasoning("switchable", {})["chat_template_kwargs"] == {"enable_thinking": False, "thinking": False}
    assert without_reasoning("none", body) is body


def test_tgi_does_not_allow_switchable_reasoning() -> None:
    facts = {"name": "a", "api_base": "http://a", "price": {"input_per_1m": 0, "output_per_1m": 0}}
    assert ModelSettings.model_validate({**facts, "protocol": "tgi", "reasoning": "always"}).reasoning == "always"
    assert ModelSettings.model_validate({**facts, "protocol": "openai", "reasoning": "switchable"})
    with pytest.raises(ValueError, match="write always"):
        ModelSettings.model_validate({**facts, "protocol": "tgi", "reasoning": "switchable"})


# the reply


def separated(prefix: str, pieces: list[str]) -> tuple[str, str, bool]:
    """Return the answer's text, the reasoning, and whether the student sent nothing else."""
    reply = ReasoningFilter(prefix)
    both = [*(reply.feed(piece) for piece in pieces), reply.finish()]
    return "".join(answer for answer, _ in both), "".join(reasoning for _, reasoning in both), reply.is_silent


def pieces_of(text: str, sizes: list[int]) -> list[str]:
    pieces = []
    for size in sizes:
        pieces.append(text[:size])
        text = text[size:]
    return [*pieces, text]


SIZES = st.lists(st.integers(1, 9), max_size=12)
OPENING = "The answer"


@given(SIZES)
def test_a_leading_block_of_the_continuation_is_reasoning(sizes: list[int]) -> None:
    for echo in ("", OPENING, " " + OPENING):
        text = echo + "\n<think>Two and two.</think>\n\nis 4, <think>not</think> 5."
        answer, reasoning, silent = separated(OPENING, pieces_of(text, sizes))
        assert answer.removeprefix(echo).lstrip() == "is 4, <think>not</think> 5."
        assert answer.startswith(echo)
        assert answer.removeprefix(echo)[0].isspace(), "words must not run together"
        assert (reasoning, silent) == ("Two and two.", False)


@given(SIZES, st.sampled_from([" is 4.", "The answers", "is < 4", "<b>4</b>", OPENING + " is 4", "The", "", "<thin"]))
def test_other_text_is_passed_on(sizes: list[int], text: str) -> None:
    assert separated(OPENING, pieces_of(text, sizes)) == (text, "", False)


@pytest.mark.parametrize("text", ["<think>Two and", "<think>Two and</think>", "<think>Two and</think>\n\n"])
def test_a_student_that_only_reasoned_has_not_answered(text: str) -> None:
    answer, reasoning, silent = separated(OPENING, [text])
    assert (answer.strip(), reasoning, silent) == ("", "Two and", True)


def test_reasoning_in_a_field_of_its_own_is_no_answer_either() -> None:
    reply = ReasoningFilter(OPENING)
    reply.note("Two and two.")
    assert reply.feed(OPENING) == ("", "")
    assert reply.finish() == (OPENING, "")
    assert reply.is_silent
    reply = ReasoningFilter(OPENING)
    reply.note("Two and two.")
    assert reply.feed(" is 4.") == (" is 4.", "")
    assert not reply.is_silent


def test_an_empty_reply_is_not_silent() -> None:
    """The student may have nothing to add; an empty continuation has the engine's finish_reason `stop`."""
    assert separated(OPENING, []) == ("", "", False)


# Reasoning in replies.


def test_reasoning_is_moved_to_its_field() -> None:
    """The student was not to reason: the caller gets one answer, with the reasoning in its own field."""
    reply = {"choices": [{"index": 0, "message": {"content": "<think>Hm, 4?</think> four."}, "finish_reason": "stop"}]}
    join_reply(reply, SeamJoin("The answer is", echo=False), ReasoningFilter("The answer is"))
    (choice,) = reply["choices"]
    assert choice["message"] == {"content": "The answer is four.", "reasoning_content": "Hm, 4?"}
    assert choice["finish_reason"] == "stop"


def test_a_student_that_only_reasoned_has_finish_reason_length() -> None:
    """The guidance alone is no answer, whatever finish_reason the student sends."""
    reply = {"choices": [{"index": 0, "message": {"content": "<think>Hm.</think>"}, "finish_reason": "stop"}]}
    join_reply(reply, SeamJoin("The answer is", echo=False), ReasoningFilter("The answer is"))
    assert reply["choices"][0]["message"]["content"] == "The answer is"
    assert reply["choices"][0]["finish_reason"] == "length"


def test_streamed_reasoning_is_separated_in_any_split() -> None:
    relay = StreamRelay(ReplyHead("id", 1, "chat"), wants_usage=False)
    chunks = relay.join(SeamJoin("The answer is", echo=False), ReasoningFilter("The answer is"))
    for text in ("<th", "ink>Hm", ", 4?</thi", "nk> fo", "ur."):
        answer = relay.feed({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})
        chunks += [answer] if answer is not None else []
    chunks += relay.end("stop")
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == "The answer is four."
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm, 4?"
