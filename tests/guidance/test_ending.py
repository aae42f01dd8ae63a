"""An opening ends with a sentence or a step, and the teacher's call with it; who shares it gets the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engines.base import EngineState, OpeningReply, OpeningRequest, TokenUsage
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
    """As a teacher writes them: a word with the blank before it."""
    words = text.split(" ")
    return [words[0], *(f" {word}" for word in words[1:])]


@pytest.mark.parametrize(
    ("stop_at", "least", "kept"),
    [
        ("sentence", 1, "First we add 2.5 and 3. "),
        ("sentence", 6, "First we add 2.5 and 3. "),
        ("sentence", 8, "First we add 2.5 and 3. That is 5.5 in all. "),
        ("step", 1, "First we add 2.5 and 3. That is 5.5 in all. Then\n"),
        ("sentence", 12, "First we add 2.5 and 3. That is 5.5 in all. Then\n"),
    ],
)
def test_it_ends_with_the_first_sentence_or_line_after_the_least_tokens(stop_at: Any, least: int, kept: str) -> None:
    """A number's point is no end; the end is sure when something follows it."""
    ending = EndDetector(EndRule(stop_at, least))
    shown = "".join(map(ending.feed, pieces(TEXT)))
    assert ending.at is not None
    assert shown == ending.text[: ending.at] == kept


def test_without_an_end_all_of_it_is_kept() -> None:
    ending = EndDetector(EndRule("step", 2))
    assert "".join(map(ending.feed, pieces("No line ends here. None"))) == "No line ends here. None"
    assert ending.at is None


@pytest.mark.parametrize("text", ["```python\nx = 1. \ny = 2\n", '{"a": "One. Two. Three.",\n "b": 1'])
def test_in_code_and_json_lines_alone_are_ends(text: str) -> None:
    ending = EndDetector(EndRule("sentence", 1))
    for piece in text:
        ending.feed(piece)
    assert ending.at is not None
    assert ending.text[: ending.at].endswith("\n") or text[ending.at - 1] == " "
    assert "\n" in ending.text[: ending.at]


@given(text=st.text("ab. \n!1", max_size=120), least=st.integers(1, 20), size=st.integers(1, 5))
def test_whatever_is_written_what_is_shown_is_its_beginning(text: str, least: int, size: int) -> None:
    ending = EndDetector(EndRule("sentence", least))
    told = [text[at : at + size] for at in range(0, len(text), size)]
    shown = "".join(map(ending.feed, told))
    assert text.startswith(shown)
    assert shown == (text if ending.at is None else text[: ending.at])


