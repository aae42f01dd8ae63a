"""Extraction of stated texts, and shared words."""

from __future__ import annotations

import pytest

from gateway.scoring.statements import normalize_text, shared_words, stated_text


def test_words_count_as_often_as_in_both() -> None:
    assert shared_words("One two three", "one TWO three!") == 1
    assert shared_words("one one one", "one two") == pytest.approx(2 / 5)
    assert shared_words("", "one") == 0
    assert shared_words("one", " ... ") is None
    assert shared_words("\u5929\u7a7a\u662f\u84dd\u8272", "\u5929\u7a7a\u5f88\u84dd") == pytest.approx(6 / 9)


@pytest.mark.parametrize("text", ["  Yes,\n it  IS. ", '"Yes, it is!"', "**yes, it is**", "yes, it is?", "Yes, it is"])
def test_case_whitespace_and_punctuation_are_ignored(text: str) -> None:
    assert normalize_text(text) == "yes, it is"


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("Oslo", "Oslo"),
        ("It is cold there. The answer is Oslo.", "Oslo"),
        ("Answer: Oslo", "Oslo"),
        ("The answer is Rome. No: the answer is Oslo.", "Oslo"),
        ("The answer is Oslo.\n\nQ: And in Italy?\nA: The answer is Rome.", "Oslo"),
        ("The answer should be a town. Oslo", "The answer should be a town. Oslo"),
    ],
)
def test_the_last_statement_is_the_answer(text: str, stated: str) -> None:
    assert stated_text(text) == stated
