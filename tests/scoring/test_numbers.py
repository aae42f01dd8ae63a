"""Extraction of an answer's number. Many cases paraphrase an answer that was once misread."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.scoring.numbers import NumberValue, equal, number, result


def value(text: str) -> Fraction | None:
    found = result(text)
    return None if found is None else found.value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She paints 4 + 3 = 7 walls. The answer is 7.", 7),
        ("4 + 3 = 7\n#### 7", 7),
        ("Thus the total is \\(\\boxed{1{,}250}\\).", 1250),
        ("So it is $\\boxed{\\frac{3}{4}}$ of the cake.", Fraction(3, 4)),
        ("The answer is:\n\n\\[ 18 \\]", 18),
        ("**Answer:** $18.00", 18),
        ("The final answer is 12,000 dollars.", 12000),
        ("The answer is -$4.50.", Fraction(-9, 2)),
        ("The answer is $-3.", -3),
        ("The answer is 60%.", 60),
        ("The answer is .5 hours.", Fraction(1, 2)),
        ("The answer is 3 * 6 = 18 eggs.", 18),
        ("The answer is four.", 4),
        ("The answer would be 21 days.", 21),
        ("The answer is **7** boxes.", 7),
        ("The answer is \\(5 + 3 = 8\\).", 8),
        ("The answer is 195,000.", 195000),
        ("The answer is 18, since 3 * 6 = 18 and not 19.", 18),
        ("so \\boxed{18} apples in 2 boxes", 18),
        ("The final answer is: $\\boxed{1,234.50}$", Fraction("1234.5")),
        ("answer: **7** of 9", 7),
        ("The answer is $1,250,000 for 3 houses", 1250000),
        ("The answer is clear after 5 steps: 42", 42),
        ("The answer is found in 2 steps: it has 7 edges.", 2),
        ("The answer is 3: one each.", 3),
    ],
)
def test_a_stated_result_is_read(text: str, expected: Fraction | int) -> None:
    assert value(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is 9. To check: 9 + 2 = 11.", 9),
        ("The answer is 5. No: one more was sold. The answer is 6.", 6),
        ("\\boxed{4}\nWith the other one it is \\boxed{5}", 5),
    ],
)
def test_a_statement_wins_and_the_last_one_over_earlier_ones(text: str, expected: int) -> None:
    assert value(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Six of the 11 plants are sold for $3 each, which brings 6 x $3 = $18.", 18),
        ("So the stall takes 6 * 3 = $18 in 1 hour.", 18),
        ("With the tip that is 8 + 50% of 8 = 8 + 4 = 12 francs.", 12),
        ("It grew by 5 - 7 = -2 metres.", -2),
        ("10-4 is 6.", 6),
        ("The total number of eggs is **14** eggs.", 14),
        ("1. Add the eggs: 7 + 7 = 14.\n2. Take away those sold.", 14),
        ("#### Step 3: the last step\n\nThis gives 8 bolts.", 8),
        ("#### 3. The last step\n\nThis gives 8 bolts.", 8),
        ("By the 3rd day there were 5.", 5),
        ("The shop closes at 5:00 PM", 5),
        ("18", 18),
        ("18 eggs", 18),
        ("1.5e3 grams", 1500),
        ("1.25e1 grams", Fraction("12.5")),
        ("2e-3 grams", Fraction("0.002")),
        ("We have 3 and 4, thus 7 remain.", 7),
        ("It fell to \u22123 degrees", -3),
        ("10-3", 3),
        ("It is 0.50", Fraction(1, 2)),
        ("Between 5 and 1,000", 1000),
        ("Total = 20", 20),
    ],
)
def test_without_a_statement_the_last_result_counts(text: str, expected: int) -> None:
    assert value(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "I cannot tell.", "H2O and CO2", "twelve", "Let x2 be that.", "The answer is 4/0.", "It closed at 5:45."],
)
def test_an_answer_without_a_number_has_no_result(text: str) -> None:
    assert value(text) is None


def test_the_output_of_program_code_is_a_result_and_the_code_is_not() -> None:
    text = "That is 9 * 2 = 18 dollars.\n\nLet me confirm it:\n```python\nprice = 2\nprint(9 * price)\n```\n"
    assert value(text) == 18
    assert value("```python\nx = 12\n```\n```output\n16.25\n```\n") == Fraction("16.25")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # The sum is incomplete, so its first number is not a result.
        ("The mean length is \\[ \\frac{7 + 12 + 5}{2} = \\", None),
        # A fact repeated from the question is not a result.
        ("Sand in it: 2 * 3 = 6. Next, the other cart. It holds 11 tons of sand. Therefore, the sand is", None),
        ("It took 3 + 5 = 8 days. The crew wants to paint the", None),
        ("The cellar has 70 - 22 = 48. The rest of them is 48 - 4", None),
        ("The file is large. It has 200", None),
        ("So 14 - 9 = 5 pages are left.\n\nFinally, we work out the time that is", None),
        ("The first offer saves 310 - 280 = 30.\n\nNext, the other offer. It costs 450 and", None),
        # A sum in words is being replaced by numbers, and 12 may be the first of them.
        ("The herd is 3 * 4 = 12.\n\n\\[ \\text{All} = \\text{goats} + \\text{cows} + \\text{hens} = 12", None),
        ("Birds = geese + ducks = 12 + 30 = 42", 42),
        ("Of the geese + the ducks there are = 42 birds.", 42),
        # The result was complete, and was about to be repeated.
        ("They lay 8 * 40 = 320 tiles.\n\nTherefore, the tiles that they lay in all", 320),
        ("Now, we add them: 2 + 5 + 1 = 8\n\nThus, on that day", 8),
        ("Hats cost $7 each. So Ben pays 3 x $7 = $21 for", 21),
        ("So 61 - 20 = 41. The answer", 41),
        ("That is 9 * 2 = 18.\n\nLet us confirm it with code.\n```python\nprice = 2", 18),
    ],
)
def test_an_incomplete_answer_has_its_last_result(text: str, expected: int | None) -> None:
    assert value(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "He has 7 left. The answer is 7.\n\nQ: Ann has 3 cats. How many?\nA: The answer is 3.",
        "The answer is 7. Q: Ann has 3 cats. How many?\nA: 3",
        "The answer is 7.\n\nQuestion: Ann has 3 cats.\nAnswer: 3",
        "Q: How many does he have?\nA: The answer is 7.\n\nQ: And Ann?\nA: 3",
    ],
)
def test_a_question_that_the_model_puts_to_itself_is_no_part_of_the_answer(text: str) -> None:
    assert value(text) == 7


def test_a_text_that_is_but_a_question_has_no_result() -> None:
    assert value("Q: Ann has 3 cats. How many?") is None


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("The answer is 18.00.", "18"),
        ("The answer is $1,200.", "1200"),
        ("The answer is 1/2.", "0.5"),
        ("The answer is 60%.", "60"),
        ("The answer is 60%.", "0.6"),
        ("The answer is 60%.", "60%"),
        ("The answer is 60.", "60 %"),
    ],
)
def test_numbers_are_compared_by_value(text: str, right: str) -> None:
    found = result(text)
    assert found is not None
    assert equal(found, number(right))


def test_a_tolerance_allows_for_rounding_and_no_more() -> None:
    found = result("The answer is 3.33.")
    assert found is not None
    assert not equal(found, number("10/3"))
    assert equal(found, number("10/3"), Fraction("0.01"))
    assert not equal(found, number("10/3"), Fraction("0.001"))


def test_a_correct_answer_must_be_a_number() -> None:
    with pytest.raises(ValueError, match="not a number"):
        number("about a dozen or so of them, I think")


@given(st.integers(0, 10**9), st.integers(0, 10**6), st.integers(-20, 20))
def test_a_number_has_its_written_value(whole: int, behind: int, power: int) -> None:
    written = f"{whole}.{behind}e{power}"
    assert number(written) == NumberValue(written, Fraction(written))


@given(st.integers(-(10**9), 10**9))
def test_every_whole_number_is_read_as_it_is_written(whole: int) -> None:
    assert value(f"The answer is {whole:,}.") == whole
    assert value(f"That makes {whole}.") == whole


def test_digits_without_end_are_no_number() -> None:
    assert value("The answer is " + "1" * 10_000) is None
    assert value("The answer is 7, or " + "1" * 10_000) == 7


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    result(text)
