"""Generated problems: the answers are computed again from the structure by other means."""

from __future__ import annotations

import hashlib
import operator
import re
from fractions import Fraction

import pytest

from gateway.evaluation.questions.data import MAX_STEPS, MIN_STEPS, choice_problems, problems
from gateway.evaluation.questions.problem_stories import BAKED, CROPS, GOODS, HOLDERS, KEPT, STORIES, ProblemRandom, Sum
from gateway.evaluation.scoring import SCORERS

RUN = problems(1000, seed=7)
CHOICES = choice_problems(300, seed=7)
_CALCULATE = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
# Numbers written as words in stories.
SAID = {2: ("half", "Half", "twice")}


def in_words(total: Sum) -> str:
    """Return the sum as a Python expression."""
    return str(total) if isinstance(total, int) else f"({in_words(total[1])} {total[0]} {in_words(total[2])})"


def worked_out(total: Sum) -> list[Fraction]:
    """Return all intermediate values, the result last, from a stack machine over exact fractions."""
    stack: list[Fraction] = []
    seen: list[Fraction] = []
    waiting: list[Sum | str] = [total]
    while waiting:
        at = waiting.pop()
        if isinstance(at, int):
            stack.append(Fraction(at))
        elif isinstance(at, str):
            right, left = stack.pop(), stack.pop()
            stack.append(_CALCULATE[at](left, right))
            seen.append(stack[-1])
        else:
            waiting += [at[0], at[2], at[1]]
    return [*seen, stack[0]]


def numbers_of(total: Sum) -> list[int]:
    return [int(found) for found in re.findall(r"\d+", in_words(total))]


def test_the_answer_follows_from_the_structure() -> None:
    for problem in RUN:
        assert worked_out(problem.sum)[-1] == int(problem.question.answer), problem.question.text


def test_every_intermediate_value_is_a_positive_integer() -> None:
    for problem in RUN:
        values = worked_out(problem.sum)
        assert all(value > 0 and value.denominator == 1 for value in values), problem.question.text


def test_the_text_contains_every_number_of_the_structure() -> None:
    for problem in RUN:
        numbers = re.findall(r"\d+", problem.question.text)
        for number in numbers_of(problem.sum):
            words = SAID.get(number, ())
            assert str(number) in numbers or any(word in problem.question.text for word in words), problem.question.text


def test_steps_are_the_different_calculations() -> None:
    for problem in RUN:
        brackets = {in_words(total) for total in _within(problem.sum)}
        assert problem.question.steps == len(brackets)


def _within(total: Sum) -> list[Sum]:
    return [] if isinstance(total, int) else [total, *_within(total[1]), *_within(total[2])]


def test_no_two_of_a_thousand_are_equal() -> None:
    assert len({problem.question.text for problem in RUN}) == 1000
    assert len({problem.question.id for problem in RUN}) == 1000


def test_all_kinds_and_all_difficulties_come_up() -> None:
    assert {problem.kind for problem in RUN} == set(STORIES)
    assert {problem.question.steps for problem in RUN} == set(range(MIN_STEPS, MAX_STEPS + 1))


def test_a_seed_gives_the_same_problems_everywhere() -> None:
    """The digest is fixed: changing a story changes the data set."""
    made = [*problems(50, 1), *choice_problems(50, 1)]
    text = "\n".join(f"{one.question.text} {one.question.answer}" for one in made)
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "4661b0afba35b3446cdb8269ecf323cf3676ea156032e29dc2ed29469de60e82"
    )


def test_a_problem_does_not_depend_on_how_many_are_made() -> None:
    assert problems(20, seed=7) == RUN[:20]
    assert [one.question.text for one in problems(20, seed=8)] != [one.question.text for one in RUN[:20]]


def test_some_problems_contain_an_irrelevant_number() -> None:
    idle = sum(
        len(re.findall(r"\d+", one.question.text)) > len(numbers_of(one.sum))
        for one in RUN
        if one.kind not in {"family", "collection"}
    )
    assert idle > 100


@pytest.mark.parametrize("kind", STORIES)
@pytest.mark.parametrize("steps", range(MIN_STEPS, MAX_STEPS + 1))
def test_each_story_can_be_told_in_any_number_of_steps(kind: str, steps: int) -> None:
    lengths = {STORIES[kind](ProblemRandom(f"any:{seed}"), steps).steps for seed in range(30)}
    assert steps in lengths
    assert max(lengths) <= steps


def test_words_are_spelt_right() -> None:
    text = " ".join(problem.question.text for problem in [*RUN, *CHOICES])
    nouns = [*KEPT, *HOLDERS, *BAKED, *CROPS, *(thing for thing, _, _ in GOODS)]
    for noun in nouns:
        assert not re.search(rf"\b1 {noun.many}\b", text)
        assert not re.search(rf"\b(?:[2-9]|\d\d+) {noun.one}\b", text)
    assert not re.search(r"\ba [aeiou]|\ban (?!hour)[^aeiou]", text)
    assert not re.search(r"  |\.\.|[{}]", text)


def test_a_noun_is_counted_and_has_its_article() -> None:
    scarf = next(thing for thing, _, _ in GOODS if thing.one == "scarf")
    assert (scarf.count(1), scarf.count(2), scarf.a) == ("1 scarf", "2 scarves", "a scarf")


def test_the_right_choice_is_the_one_person_with_the_most_or_fewest() -> None:
    for problem in CHOICES:
        amounts = parsed_amounts(problem.question.text)
        extreme = max(amounts.values()) if "Who has the most" in problem.question.text else min(amounts.values())
        right = [name for name, amount in amounts.items() if amount == extreme]
        assert right == [dict(problem.question.options)[problem.question.answer]], problem.question.text
        assert worked_out(problem.sum)[-1] == extreme


def parsed_amounts(text: str) -> dict[str, Fraction]:
    """Return everyone's amount, parsed from the text only."""
    amounts: dict[str, Fraction] = {}
    for sentence in re.split(r"(?<=\.) ", text.partition(" Who has")[0]):
        name, other = sentence.split()[0], sentence.rstrip(".").split()[-1]
        some = [int(found) for found in re.findall(r"\d+", sentence)]
        if " more " in sentence:
            amounts[name] = amounts[other] + some[0]
        elif " fewer " in sentence:
            amounts[name] = amounts[other] - some[0]
        elif " twice " in sentence:
            amounts[name] = amounts[other] * 2
        elif " half " in sentence:
            amounts[name] = amounts[other] / 2
        else:
            amounts[name] = Fraction(some[0])
    return amounts


def test_every_right_answer_is_scored_as_right() -> None:
    for problem in RUN[:50]:
        assert SCORERS["numeric"](f"The answer is {problem.question.answer}.", problem.question).correct
    for problem in CHOICES[:50]:
        assert SCORERS["choice"](f"The answer is ({problem.question.answer}).", problem.question).correct
