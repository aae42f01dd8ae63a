"""How an answer is held against what is right: one function for each way, by the name that data sets give it.

exact      the answer, or what it states, is the text
numeric    its number has the same value (gateway/scoring/numbers.py)
choice     it names the choice (gateway/scoring/choices.py)
contains   it holds the text, as whole words
regex      a pattern is found in it
judge      another model is asked (judging.py)

A scorer is given the answer and never the prompt; guidance alone is scored by the same function. All go through one
`Scoring.score`, so that who runs an evaluation need not know which of them waits for a model.
"""

from __future__ import annotations

import importlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import re2

from gateway.config.yaml_messages import nearest
from gateway.errors import StartupError
from gateway.evaluation.judging import JUDGE, Judge, Unscored
from gateway.evaluation.question import Question
from gateway.evaluation.record import ScoredAnswer
from gateway.scoring import numbers
from gateway.scoring.choices import choice
from gateway.scoring.statements import own_part
from gateway.scoring.texts import folded, stated_text

if TYPE_CHECKING:
    from collections.abc import Mapping

Scorer: TypeAlias = Callable[[str, Question], ScoredAnswer]

_RIGHT, _WRONG = 1.0, 0.0


def exact(answer: str, question: Question) -> ScoredAnswer:
    """Letter case, white space, marks and quotes around it aside. What is stated wins over the whole."""
    found = stated_text(answer)
    wanted = folded(question.answer)
    return _verdict(wanted in {folded(found), folded(own_part(answer))}, found)


def numeric(answer: str, question: Question) -> ScoredAnswer:
    """By value, within the option `tolerance` (else 0). Raises ValueError where the right answer is no number."""
    found = numbers.result(answer)
    if found is None:
        return ScoredAnswer(_WRONG)
    within = dict(question.options).get("tolerance", "0")
    wanted, tolerance = numbers.number(question.answer), numbers.number(within)
    return _verdict(numbers.equal(found, wanted, tolerance.value), found.written)


def choose(answer: str, question: Question) -> ScoredAnswer:
    """By the letter of the choice; the options are the choices' texts by letter."""
    found = choice(answer, dict(question.options))
    return ScoredAnswer(_WRONG) if found is None else _verdict(found.lower() == question.answer.lower(), found)


def contains(answer: str, question: Question) -> ScoredAnswer:
    """Whether the text stands in the answer as whole words; letter case and white space aside."""
    wanted = r"\s+".join(map(re.escape, unicodedata.normalize("NFKC", question.answer).split()))
    found = re.search(rf"(?<!\w){wanted}(?!\w)", unicodedata.normalize("NFKC", own_part(answer)), re.IGNORECASE)
    return ScoredAnswer(_WRONG) if found is None else ScoredAnswer(_RIGHT, found[0])


def matches(answer: str, question: Question) -> ScoredAnswer:
    """The option `pattern` (RE2): where it has a group, what the last match holds in it must equal the right answer."""
    every = list(re2.finditer(dict(question.options)["pattern"], own_part(answer)))
    if not every:
        return ScoredAnswer(_WRONG)
    found = every[-1]
    if not found.groups():
        return ScoredAnswer(_RIGHT, found[0])
    return _verdict(folded(found[1] or "") == folded(question.answer), found[1] or "")


SCORERS: Mapping[str, Scorer] = MappingProxyType(
    {"exact": exact, "numeric": numeric, "choice": choose, "contains": contains, "regex": matches}
)
"""Those that need nothing but the answer, by name."""

KNOWN = (*SCORERS, JUDGE)
"""Every name that a data set may give."""


class Scoring:
    """Holds answers against questions, each as its question says. `errors` counts what could not be scored, by label.

    Args:
        judge: asked for questions with the scorer `judge`.
        instead: scores every question, whatever it says.
    """

    def __init__(self, judge: Judge | None = None, instead: Scorer | None = None) -> None:
        self._judge = judge
        self._instead = instead
        self.errors: Counter[str] = Counter()

    async def score(self, answer: str, question: Question) -> ScoredAnswer:
        """What the answer is worth. An empty one is wrong, and no model is asked about it.

        Raises:
            Unscored: it is not known: the judge's reply cannot be read, or a plug-in failed. It is no 0.
            EngineError: the judge's model did not answer.
            StartupError: the question wants a judge and there is none, or a plug-in that is not there.
        """
        try:
            return await self._score(answer, question)
        except Unscored as error:
            self.errors[error.label] += 1
            raise

    async def _score(self, answer: str, question: Question) -> ScoredAnswer:
        own = self._instead or (plug_in(question.scorer) if is_plug_in(question.scorer) else None)
        if own is not None:
            return _plugged_in(own, answer, question)
        if question.scorer != JUDGE:
            return SCORERS[question.scorer](answer, question)
        if self._judge is None:
            raise StartupError(f"question '{question.id}' wants a judge: name a model with --judge")
        return await self._judge.score(own_part(answer), question)


def is_plug_in(name: str) -> bool:
    """Whether a scorer's name is `package.module:function`."""
    return ":" in name


def plug_in(name: str) -> Scorer:
    """The function that `package.module:function` names. Importing it runs the user's own code, as they asked for.

    Raises StartupError when there is no such module or function.
    """
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
    except Exception as error:
        raise StartupError(f"--scorer {name}: importing '{module_name}' failed ({error})") from error
    if not callable(function):
        raise StartupError(f"--scorer {name}: '{module_name}' has no function '{function_name}'")
    scorer: Scorer = function
    return scorer


def check_name(name: str) -> str | None:
    """What is wrong with a scorer's name, in words; None where nothing is."""
    if name in KNOWN:
        return None
    close = nearest(name, KNOWN)
    hint = f". Did you mean '{close}'?" if close else ""
    return f"unknown scorer '{name}'; known: {', '.join(KNOWN)}{hint}"


def _plugged_in(scorer: Scorer, answer: str, question: Question) -> ScoredAnswer:
    try:
        verdict = scorer(answer, question)
    except Exception as error:
        raise Unscored("scorer_failed", f"the scorer failed on '{question.id}': {error!r}") from error
    if not _is_verdict(verdict):
        raise Unscored("scorer_failed", f"the scorer gave no Verdict with a score from 0 to 1 for '{question.id}'")
    return verdict


def _is_verdict(given: object) -> bool:
    return isinstance(given, ScoredAnswer) and 0 <= given.score <= 1


def _verdict(right: bool, found: str) -> ScoredAnswer:
    return ScoredAnswer(_RIGHT if right else _WRONG, found)
