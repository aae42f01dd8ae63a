"""A student that reasons is told not to where a prefix opens its answer, unless the caller wants its thoughts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.capabilities.reasoning import ReasoningFilter, asks_for_reasoning, takes_prefix, without_reasoning
from gateway.config.models import ModelSettings
from gateway.guidance.seam import SeamJoin
from gateway.pipeline.stream import StreamRelay, join_reply
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
def test_a_caller_that_asks_for_reasoning_gets_it_and_no_prefix(body: dict[str, Any]) -> None:
    assert asks_for_reasoning(body)
    assert not takes_prefix("switchable", body)
    assert takes_prefix("none", body)


@pytest.mark.parametrize("body", NOT_ASKING)
def test_a_caller_that_does_not_ask_for_reasoning_gets_a_prefix(body: dict[str, Any]) -> None:
    assert not asks_for_reasoning(body)
    assert takes_prefix("switchable", body)
    assert not takes_prefix("always", body)


def test_a_model_that_can_be_told_is_told_by_both_names() -> None:
    body = {"messages": [], "chat_template_kwargs": {"thinking": None, "x": 1}}
    told = without_reasoning("switchable", body)
    assert told["chat_template_kwargs"] == {"enable_thinking": False, "thinking": None, "x": 1}
    assert body["chat_template_kwargs"] == {"thinking": None, "x": 1}
    assert without_reasoning("switchable", {})["chat_template_kwargs"] == {"enable_thinking": False, "thinking": False}
    assert without_reasoning("none", body) is body


def test_tgi_passes_no_switch_on() -> None:
    facts = {"name": "a", "api_base": "http://a", "price": {"input_per_1m": 0, "output_per_1m": 0}}
    assert ModelSettings.model_validate({**facts, "protocol": "tgi", "reasoning": "always"}).reasoning == "always"
    assert ModelSettings.model_validate({**facts, "protocol": "openai", "reasoning": "switchable"})
    with pytest.raises(ValueError, match="write always"):
        ModelSettings.model_validate({**facts, "protocol": "tgi", "reasoning": "switchable"})


# the reply


def parted(opening: str, pieces: list[str]) -> tuple[str, str, bool]:
    """What goes on with the answer, what is reasoning, and whether the student said nothing else."""
    reply = ReasoningFilter(opening)
    both = [*(reply.feed(piece) for piece in pieces), reply.finish()]
    return "".join(said for said, _ in both), "".join(thought for _, thought in both), reply.is_silent


def pieces_of(text: str, sizes: list[int]) -> list[str]:
    pieces = []
    for size in sizes:
        pieces.append(text[:size])
        text = text[size:]
    return [*pieces, text]


SIZES = st.lists(st.integers(1, 9), max_size=12)
OPENING = "The answer"


@given(SIZES)
def test_a_block_with_which_the_continuation_begins_is_reasoning(sizes: list[int]) -> None:
    for echo in ("", OPENING, " " + OPENING):
        text = echo + "\n<think>Two and two.</think>\n\nis 4, <think>not</think> 5."
        said, thought, silent = parted(OPENING, pieces_of(text, sizes))
        assert said.removeprefix(echo).lstrip() == "is 4, <think>not</think> 5."
        assert said.startswith(echo)
        assert said.removeprefix(echo)[0].isspace(), "words must not run together"
        assert (thought, silent) == ("Two and two.", False)


@given(SIZES, st.sampled_from([" is 4.", "The answers", "is < 4", "<b>4</b>", OPENING + " is 4", "The", "", "<thin"]))
def test_any_other_text_goes_on_as_it_is(sizes: list[int], text: str) -> None:
    assert parted(OPENING, pieces_of(text, sizes)) == (text, "", False)


@pytest.mark.parametrize("text", ["<think>Two and", "<think>Two and</think>", "<think>Two and</think>\n\n"])
def test_a_student_that_only_reasoned_has_not_answered(text: str) -> None:
    said, thought, silent = parted(OPENING, [text])
    assert (said.strip(), thought, silent) == ("", "Two and", True)


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


def test_a_student_that_says_nothing_at_all_is_not_silent() -> None:
    """It may have nothing to add; an empty continuation is the engine's `stop`."""
    assert parted(OPENING, []) == ("", "", False)


# In the answer.


def test_what_a_student_thought_goes_where_servers_put_thoughts() -> None:
    """It was told not to: the caller gets one answer, and the thought beside it."""
    reply = {"choices": [{"index": 0, "message": {"content": "<think>Hm, 4?</think> four."}, "finish_reason": "stop"}]}
    join_reply(reply, SeamJoin("The answer is", echo=False), ReasoningFilter("The answer is"))
    (choice,) = reply["choices"]
    assert choice["message"] == {"content": "The answer is four.", "reasoning_content": "Hm, 4?"}
    assert choice["finish_reason"] == "stop"


def test_a_student_that_only_thought_has_not_come_to_the_end() -> None:
    """Its opening alone is no answer, whatever the student says of having finished."""
    reply = {"choices": [{"index": 0, "message": {"content": "<think>Hm.</think>"}, "finish_reason": "stop"}]}
    join_reply(reply, SeamJoin("The answer is", echo=False), ReasoningFilter("The answer is"))
    assert reply["choices"][0]["message"]["content"] == "The answer is"
    assert reply["choices"][0]["finish_reason"] == "length"


def test_a_stream_of_thoughts_is_parted_in_any_split() -> None:
    relay = StreamRelay(ReplyHead("id", 1, "chat"), wants_usage=False)
    chunks = relay.join(SeamJoin("The answer is", echo=False), ReasoningFilter("The answer is"))
    for text in ("<th", "ink>Hm", ", 4?</thi", "nk> fo", "ur."):
        said = relay.feed({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})
        chunks += [said] if said is not None else []
    chunks += relay.end("stop")
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == "The answer is four."
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm, 4?"
