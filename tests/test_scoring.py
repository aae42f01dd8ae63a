"""How far two answers say the same: what is read out of a text, and what is not."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.scoring import agreement, normalised, shared_words, stated_choice, stated_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She pays 3 times 6. The answer is 18.", "18"),
        ("The answer is 18, since 3 * 6 = 18 and not 19.", "18"),
        ("3 boxes of 6\n#### 18", "18"),
        ("so \\boxed{18} apples in 2 boxes", "18"),
        ("The final answer is: $\\boxed{1,234.50}$", "1234.5"),
        ("**Answer:** 7 of 9", "7"),
        ("answer: **7** of 9", "7"),
        ("The answer is $1,250,000 for 3 houses", "1250000"),
        ("The answer is 12. No: the answer is 13.", "13"),
        ("We have 3 and 4, thus 7 remain.", "7"),
        ("The answer is -4.", "-4"),
        ("It fell to \u22123 degrees", "-3"),
        ("10-3", "3"),
        ("It is 0.50", "0.5"),
        ("12", "12"),
        ("Between 5 and 1,000", "1000"),
        ("The answer is clear after 5 steps: 42", "42"),
    ],
)
def test_the_number_is_the_last_that_is_stated_else_the_last(text: str, number: str) -> None:
    assert stated_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "none at all", "H2O and CO2", "twelve"])
def test_a_text_without_a_number_has_none(text: str) -> None:
    assert stated_number(text) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (c).", "C"),
        ("So the answer is C.", "C"),
        ("It cannot be (a) or (b). The answer is (d) lake.", "D"),
        ("Answer: B", "B"),
        ("\\boxed{E}", "E"),
        ("c", "C"),
        ("(b)", "B"),
        ("B) a lake", "B"),
        ("D. a river\nbecause it flows", "D"),
        ("It must be a lake (e), which is wide.", "E"),
        ("The answer is (a). No, the answer is (b).", "B"),
    ],
)
def test_the_choice_is_the_last_that_is_stated_else_the_only_one_in_brackets(text: str, letter: str) -> None:
    assert stated_choice(text) == letter


@pytest.mark.parametrize("text", ["", "The answer is a dog", "either (a) or (b)", "A dog", "f(x) is large", "I'd say"])
def test_a_text_without_a_clear_choice_has_none(text: str) -> None:
    assert stated_choice(text) is None


def test_words_count_as_often_as_in_both() -> None:
    assert shared_words("One two three", "one TWO three!") == 1
    assert shared_words("one one one", "one two") == pytest.approx(2 / 5)
    assert shared_words("", "one") == 0
    assert shared_words("one", " ... ") is None
    assert shared_words("\u5929\u7a7a\u662f\u84dd\u8272", "\u5929\u7a7a\u5f88\u84dd") == pytest.approx(6 / 9)


def test_a_whole_text_is_the_same_whatever_its_capitals_blanks_and_last_marks() -> None:
    assert normalised("  Yes,\n it  IS. ") == "yes, it is"
    assert agreement("exact", "Yes it is!", "yes it is") == 1
    assert agreement("exact", "yes it isn't", "yes it is") == 0


@pytest.mark.parametrize("comparison", ["numeric", "choice", "exact"])
def test_without_anything_in_the_reference_there_is_nothing_to_compare(comparison: str) -> None:
    assert agreement(comparison, "the answer is (a) 5", "") is None  # type: ignore[arg-type]
    assert agreement("numeric", "none", "the answer is 5") == 0
    assert agreement("numeric", "5.0", "the answer is 5") == 1


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_texts_agree_between_not_at_all_and_wholly(one: str, other: str) -> None:
    for comparison in ("words", "exact", "numeric", "choice"):
        found = agreement(comparison, one, other)  # type: ignore[arg-type]
        assert found is None or 0 <= found <= 1
        assert agreement(comparison, one, one) in {None, 1.0}  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["1," * 15_000, "9" * 30_000, "(a" * 15_000, "answer is " * 3_000, "-" * 30_000])
def test_a_long_text_that_repeats_itself_is_read_in_one_go(text: str) -> None:
    """Whatever was written: no pattern looks at a text again from each of its places."""
    for comparison in ("words", "exact", "numeric", "choice"):
        agreement(comparison, text, text)  # type: ignore[arg-type]
