"""Boilerplate before an answer: which text is dropped and which is kept, however the text arrives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.accounting.estimate import count_text
from gateway.guidance.keep import MAX_SENTENCE_CHARS, MAX_SENTENCES, GrowingKeep, GrowingSkip, keep
from gateway.policy.patterns import to_pattern
from gateway.policy.projection_shapes import ENGLISH
from gateway.policy.projections import SkipRule

SKIP = SkipRule(tuple(map(to_pattern, ENGLISH)), 24)
MANY = 1000

words = st.sampled_from(
    ["Sure", "!", ",", " ", "\n", "Certainly", ".", ":", "To find", " the total", ", we need to", " follow these steps",
     "Here", "'s", " how", "Let's", " break it down", "<think>", "</think>", "<", "24", " rolls", "\u4e2d", "\u3002",
     "\U0001f600", "\ud83d", "\u2019", "Mr", "it is", "`"]
)  # fmt: skip
texts = st.lists(words, max_size=25).map("".join)


def skipped(text: str, skip: SkipRule, tokens: int) -> tuple[str, GrowingSkip]:
    """Return the kept part of a complete text, and the filter that was applied."""
    growing = GrowingSkip(skip, tokens)
    return growing.feed(text) + growing.finish(), growing


def kept(text: str, tokens: int = MANY) -> str:
    return skipped(text, SKIP, tokens)[0]


@pytest.mark.parametrize(
    ("dropped_text", "rest"),
    [
        ("To determine how many rolls the 3 bakers sold, we need to follow these steps:\n\n", "1. 24 / 2 = 12"),
        ("To solve this problem, we can break it down step by step.\n", "24 / 2 = 12"),
        ("Let's break this down. ", "First, 24 / 2."),
        ("Let us think step by step:\n", "24 / 2 = 12"),
        ("Certainly! ", "The sky scatters blue light."),
        ("Sure, I can help you with that! ", "Paris."),
        ("Sure! Here\u2019s a simple explanation:\n\n", "Bread goes stale"),
        ("Of course. I'd be happy to explain: ", "it is the angle"),
        ("Great question! Here is how it works:\n", "- Heat"),
        ("**Answer:** ", "B) thermometer"),
        ("The answer is: ", "42"),
        ("CERTAINLY! ", "Yes."),
    ],
)
def test_boilerplate_is_dropped(dropped_text: str, rest: str) -> None:
    assert kept(dropped_text + rest) == rest


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 42.",
        "Sure, 5.",
        "Surely not.",
        "To find the total, we add 24 and 12.",
        "To find the total, we need to add the two: 36.",
        "Let's start with 24 rolls.",
        "Here are 3 reasons: heat, light and time.",
        "Okay is a word.",
        "1. Calculate the rolls",
        "B) thermometer. Certainly! It measures",
        "Mr. Sure! has three.",
        "```python\nprint(1)\n```",
        "",
    ],
)
def test_text_that_may_be_part_of_the_answer_is_kept(text: str) -> None:
    assert kept(text) == text


def test_a_text_of_boilerplate_alone_is_dropped() -> None:
    rest, growing = skipped("Certainly! Let's break this down step by step.", SKIP, MANY)
    assert (rest, growing.dropped, growing.cut_at) == ("", True, None)


def test_reasoning_is_passed_on_and_not_counted() -> None:
    thoughts = "<think>Sure! What do they want?</think>"
    rest, growing = skipped(f"{thoughts}\n\nCertainly! Four of them are red", SKIP, 2)
    assert rest == thoughts + "Four of"
    assert growing.cut_at is not None


def test_unclosed_reasoning_is_passed_on() -> None:
    assert kept("<think>Sure! What") == "<think>Sure! What"


def test_the_number_of_dropped_sentences_is_limited() -> None:
    assert kept("Sure! " * (MAX_SENTENCES + 2)) == "Sure! Sure! "


def test_a_sentence_that_is_too_long_is_passed_on() -> None:
    growing = GrowingSkip(SKIP, MANY)
    long = "To find it we need to follow these steps, " + "and " * MAX_SENTENCE_CHARS
    assert growing.feed(long) == long


def test_text_after_m_tokens_is_cut() -> None:
    rest, growing = skipped("Certainly! One two, three four", SKIP, 4)
    assert (rest, growing.cut_at is not None) == ("One two, three", True)
    rest, growing = skipped("Certainly! One two, three", SKIP, 4)
    assert (rest, growing.cut_at is not None) == ("One two, three", False)


def test_the_gateways_own_count_keeps_rather_fewer_tokens() -> None:
    text = (
        "24 / 2 = 12 in the afternoon, so 24 + 12 = 36 in all. Tulips grow in soil, so the gardener puts them into a "
        "garden rather than a refrigerator, and waters them every morning until the first of May. "
    )
    rest, _ = skipped(text * 4, SKIP, 100)
    assert 80 <= count_text("o200k_base", rest) <= 101


def test_a_sentence_is_held_until_it_is_certainly_kept() -> None:
    growing = GrowingSkip(SKIP, MANY)
    passed = [
        growing.feed(piece) for piece in ("Cert", "ainly", "!", " ", "The", " sky", " is", " blue", ".", " So", " it")
    ]
    assert passed == ["", "", "", "", "", "", "", "", "", "The sky is blue. So", " it"]


@pytest.mark.parametrize(
    ("pattern", "text", "rest"), [("Hm+,", "Hmm, yes", "yes"), ("(?i)well\\b,?", "Well well, so", "so")]
)
def test_configured_patterns_drop_the_beginning_of_a_sentence(pattern: str, text: str, rest: str) -> None:
    assert skipped(text, SkipRule((to_pattern(pattern),), 8), MANY)[0] == rest


def test_a_pattern_that_matches_nothing_at_all_drops_nothing() -> None:
    rest, growing = skipped("Yes", SkipRule((to_pattern("x*"),), 8), MANY)
    assert (rest, growing.dropped) == ("Yes", False)


@given(texts, st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 12))
def test_the_result_does_not_depend_on_the_pieces(text: str, sizes: list[int], tokens: int) -> None:
    whole, what = skipped(text, SKIP, tokens)
    growing = GrowingSkip(SKIP, tokens)
    passed = "".join(growing.feed(piece) for piece in cut_up(text, sizes)) + growing.finish()
    assert (passed, growing.dropped, growing.cut_at is None) == (whole, what.dropped, what.cut_at is None)


@given(texts)
def test_the_kept_text_is_the_end_of_the_text(text: str) -> None:
    if "<" not in text:
        assert text.endswith(kept(text)) or kept(text) == ""


@given(texts, st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 12), st.booleans())
def test_shown_text_is_never_taken_back(text: str, sizes: list[int], tokens: int, cut: bool) -> None:
    growing = GrowingKeep(SKIP, tokens, boundary="word", stop=("it is",))
    shown = "".join(growing.feed(piece) for piece in cut_up(text, sizes))
    kept_guidance = growing.finish(cut=cut)
    assert kept_guidance.trimmed.text.startswith(shown)
    if not shown:
        assert kept_guidance == keep(text, SKIP, tokens, cut=cut, stop=("it is",), boundary="word")


def cut_up(text: str, sizes: list[int]) -> list[str]:
    pieces, at = [], 0
    while at < len(text):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text[at : at + size])
        at += size
    return pieces
