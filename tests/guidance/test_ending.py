"""Guidance ends with a sentence or a step, and so does the teacher's call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engines.base import EngineState, TeacherReply, TeacherRequest, TokenUsage
from gateway.guidance.ending import EndDetector, EndRule, ends_at, open_to_end
from gateway.guidance.keep import keep
from gateway.policy.conditions import to_pattern
from gateway.policy.projections import SkipRule

if TYPE_CHECKING:
    from collections.abc import Callable

TEXT = "First we add 2.5 and 3. That is 5.5 in all. Then\nwe stop: done"
CHATTY = "Certainly! Let us look at it step by step.\n\n" + TEXT
SKIP = SkipRule((to_pattern("Certainly!"), to_pattern("Let us look.*")), 24)


def pieces(text: str) -> list[str]:
    """Return a text as a teacher streams it: each word with the space before it."""
    words = text.split(" ")
    return [words[0], *(f" {word}" for word in words[1:])]


@pytest.mark.parametrize(
    ("stop_at", "min_tokens", "kept"),
    [
        ("sentence", 1, "First we add 2.5 and 3. "),
        ("sentence", 6, "First we add 2.5 and 3. "),
        ("sentence", 8, "First we add 2.5 and 3. That is 5.5 in all. "),
        ("step", 1, "First we add 2.5 and 3. That is 5.5 in all. Then\n"),
        ("sentence", 12, "First we add 2.5 and 3. That is 5.5 in all. Then\n"),
    ],
)
def test_guidance_ends_with_the_first_sentence_or_line_after_the_minimum(
    stop_at: Any, min_tokens: int, kept: str
) -> None:
    """The point in a number is no end. An end is certain when more text follows."""
    ending = EndDetector(EndRule(stop_at, min_tokens))
    shown = "".join(map(ending.feed, pieces(TEXT)))
    assert ending.at is not None
    assert shown == ending.text[: ending.at] == kept


def test_without_an_end_all_text_is_kept() -> None:
    ending = EndDetector(EndRule("step", 2))
    assert "".join(map(ending.feed, pieces("No line ends here. None"))) == "No line ends here. None"
    assert ending.at is None


@pytest.mark.parametrize("text", ["```python\nx = 1. \ny = 2\n", '{"a": "One. Two. Three.",\n "b": 1'])
def test_in_code_and_json_only_lines_end(text: str) -> None:
    ending = EndDetector(EndRule("sentence", 1))
    for piece in text:
        ending.feed(piece)
    assert ending.at is not None
    assert ending.text[: ending.at].endswith("\n") or text[ending.at - 1] == " "
    assert "\n" in ending.text[: ending.at]


@given(text=st.text("ab. \n!1", max_size=120), min_tokens=st.integers(1, 20), size=st.integers(1, 5))
def test_the_shown_text_is_a_beginning_of_any_text(text: str, min_tokens: int, size: int) -> None:
    ending = EndDetector(EndRule("sentence", min_tokens))
    text_pieces = [text[at : at + size] for at in range(0, len(text), size)]
    shown = "".join(map(ending.feed, text_pieces))
    assert text.startswith(shown)
    assert shown == (text if ending.at is None else text[: ending.at])


@given(text=st.text("ab. \n", max_size=80), tokens=st.integers(1, 40), min_tokens=st.integers(1, 40))
def test_text_that_was_not_streamed_is_cut_at_an_end_too(text: str, tokens: int, min_tokens: int) -> None:
    at = ends_at(text, tokens, EndRule("sentence", min_tokens))
    assert at is None or (len(text) * min_tokens // tokens < at <= len(text))


@pytest.mark.parametrize(
    ("text", "min_tokens", "kept"),
    [
        (CHATTY, 6, "First we add 2.5 and 3."),
        (CHATTY, 8, "First we add 2.5 and 3. That is 5.5 in all."),
        (TEXT, 6, "First we add 2.5 and 3."),
    ],
)
def test_skipped_text_does_not_count_toward_the_minimum(text: str, min_tokens: int, kept: str) -> None:
    """Guidance ends as early with boilerplate as without, streamed or not."""
    rule = EndRule("sentence", min_tokens, SKIP, 40)
    ending = EndDetector(rule)
    for piece in pieces(text):
        ending.feed(piece)
    assert ending.at is not None
    kept_guidance = keep(ending.text[: ending.at], SKIP, 40, cut=True, stop=(), boundary="word")
    assert kept_guidance.trimmed.text == kept
    assert ends_at(text, len(pieces(text)), rule) is not None


@pytest.mark.parametrize("text", [CHATTY, TEXT])
def test_no_end_is_found_after_the_kept_tokens(text: str) -> None:
    """The guidance ended before, because its length was used up."""
    rule = EndRule("sentence", 1, SKIP, 4)
    ending = EndDetector(rule)
    for piece in pieces(text):
        ending.feed(piece)
    assert ending.at is None
    assert ends_at(text, len(pieces(text)), rule) is None


def test_skipped_text_has_no_end() -> None:
    rule = EndRule("sentence", 1, SKIP, 40)
    ending = EndDetector(rule)
    assert "".join(map(ending.feed, pieces("Certainly! Let us look at it. "))) == "Certainly! Let us look at it. "
    assert ending.at is None
    assert ends_at("Certainly! Let us look at it. ", 7, rule) is None


def test_json_after_boilerplate_is_json() -> None:
    ending = EndDetector(EndRule("sentence", 1, SKIP, 40))
    text = 'Certainly! {"a": "One. Two.",\n "b": 1}'
    for piece in pieces(text):
        ending.feed(piece)
    assert ending.at is not None
    assert ending.text[: ending.at].rstrip().endswith('"One. Two.",')


@given(
    text=st.text("ab. \n!1", max_size=120),
    boilerplate=st.sampled_from(["", "Certainly! ", "<think>One. Two.</think> Certainly!\n"]),
    min_tokens=st.integers(1, 9),
    tokens=st.integers(1, 30),
    size=st.integers(1, 7),
)
def test_an_end_is_within_the_kept_text(text: str, boilerplate: str, min_tokens: int, tokens: int, size: int) -> None:
    """No text before the end is lost to the length limit."""
    text = boilerplate + text
    ending = EndDetector(EndRule("sentence", min_tokens, SKIP, tokens))
    for at in range(0, len(text), size):
        ending.feed(text[at : at + size])
    if ending.at is not None:
        upto = ending.text[: ending.at].rstrip()
        assert not keep(upto, SKIP, tokens, cut=False, stop=(), boundary="word").cut


class Teacher:
    """A teacher that generates TEXT, with or without streaming."""

    name = "big"
    state = EngineState()

    def __init__(self, *, tells: bool, finish: str = "length") -> None:
        self.tells = tells
        self.finish = finish
        self.sent_pieces = 0

    async def generate_guidance(
        self, _: Any, *, batch: str | None, on_text: Callable[[str], None] | None
    ) -> TeacherReply:
        for piece in pieces(TEXT) if self.tells and on_text is not None else ():
            self.sent_pieces += 1
            on_text(piece)  # type: ignore[misc]
        return TeacherReply(TEXT, self.finish, TokenUsage(10, len(pieces(TEXT))))  # type: ignore[arg-type]


REQUEST = TeacherRequest(max_tokens=40, messages=[])
RULE = EndRule("sentence", 6)


async def test_the_teachers_call_is_canceled_where_the_guidance_ends() -> None:
    """The reply then has no usage."""
    teacher = Teacher(tells=True)
    shown_pieces: list[str] = []
    reply = await open_to_end(teacher, REQUEST, "b", RULE, shown_pieces.append)  # type: ignore[arg-type]
    assert reply.text[: reply.ends_at] == "".join(shown_pieces) == "First we add 2.5 and 3. "
    assert (reply.usage, reply.finish, teacher.sent_pieces) == (None, "length", 7)


async def test_a_reply_that_was_not_streamed_is_cut_afterwards() -> None:
    reply = await open_to_end(Teacher(tells=False), REQUEST, "b", RULE, None)  # type: ignore[arg-type]
    assert reply.text == TEXT
    assert reply.usage is not None
    assert reply.text[: reply.ends_at].rstrip().endswith(".")


async def test_an_answer_that_ended_by_itself_is_complete() -> None:
    teacher = Teacher(tells=False, finish="stop")
    reply = await open_to_end(teacher, REQUEST, "b", RULE, None)  # type: ignore[arg-type]
    assert reply.ends_at is None


async def test_without_a_rule_the_call_is_unchanged() -> None:
    reply = await open_to_end(Teacher(tells=True), REQUEST, "b", None, None)  # type: ignore[arg-type]
    assert (reply.text, reply.ends_at) == (TEXT, None)
