"""Generated word problems, for runs without a data set. Pure functions.

A seed yields the same problems on every machine and Python version, and problem 7 is the same in a run of 10 or 1,000.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from gateway.evaluation.question import Question, with_choices
from gateway.evaluation.questions.problem_stories import STORIES, compared, worth
from gateway.evaluation.questions.problem_words import ASIDES, KEPT, NAMES, ProblemRandom

if TYPE_CHECKING:
    from gateway.evaluation.questions.problem_stories import Sum

MIN_STEPS, MAX_STEPS = 2, 8
"""The range of GSM8K (paper, section 4: Datasets)."""

_LETTERS = "abcde"
_ASIDE_IN = 3  # one problem in three has an irrelevant number


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem with its structure.

    Attributes:
        question: The question.
        kind: Name of its story.
        sum: The calculation, as `problem_stories.Sum`; for a choice, that of the correct person.
        steps: Number of calculations, which is its difficulty.
    """

    question: Question
    kind: str
    sum: Sum
    steps: int


def problems(count: int, seed: int = 0) -> list[Problem]:
    """Return `count` different word problems with whole numbers as answers."""
    seen: set[str] = set()
    return [_new_problem("problem", seed, index, seen) for index in range(count)]


def choice_problems(count: int, seed: int = 0) -> list[Problem]:
    """Return `count` different questions for the person among five with the most or the fewest items."""
    seen: set[str] = set()
    return [_new_problem("choice", seed, index, seen) for index in range(count)]


def _new_problem(form: str, seed: int, index: int, seen: set[str]) -> Problem:
    attempt = 0
    while True:
        draw = ProblemRandom(f"{form}:{seed}:{index}:{attempt}")
        name = f"{form}-{seed}-{index}"
        problem = _word_problem(draw, name) if form == "problem" else _who(draw, name)
        if problem is not None and problem.question.text not in seen:
            seen.add(problem.question.text)
            return problem
        attempt += 1


def _word_problem(draw: ProblemRandom, name: str) -> Problem | None:
    # The minimum of two: many steps are rare, as in GSM8K.
    steps = min(draw.between(MIN_STEPS, MAX_STEPS), draw.between(MIN_STEPS, MAX_STEPS))
    kind = draw.pick(list(STORIES))
    story = STORIES[kind](draw, steps)
    if story.steps != steps:
        return None  # two of its calculations are equal
    *statements, question = story.sentences
    if not draw.below(_ASIDE_IN):
        aside = draw.pick(ASIDES).format(name=draw.pick(NAMES), number=draw.between(2, 30))
        statements.insert(draw.between(1, len(statements)), aside)
    text = " ".join([*statements, question])
    return Problem(Question(name, text, str(story.value), "numeric", steps=steps), kind, story.sum, steps)


def _who(draw: ProblemRandom, name: str) -> Problem | None:
    names, thing = draw.some(NAMES, len(_LETTERS)), draw.pick(KEPT)
    amounts: list[Sum] = [draw.between(20, 60)]
    statements = [f"{names[0]} has {thing.count(worth(amounts[0]))}."]
    for before, other in pairwise(names):
        amount, sentence = compared(draw, amounts[-1], other, before, thing.many)
        amounts.append(amount)
        statements.append(sentence)
    values = [worth(amount) for amount in amounts]
    superlative, extreme = draw.pick((("most", max(values)), ("fewest", min(values))))
    if values.count(extreme) > 1:
        return None
    correct = names[values.index(extreme)]
    choices = dict(zip(_LETTERS, draw.some(names, len(names)), strict=True))
    letter = next(letter for letter, name_of_choice in choices.items() if name_of_choice == correct)
    text = with_choices(f"{' '.join(statements)} Who has the {superlative} {thing.many}?", choices)
    question = Question(name, text, letter, "choice", tuple(choices.items()), steps=len(names) - 1)
    return Problem(question, "who", amounts[names.index(correct)], len(names) - 1)
