"""Word problems of our own, made from a seed: for whoever has no data set at hand. Pure.

The same seed gives the same problems on every machine and Python, and problem 7 is the same in a run of 10 or 1,000.
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

FEWEST_STEPS, MOST_STEPS = 2, 8
"""As GSM8K's (paper, section 4: Datasets)."""

_LETTERS = "abcde"
_ASIDE_IN = 3  # one problem of so many tells a number that has nothing to do with it


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem with the structure that it was made of.

    Attributes:
        kind: which story it tells.
        sum: what is to be calculated, as `problem_stories.Sum`; for a choice the right person's.
        steps: how many calculations that takes: its difficulty.
    """

    question: Question
    kind: str
    sum: Sum
    steps: int


def problems(count: int, seed: int = 0) -> list[Problem]:
    """So many word problems with whole numbers for answers, no two alike."""
    seen: set[str] = set()
    return [_fresh("problem", seed, at, seen) for at in range(count)]


def choice_problems(count: int, seed: int = 0) -> list[Problem]:
    """So many questions of who of five has the most or the fewest, with the five as choices; no two alike."""
    seen: set[str] = set()
    return [_fresh("choice", seed, at, seen) for at in range(count)]


def _fresh(form: str, seed: int, at: int, seen: set[str]) -> Problem:
    tried = 0
    while True:
        draw = ProblemRandom(f"{form}:{seed}:{at}:{tried}")
        name = f"{form}-{seed}-{at}"
        made = _word_problem(draw, name) if form == "problem" else _who(draw, name)
        if made is not None and made.question.text not in seen:
            seen.add(made.question.text)
            return made
        tried += 1


def _word_problem(draw: ProblemRandom, name: str) -> Problem | None:
    # The lesser of two: many steps are rare, as in GSM8K.
    steps = min(draw.between(FEWEST_STEPS, MOST_STEPS), draw.between(FEWEST_STEPS, MOST_STEPS))
    kind = draw.pick(list(STORIES))
    story = STORIES[kind](draw, steps)
    if story.steps != steps:
        return None  # two of its calculations happen to be the same
    *told, asked = story.sentences
    if not draw.below(_ASIDE_IN):
        aside = draw.pick(ASIDES).format(name=draw.pick(NAMES), number=draw.between(2, 30))
        told.insert(draw.between(1, len(told)), aside)
    text = " ".join([*told, asked])
    return Problem(Question(name, text, str(story.value), "numeric", steps=steps), kind, story.sum, steps)


def _who(draw: ProblemRandom, name: str) -> Problem | None:
    names, thing = draw.some(NAMES, len(_LETTERS)), draw.pick(KEPT)
    amounts: list[Sum] = [draw.between(20, 60)]
    told = [f"{names[0]} has {thing.count(worth(amounts[0]))}."]
    for before, other in pairwise(names):
        amount, sentence = compared(draw, amounts[-1], other, before, thing.many)
        amounts.append(amount)
        told.append(sentence)
    values = [worth(amount) for amount in amounts]
    asked, wanted = draw.pick((("most", max(values)), ("fewest", min(values))))
    if values.count(wanted) > 1:
        return None
    right = names[values.index(wanted)]
    choices = dict(zip(_LETTERS, draw.some(names, len(names)), strict=True))
    letter = next(letter for letter, said in choices.items() if said == right)
    text = with_choices(f"{' '.join(told)} Who has the {asked} {thing.many}?", choices)
    question = Question(name, text, letter, "choice", tuple(choices.items()), steps=len(names) - 1)
    return Problem(question, "who", amounts[names.index(right)], len(names) - 1)
