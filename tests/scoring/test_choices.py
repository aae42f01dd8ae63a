"""Extraction of the choice that an answer names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.scoring.choices import choice, letter

CHOICES = {"a": "harbour", "b": "bus", "c": "bus station", "d": "attic", "e": "old mill"}


def named(text: str) -> str | None:
    return choice(text, CHOICES)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (c).", "c"),
        ("The answer is c.", "c"),
        ("Answer: C", "c"),
        ("The answer is C because boats are elsewhere.", "c"),
        ("(B) because it drives on roads. A harbour is for boats.", "b"),
        ("(b) bus, because it drives on roads; (a) does not.", "b"),
        ("The correct answer is **(d) attic**.", "d"),
        ("The correct answer is:\n\n**d) attic**", "d"),
        ("The most fitting choice is option (b).", "b"),
        ("\\(\\boxed{\\text{(b) bus}}\\)", "b"),
        ("Therefore \\boxed{b}", "b"),
        ("The answer is option a", "a"),
        ("The correct option is A, harbour.", "a"),
        ("The answer must be a place for boats. The answer is (a).", "a"),
        ("The answer is (b). No, I was wrong: the answer is (c).", "c"),
        ("The best choice is attic (d), as against old mill (e).", "d"),
        ("The correct answer is (e). The answer is incorrect where it says bus.", "e"),
        ("(b) bus. This answer is wrong. The right answer is (d).", "d"),
    ],
)
def test_a_stated_letter_is_read(text: str, letter: str) -> None:
    assert named(text) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is harbour.", "a"),
        ("The answer is a harbour.", "a"),
        ("The answer is the bus station.", "c"),
        ("The answer is buses.", "b"),
        ('The answer is "old mill".', "e"),
        ("The answer is Attic, not harbour.", "d"),
    ],
)
def test_a_stated_text_counts_as_its_letter(text: str, letter: str) -> None:
    assert named(text) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(c)", "c"),
        ("c)", "c"),
        ("C", "c"),
        ("**C**", "c"),
        ("c. bus station", "c"),
        ("Bus station.", "c"),
        ("The old mill", "e"),
        ("Option D is right.", "d"),
        ("I would take (e), where it is quiet.", "e"),
        ("Ships are kept safe in a harbour.", "a"),
        ("(c) bus station is not an option. The answer is (d) attic.", "d"),
        ("(c) harbour.", "c"),
        ("A: harbour", "a"),
        ("C: Bus station", "c"),
    ],
)
def test_an_answer_that_is_little_but_a_choice_names_it(text: str, letter: str) -> None:
    assert named(text) == letter


LIST = "(a) harbour (b) bus (c) bus station (d) attic (e) old mill"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (f"The choices are: {LIST}. The answer is (d).", "d"),
        (f"Answer Choices: {LIST}\nOf these, only (e) is quiet.", "e"),
        ("(a) harbour: too wet.\n(b) bus: too small.\n(c) bus station: loud.\n\nSo the best is (d).", "d"),
        ("C. bus station\n\nA harbour (a) is for boats, and a bus (b) is too small.", "c"),
        ("A harbour is wet. A bus is small. Therefore it is most likely the attic.", "d"),
        ("The answer should be a place above a harbour. Of the above choices, only the attic is above", "d"),
    ],
)
def test_among_several_the_one_that_is_concluded_counts(text: str, letter: str) -> None:
    assert named(text) == letter


@pytest.mark.parametrize(
    "text",
    [
        "",
        LIST,
        f"Let us look at each: {LIST}",
        "A harbour has boats. An attic has dust.",
        "The answer must be a place like a harbour. Of the",
        "The answer is not (a).",
        "(a) and (b).",
        "It depends.",
        "A: A: A: A:",
        # Choices that the answer rejects.
        "(c) bus station is not an option.",
        "Option (a) cannot be meant.",
        # The choices in turn, without a preference.
        "(c) bus station: it is loud there.\n\n(d) attic: it is dusty.\n\n(b) bus: it is small.",
        "(c) bus station (d) attic",
        # The question repeated, or its requirements.
        "Where would a captain go, to the harbour?",
        "The answer should be like a harbour.",
        # Truncated before a conclusion.
        "One could go to the harbour, but",
    ],
)
def test_an_answer_that_names_none_or_several_has_no_result(text: str) -> None:
    assert named(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "The answer is (d).\n\nQ: Where is the sea? Answer Choices: (a) here (b) there\nA: The answer is (a).",
        "The answer is (d). Q: Where is the sea? Answer Choices: (a) here (b) there\nA: The answer is (a).",
    ],
)
def test_choices_of_a_next_question_are_not_read(text: str) -> None:
    assert named(text) == "d"


def test_a_text_that_two_choices_have_names_neither() -> None:
    twice = {"a": "durable", "b": "rare", "c": "durable"}
    assert choice("The answer is durable.", twice) is None
    assert choice("The answer is (c).", twice) == "c"
    assert choice("The answer is rare.", twice) == "b"


def test_letters_are_those_of_the_question() -> None:
    assert choice("The answer is (2).", {"1": "up", "2": "down"}) == "2"
    assert choice("The answer is (b).", {"A": "up", "B": "down"}) == "B"


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    assert named(text) in {None, *CHOICES}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("The answer is (c).", "c"),
        ("So the answer is C.", "c"),
        ("It cannot be (a) or (b). The answer is (d) lake.", "d"),
        ("Answer: B", "b"),
        ("\\boxed{E}", "e"),
        ("c", "c"),
        ("(b)", "b"),
        ("B) a lake", "b"),
        ("D. a river\nbecause it flows", "d"),
        ("It must be a lake (e), which is wide.", "e"),
        ("The answer is (a). No, the answer is (b).", "b"),
        ("The correct answer is (j) a ditch.", "j"),
        ("Of (b) and (c), only the latter is wet. So it is a pond (c).", "c"),
    ],
)
def test_where_the_choices_are_not_known_a_letter_alone_counts(text: str, named: str) -> None:
    assert letter(text) == named


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The answer is a dog",
        "either (a) or (b)",
        "A dog",
        "f(x) is large",
        "f(a) is large",
        "I'd say",
        "It is a lake.",
        "The answer is not (a).",
        "The answer is (x).",
    ],
)
def test_without_a_clear_letter_there_is_none(text: str) -> None:
    assert letter(text) is None


@given(st.text())
def test_any_text_has_a_letter_or_none(text: str) -> None:
    assert letter(text) in {None, *"abcdefghij"}
