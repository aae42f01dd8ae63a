"""Selection of questions as exemplars, and styles of a teacher's answer."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import StartupError
from gateway.evaluation.priming.exemplars import (
    ExemplarCandidate,
    Style,
    TeacherAnswer,
    candidates,
    ordered_by_style,
    rewritten,
    split,
)
from gateway.evaluation.record import Question, ScoredAnswer
from gateway.policy.projections import PRIMED, Exemplar
from gateway.scoring.choices import choice as named_choice

CHOICES = (("a", "spoon"), ("b", "towel"), ("c", "kettle"))
DRIES = Question("q1", "Which dries dishes? (a) spoon (b) towel (c) kettle", "b", "choice", CHOICES)
JARS = Question("q2", "3 rows of 8 jars, 5 are empty. How many are full?", "19", "numeric")


async def by_last(text: str, question: Question) -> ScoredAnswer:
    """Score the last letter in parentheses, or the last number."""
    pattern = r"\((\w)\)" if question.scorer == "choice" else r"\d+"
    found = re.findall(pattern, text)
    return ScoredAnswer(float(bool(found) and found[-1] == question.answer), found[-1] if found else None)


def first_forms(text: str, question: Question) -> dict[Style, str]:
    """Return the first form of each style."""
    return dict(reversed(rewritten(text, question)))


def questions(count: int) -> list[Question]:
    return [Question(f"q{at}", f"What is {at} + 1?", str(at + 1), "numeric") for at in range(count)]


@given(
    st.lists(st.integers(0, 30), max_size=60),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 4),
    st.integers(0, 99),
    st.sets(st.integers(0, 30)),
)
def test_no_question_is_in_two_parts_or_among_those_left_alone(
    drawn: list[int], pool: int, select: int, check: int, seed: int, left: set[int]
) -> None:
    """Questions with equal texts count once, whatever their ids."""
    every = [Question(f"id{at}", f"What is {one}  + 1?", "0", "numeric") for at, one in enumerate(drawn)]
    leave = [f"what is {one} + 1" for one in left]
    fresh = set(drawn) - left
    if len(fresh) < pool + select + check:
        with pytest.raises(StartupError, match=f"the data has {len(fresh)} distinct"):
            split(every, pool=pool, select=select, check=check, seed=seed, exclude=leave)
        return
    parts = split(every, pool=pool, select=select, check=check, seed=seed, exclude=leave)
    assert [len(parts.pool), len(parts.select), len(parts.check)] == [pool, select, check]
    texts = [one.text for part in (parts.pool, parts.select, parts.check) for one in part]
    assert len(set(texts)) == len(texts)
    assert not {int(text.split()[2]) for text in texts} & left


def test_a_larger_pool_leaves_the_questions_to_compare_on() -> None:
    small, large = (split(questions(90), pool=size, select=20, check=10, seed=7) for size in (4, 50))
    assert small.select == large.select
    assert small.check == large.check
    assert small.pool == large.pool[:4]


def test_another_seed_draws_others() -> None:
    one, other = (split(questions(90), pool=5, select=20, check=0, seed=seed) for seed in (1, 2))
    assert one.select != other.select


async def test_a_wrong_answer_yields_no_exemplar_although_the_right_one_is_known() -> None:
    answers = [TeacherAnswer("as it is", "A kettle is hot. The answer is (c).", 12)]
    assert await candidates(DRIES, answers, by_last, max_tokens=60) == []


async def test_long_solutions_are_offered_only_in_shorter_forms() -> None:
    long = "To find this, we need to look at each choice.\n" + "A towel takes up water. " + "It hangs there. " * 30
    answers = [TeacherAnswer("as it is", long + "The answer is (b).", 160)]
    found = {one.style: one for one in await candidates(DRIES, answers, by_last, max_tokens=60)}
    assert set(found) == {"result alone", "result first", "reasoning first"}
    assert found["reasoning first"].exemplar.answer == "A towel takes up water. The answer is (b)."
    assert found["result first"].exemplar == Exemplar(DRIES.text, "(b) towel: A towel takes up water.")
    assert all(one.tokens <= 60 and one.result == "b" for one in found.values())


async def test_long_reasoning_is_reduced_to_its_calculations() -> None:
    text = (
        "The shelf has rows, and each of them holds the same number of jars. So there are 3 * 8 = 24 jars. Now look at "
        "those that are empty, which do not count. That leaves 24 - 5 = 19 full ones. The answer is 19."
    )
    for most, answer in (
        (80, text),
        (40, "So there are 3 * 8 = 24 jars. That leaves 24 - 5 = 19 full ones. The answer is 19."),
    ):
        found = await candidates(JARS, [TeacherAnswer("concise", text, 70)], by_last, max_tokens=most)
        assert next(one for one in found if one.style == "reasoning first").exemplar.answer == answer


async def test_the_shortest_correct_answer_is_the_one_that_is_rewritten() -> None:
    answers = [
        TeacherAnswer("as it is", "A towel is made of cloth, which takes up what is on the plate. It is (b).", 22),
        TeacherAnswer("concise", "A towel takes up water. So (b).", 10),
    ]
    found = {one.style: one.exemplar.answer for one in await candidates(DRIES, answers, by_last, max_tokens=60)}
    assert found["as it is"] == answers[0].text
    assert found["concise"] == answers[1].text
    assert found["result first"].startswith("(b) towel: A towel takes up water.")


async def test_a_form_that_its_scorer_reads_otherwise_is_not_offered() -> None:
    """The scorer reads the last number, so a leading result is hidden by a later number."""
    answers = [TeacherAnswer("as it is", "There are 3 * 8 = 24 jars. Some are empty. The answer is 19.", 30)]
    found = {one.style: one.exemplar.answer for one in await candidates(JARS, answers, by_last, max_tokens=60)}
    assert "result first" not in found
    assert found["reasoning first"] == "There are 3 * 8 = 24 jars. Some are empty. The answer is 19."
    assert found["result alone"] == "19."


async def test_reasoning_that_is_not_part_of_an_answer_is_no_part_of_an_exemplar() -> None:
    answers = [TeacherAnswer("as it is", "<think>Perhaps (c)?</think>\n\nIt is (b).", 12)]
    found = await candidates(DRIES, answers, by_last, max_tokens=60)
    assert all("think" not in one.exemplar.answer for one in found)
    assert next(one for one in found if one.style == "as it is").exemplar.answer == "It is (b)."


def test_announcements_markup_and_the_sentence_of_the_result_are_no_reasoning() -> None:
    text = (
        "To determine how many are full, we need to follow these steps:\n\n"
        "1. **Count** all jars: 3 * 8 = 24.\n2. Let's subtract.\n3. Take the empty ones off: 24 - 5 = 19\n\n"
        "Therefore, the final answer is 19."
    )
    forms = first_forms(text, JARS)
    assert forms["reasoning first"] == (
        "Count all jars: 3 * 8 = 24. Take the empty ones off: 24 - 5 = 19. The answer is 19."
    )
    assert forms["result first"] == "The answer is 19: Take the empty ones off: 24 - 5 = 19."


def test_the_sentence_that_speaks_of_the_choice_explains_it() -> None:
    forms = first_forms("A spoon stirs. A towel takes up water. The correct answer is (b) towel.", DRIES)
    assert forms["result first"] == "(b) towel: A towel takes up water."
    assert forms["reasoning first"] == "A spoon stirs. A towel takes up water. The answer is (b)."


@pytest.mark.parametrize("scorer", ["regex", "judge"])
def test_answers_of_patterns_and_judges_are_not_written(scorer: str) -> None:
    assert rewritten("It is blue.", Question("q", "Which colour?", "(?i)blue", scorer)) == []


def test_an_answer_without_reasoning_has_a_result_alone() -> None:
    assert rewritten("The answer is (b).", DRIES) == [("result alone", "(b) towel.")]


def test_neighbours_differ_in_their_results_and_short_ones_come_first() -> None:
    def one(name: str, result: str, tokens: int) -> ExemplarCandidate:
        return ExemplarCandidate(Exemplar(name, result), "concise", name, tokens, result)

    found = [one("1", "a", 9), one("2", "a", 3), one("3", "a", 5), one("4", "b", 4), one("5", "c", 8)]
    ordered = ordered_by_style(found, 0)["concise"]
    assert [candidate.question for candidate in ordered] == ["2", "4", "5", "3", "1"]


async def test_the_primer_is_answered_right() -> None:
    sums, choice, *_ = PRIMED.exemplars
    assert (await by_last(sums.answer, Question("1", sums.question, "54", "numeric"))).correct
    assert named_choice(choice.answer, {"A": "ruler", "B": "thermometer", "C": "scales", "D": "compass"}) == "B"
