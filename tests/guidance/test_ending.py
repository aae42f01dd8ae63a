"""An opening ends with a sentence or a step, and the teacher's call with it; who shares it gets the same."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engines.base import EngineState, OpeningReply, OpeningRequest, Usage
from gateway.guidance.ending import Ending, ends_at, open_to_end
from gateway.policy.length import choose_length
from gateway.policy.length_rules import AutoRule
from gateway.protocol import parse_chat

if TYPE_CHECKING:
    from collections.abc import Callable

ASKED = parse_chat(b'{"model": "x", "messages": [{"role": "user", "content": "Why?"}]}')
TEXT = "First we add 2.5 and 3. That is 5.5 in all. Then\nwe stop: done"


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
    ending = Ending(stop_at, least)
    shown = "".join(map(ending.feed, pieces(TEXT)))
    assert ending.at is not None
    assert shown == ending.text[: ending.at] == kept


def test_without_an_end_all_of_it_is_kept() -> None:
    ending = Ending("step", 2)
    assert "".join(map(ending.feed, pieces("No line ends here. None"))) == "No line ends here. None"
    assert ending.at is None


@pytest.mark.parametrize("text", ["```python\nx = 1. \ny = 2\n", '{"a": "One. Two. Three.",\n "b": 1'])
def test_in_code_and_json_lines_alone_are_ends(text: str) -> None:
    ending = Ending("sentence", 1)
    for piece in text:
        ending.feed(piece)
    assert ending.at is not None
    assert ending.text[: ending.at].endswith("\n") or text[ending.at - 1] == " "
    assert "\n" in ending.text[: ending.at]


@given(text=st.text("ab. \n!1", max_size=120), least=st.integers(1, 20), size=st.integers(1, 5))
def test_whatever_is_written_what_is_shown_is_its_beginning(text: str, least: int, size: int) -> None:
    ending = Ending("sentence", least)
    told = [text[at : at + size] for at in range(0, len(text), size)]
    shown = "".join(map(ending.feed, told))
    assert text.startswith(shown)
    assert shown == (text if ending.at is None else text[: ending.at])


@given(text=st.text("ab. \n", max_size=80), tokens=st.integers(1, 40), least=st.integers(1, 40))
def test_a_text_that_was_not_heard_is_cut_at_an_end_too(text: str, tokens: int, least: int) -> None:
    at = ends_at(text, tokens, "sentence", least)
    assert at is None or (len(text) * least // tokens < at <= len(text))


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
        return OpeningReply(TEXT, self.finish, Usage(10, len(pieces(TEXT))))  # type: ignore[arg-type]


REQUEST = OpeningRequest(max_tokens=40, messages=[])
LENGTH = replace(choose_length(AutoRule(min=1), ASKED, None, {}), least=6, stop_at="sentence")


async def test_the_teacher_is_hung_up_on_where_the_opening_ends() -> None:
    """Nobody counted what it wrote then."""
    teacher = Teacher(tells=True)
    heard: list[str] = []
    reply = await open_to_end(teacher, REQUEST, "b", LENGTH, LENGTH.least, heard.append)  # type: ignore[arg-type]
    assert reply.text[: reply.ends_at] == "".join(heard) == "First we add 2.5 and 3. "
    assert (reply.usage, reply.finish, teacher.told) == (None, "length", 7)


async def test_a_teacher_that_tells_nothing_is_cut_afterwards_and_counts_all() -> None:
    reply = await open_to_end(Teacher(tells=False), REQUEST, "b", LENGTH, LENGTH.least, None)  # type: ignore[arg-type]
    assert reply.text == TEXT
    assert reply.usage is not None
    assert reply.text[: reply.ends_at].rstrip().endswith(".")


async def test_an_answer_that_came_to_its_own_end_is_whole() -> None:
    teacher = Teacher(tells=False, finish="stop")
    reply = await open_to_end(teacher, REQUEST, "b", LENGTH, LENGTH.least, None)  # type: ignore[arg-type]
    assert reply.ends_at is None


async def test_without_a_stop_the_call_is_what_it_was() -> None:
    for length in (None, replace(LENGTH, stop_at="none")):
        reply = await open_to_end(Teacher(tells=True), REQUEST, "b", length, 6, None)  # type: ignore[arg-type]
        assert (reply.text, reply.ends_at) == (TEXT, None)