@given(text=st.text("ab. \n", max_size=80), tokens=st.integers(1, 40), least=st.integers(1, 40))
def test_a_text_that_was_not_heard_is_cut_at_an_end_too(text: str, tokens: int, least: int) -> None:
    at = ends_at(text, tokens, EndRule("sentence", least))
    assert at is None or (len(text) * least // tokens < at <= len(text))


@pytest.mark.parametrize(
    ("text", "least", "kept"),
    [
        (CHATTY, 6, "First we add 2.5 and 3."),
        (CHATTY, 8, "First we add 2.5 and 3. That is 5.5 in all."),
        (TEXT, 6, "First we add 2.5 and 3."),
    ],
)
def test_what_is_skipped_is_none_of_the_least_tokens(text: str, least: int, kept: str) -> None:
    """As soon with boilerplate as without, whether it is heard or looked at afterwards."""
    rule = EndRule("sentence", least, SKIP, 40)
    ending = EndDetector(rule)
    for piece in pieces(text):
        ending.feed(piece)
    assert ending.at is not None
    found = keep(ending.text[: ending.at], SKIP, 40, cut=True, stop=(), boundary="word")
    assert found.trimmed.text == kept
    assert ends_at(text, len(pieces(text)), rule) is not None


@pytest.mark.parametrize("text", [CHATTY, TEXT])
def test_no_end_is_told_of_behind_the_tokens_that_are_kept(text: str) -> None:
    """The opening ended sooner, where its length was used up."""
    rule = EndRule("sentence", 1, SKIP, 4)
    ending = EndDetector(rule)
    for piece in pieces(text):
        ending.feed(piece)
    assert ending.at is None
    assert ends_at(text, len(pieces(text)), rule) is None


def test_nothing_ends_where_all_is_skipped() -> None:
    rule = EndRule("sentence", 1, SKIP, 40)
    ending = EndDetector(rule)
    assert "".join(map(ending.feed, pieces("Certainly! Let us look at it. "))) == "Certainly! Let us look at it. "
    assert ending.at is None
    assert ends_at("Certainly! Let us look at it. ", 7, rule) is None


def test_json_behind_boilerplate_is_json() -> None:
    ending = EndDetector(EndRule("sentence", 1, SKIP, 40))
    text = 'Certainly! {"a": "One. Two.",\n "b": 1}'
    for piece in pieces(text):
        ending.feed(piece)
    assert ending.at is not None
    assert ending.text[: ending.at].rstrip().endswith('"One. Two.",')


@given(
    text=st.text("ab. \n!1", max_size=120),
    begun=st.sampled_from(["", "Certainly! ", "<think>One. Two.</think> Certainly!\n"]),
    least=st.integers(1, 9),
    tokens=st.integers(1, 30),
    size=st.integers(1, 7),
)
def test_an_end_lies_within_what_is_kept(text: str, begun: str, least: int, tokens: int, size: int) -> None:
    """Up to there nothing is lost to the length."""
    text = begun + text
    ending = EndDetector(EndRule("sentence", least, SKIP, tokens))
    for at in range(0, len(text), size):
        ending.feed(text[at : at + size])
    if ending.at is not None:
        upto = ending.text[: ending.at].rstrip()
        assert not keep(upto, SKIP, tokens, cut=False, stop=(), boundary="word").cut


class Teacher:
    """Writes TEXT, and tells of it if it can."""

    name = "big"
    state = EngineState()

    def __init__(self, *, tells: bool, finish: str = "length") -> None:
        self.tells = tells
        self.finish = finish
        self.told = 0

    async def opening(self, _: Any, *, batch: str | None, tell: Callable[[str], None] | None) -> OpeningReply:
        for piece in pieces(TEXT) if self.tells and tell is not None else ():
            self.told += 1
            tell(piece)  # type: ignore[misc]
        return OpeningReply(TEXT, self.finish, TokenUsage(10, len(pieces(TEXT))))  # type: ignore[arg-type]


REQUEST = OpeningRequest(max_tokens=40, messages=[])
RULE = EndRule("sentence", 6)


async def test_the_teacher_is_hung_up_on_where_the_opening_ends() -> None:
    """Nobody counted what it wrote then."""
    teacher = Teacher(tells=True)
    heard: list[str] = []
    reply = await open_to_end(teacher, REQUEST, "b", RULE, heard.append)  # type: ignore[arg-type]
    assert reply.text[: reply.ends_at] == "".join(heard) == "First we add 2.5 and 3. "
    assert (reply.usage, reply.finish, teacher.told) == (None, "length", 7)


async def test_a_teacher_that_tells_nothing_is_cut_afterwards_and_counts_all() -> None:
    reply = await open_to_end(Teacher(tells=False), REQUEST, "b", RULE, None)  # type: ignore[arg-type]
    assert reply.text == TEXT
    assert reply.usage is not None
    assert reply.text[: reply.ends_at].rstrip().endswith(".")


async def test_an_answer_that_came_to_its_own_end_is_whole() -> None:
    teacher = Teacher(tells=False, finish="stop")
    reply = await open_to_end(teacher, REQUEST, "b", RULE, None)  # type: ignore[arg-type]
    assert reply.ends_at is None


async def test_without_a_stop_the_call_is_what_it_was() -> None:
    reply = await open_to_end(Teacher(tells=True), REQUEST, "b", None, None)  # type: ignore[arg-type]
    assert (reply.text, reply.ends_at) == (TEXT, None)
