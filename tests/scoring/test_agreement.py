"""Agreement of two answers."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.scoring.agreement import Comparison, agreement

COMPARISONS: tuple[Comparison, ...] = get_args(Comparison)


@pytest.mark.parametrize(
    ("comparison", "answer", "reference", "agrees"),
    [
        ("exact", "Yes it is!", "yes it is", True),
        ("exact", "yes it isn't", "yes it is", False),
        ("exact", "It is cold there. The answer is Oslo.", "Oslo", True),
        ("numeric", "none", "the answer is 5", False),
        ("numeric", "5.0", "the answer is 5", True),
        ("numeric", "That is 60%.", "The answer is 0.6.", True),
        ("numeric", "The answer is 0.6.", "That is 60%.", True),
        ("numeric", "The answer is 3/4.", "#### 0.75", True),
        ("numeric", "2 + 2 = 4. Next, we take the 5 that", "The answer is 5.", False),
        ("choice", "(b)", "The answer is B.", True),
        ("choice", "(b) is not an option.", "The answer is (b).", False),
        ("choice", "The answer is (a).", "The answer is (b).", False),
        ("choice", "It depends.", "The answer is (b).", False),
    ],
)
def test_answers_with_equal_results_agree(comparison: Comparison, answer: str, reference: str, *, agrees: bool) -> None:
    assert agreement(comparison, answer, reference) == agrees


@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("reference", ["", " \n", "..."])
def test_without_anything_in_the_reference_there_is_nothing_to_compare(comparison: Comparison, reference: str) -> None:
    assert agreement(comparison, "the answer is (a) 5", reference) is None


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_texts_agree_between_not_at_all_and_wholly(one: str, other: str) -> None:
    for comparison in COMPARISONS:
        found = agreement(comparison, one, other)
        assert found is None or 0 <= found <= 1
        assert agreement(comparison, one, one) in {None, 1.0}


MOST_CHARS = 32_768
# Texts that the rules search for: a careless rule would scan the text again from each occurrence.
PARTS = [
    *("answer is ", "answer: ", "####", "#### 1 ", "**1**", "\\boxed{", "\\boxed{1}", "\\frac{", "\\frac{1}{2}", "{"),
    *("```", "```a", "```\n", "1,", "9", "1 ", "1/", "= 1", "=", "- ", "a", "a?", "\n", " ", ".)", "(a", "(a)", "a.\n"),
    *("not (a) ", "option a ", "Q:", "\nQ:", "\nA:", "so ", "so\n", "$", "\u5929", "\ufdfa"),
]
_MIXED = st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map("".join)


@pytest.mark.long
@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("ahead", ["", "18", "\\frac{", "```", "#### 18"])
def test_a_long_text_that_repeats_itself_is_read_in_one_go(comparison: Comparison, ahead: str) -> None:
    """No text may take quadratic time, which would be minutes here."""
    for part in PARTS:
        text = (ahead + part * MOST_CHARS)[: MOST_CHARS - 1] + "!"
        assert agreement(comparison, text, text) in {None, 1.0}


@pytest.mark.parametrize("comparison", COMPARISONS)
@given(part=_MIXED, ahead=st.sampled_from(PARTS), last=st.sampled_from(["!", "a", ""]))
@settings(deadline=None, max_examples=20)
def test_so_is_any_mixture(comparison: Comparison, part: str, ahead: str, last: str) -> None:
    text = (ahead + part * (MOST_CHARS // len(part)))[: MOST_CHARS - len(last)] + last
    assert agreement(comparison, text, text) in {None, 1.0}
