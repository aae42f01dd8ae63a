"""A student that reasons is told not to where a prefix opens its answer, unless the caller wants its thoughts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.model_settings import ModelSettings
from gateway.reasoning import ReasoningFilter, asks_for_reasoning, unguided_by_reasoning, without_reasoning

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
    assert unguided_by_reasoning("switchable", body) == "reasoning"
    assert unguided_by_reasoning("none", body) is None


@pytest.mark.parametrize("body", NOT_ASKING)
def test_a_caller_that_does_not_ask_for_reasoning_gets_a_prefix(body: dict[str, Any]) -> None:
    assert not asks_for_reasoning(body)
    assert unguided_by_reasoning("switchable", body) is None
    assert unguided_by_reasoning("always", body) == "reasoning"


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
