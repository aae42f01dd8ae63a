"""Exemplars made of a teacher's own answers: which questions may become some, and in which styles. Pure.

What the teacher writes first decides what guidance is worth, and it begins as its exemplars do. So the same answer is
offered in several styles: with its result first, or last, or alone. Which of them pays is for a search to find.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gateway.errors import StartupError
from gateway.evaluation.judging import Unscored
from gateway.evaluation.record import ScoredAnswer
from gateway.guidance.trim import without_leading_reasoning
from gateway.policy.projections import Exemplar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gateway.evaluation.example import QuestionScorer
    from gateway.evaluation.question import Question

Asked = Literal["as it is", "concise", "primed"]
"""How the teacher is asked for an answer that may become an exemplar: by the question alone, with the projection
`concise`, or with `primed` as it is shipped."""
Style = Literal["as it is", "concise", "primed", "result alone", "result first", "reasoning first", "given"]
"""How an exemplar's answer came to be: as the teacher wrote it, by rule from what it wrote, or by the user's hand."""

# Scorers to which the right answer is a text that can be written out; to others it is a pattern, or a judge's matter.
_WRITTEN_OUT = frozenset({"numeric", "exact", "contains", "choice"})
# English has about four bytes to a token.
_BYTES_PER_TOKEN = 4
_MARKUP = re.compile(r"\*\*|__|`+|^#{1,6}[ \t]+|^[ \t]*(?:[-*\u2022]|\d+[.)])[ \t]+", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(\[$])|\s*\n+\s*")
_ANNOUNCES = re.compile(
    r"(?:to (?:determine|find|solve|calculate|answer|figure)|in order to|let'?s|let us|sure|certainly|of course"
    r"|(?:first, )?we (?:need|have) to|step \d|here (?:is|are)|follow)\b",
    re.IGNORECASE,
)
_NAMES_THE_RESULT = re.compile(
    r"\b(?:answer|choice|option)\b.{0,40}?(?:\b(?:is|are|would be|should be)\b|:)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class QuestionSplit:
    """Questions of one data set, none of them in two parts.

    Attributes:
        pool: those that may become exemplars.
        select: those on which the search compares exemplars.
        check: those on which what it found is held against no exemplars at all.
    """

    pool: tuple[Question, ...]
    select: tuple[Question, ...]
    check: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class TeacherAnswer:
    """What the teacher wrote to a question of the pool, to its end, in how many tokens."""

    asked: Asked
    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class ExemplarCandidate:
    """An exemplar that may be chosen.

    Attributes:
        question: the id of the question it was made of.
        tokens: of its answer; of one made by rule, in proportion to the answer it was made of.
        result: what its scorer found in it; None: the answer has no result to be named.
    """

    exemplar: Exemplar
    style: Style
    question: str
    tokens: int
    result: str | None = None


def split(
    questions: Sequence[Question], *, pool: int, select: int, check: int, seed: int, leave: Iterable[str] = ()
) -> QuestionSplit:
    """Draw the three parts. Raises StartupError where the data has too few questions that differ.

    Those to compare on are drawn first: a larger pool leaves them as they are, and so what was asked about them.

    Args:
        leave: texts of questions that get into no part: those of an evaluation to come.
    """
    seen = {_same(text) for text in leave}
    fresh: list[Question] = []
    for question in questions:
        if _same(question.text) not in seen:
            seen.add(_same(question.text))
            fresh.append(question)
    wanted = pool + select + check
    if len(fresh) < wanted:
        raise StartupError(
            f"--pool {pool}, --select {select} and --check {check} take {wanted} questions, but the data has "
            f"{len(fresh)} that differ and are not left for an evaluation: give more data, or lower one of them."
        )
    random.Random(seed).shuffle(fresh)  # noqa: S311  it draws questions, and hides nothing
    return QuestionSplit(tuple(fresh[select + check :][:pool]), tuple(fresh[:select]), tuple(fresh[select:][:check]))


async def candidates(
    question: Question, answers: Sequence[TeacherAnswer], score: QuestionScorer, *, most_tokens: int
) -> list[ExemplarCandidate]:
    """The exemplars that a question yields, at most one of a style: correct, and of at most `most_tokens`.

    An answer that is wrong yields none, whatever is known of the right one: a teacher does not go on well from what
    it would not say itself. Nor does one whose worth is not known. Raises what else `score` raises.
    """
    found: dict[Style, ExemplarCandidate] = {}
    verdicts = [await _verdict(one.text, question, score) for one in answers]
    right = [one for one, verdict in zip(answers, verdicts, strict=True) if verdict.correct]
    right.sort(key=lambda one: one.tokens)
    offers: list[tuple[Style, str, int]] = [
        (one.asked, without_leading_reasoning(one.text).strip(), one.tokens) for one in right
    ]
    for one in right:
        for style, text in rewritten(one.text, question):
            offers.append((style, text, max(1, round(one.tokens * len(text) / max(1, len(one.text))))))
    for style, text, tokens in offers:
        if style in found or not text or tokens > most_tokens:
            continue
        verdict = await _verdict(text, question, score)
        if verdict.correct:
            found[style] = ExemplarCandidate(
                Exemplar(question.text.strip(), text), style, question.id, tokens, verdict.found
            )
    return list(found.values())


def given(own: Sequence[Exemplar], parts: QuestionSplit) -> list[ExemplarCandidate]:
    """Exemplars that somebody has written, to be chosen like others.

    Raises StartupError where one of them is a question on which exemplars are compared or checked.
    """
    asked = {_same(question.text): question for question in (*parts.select, *parts.check)}
    for at, one in enumerate(own):
        if (known := asked.get(_same(one.question))) is not None:
            raise StartupError(
                f"Exemplar {at + 1} of --exemplars is question '{known.id}' of the data, on which exemplars are "
                "compared: take it out of one of them."
            )
    return [
        ExemplarCandidate(
            one, "given", f"{at + 1} of --exemplars", max(1, len(one.answer.encode()) // _BYTES_PER_TOKEN)
        )
        for at, one in enumerate(own)
    ]


def rewritten(text: str, question: Question) -> list[tuple[Style, str]]:
    """A correct answer in other orders: its result alone, first and last, around its own reasoning.

    Announcements ("To find this, we need to ...") and the sentence that names the result are left out of the
    reasoning. Behind the whole reasoning comes its core, for an answer that is too long otherwise: the sentences that
    calculate, or speak of the right choice. Nothing where the result is no text (`regex`, a judge), and no reasoning
    where there is none.
    """
    if question.scorer not in _WRITTEN_OUT:
        return []
    answer = question.answer.strip()
    choices = dict(question.options) if question.scorer == "choice" else {}
    named, letter = (f"({answer}) {choices[answer]}", f"({answer})") if answer in choices else (answer, answer)
    alone = named if named.endswith((".", "!", "?")) else f"{named}."
    forms: list[tuple[Style, str]] = [("result alone", alone)]
    if said := _reasoning(text):
        telling = choices.get(answer, answer).casefold()
        first = next((one for one in said if telling in one.casefold()), said[0])
        opening = named if choices else f"The answer is {named}"
        forms.append(("result first", f"{opening}: {first}"))
        core = [one for one in said if telling in one.casefold()] if choices else [one for one in said if "=" in one]
        whole_first = (" ".join(some) for some in (said, core) if some)
        forms += [("reasoning first", f"{reasoned} The answer is {letter}.") for reasoned in whole_first]
    return forms


def varied(found: Iterable[ExemplarCandidate], seed: int) -> dict[Style, list[ExemplarCandidate]]:
    """By style, in the order in which they are to be tried: such that neighbours differ in their results.

    Where all exemplars say "(a)", a teacher says so too. Among those of one result the short come first.
    """
    styles: dict[Style, dict[str | None, list[ExemplarCandidate]]] = {}
    for one in found:
        styles.setdefault(one.style, {}).setdefault(one.result, []).append(one)
    return {style: _taking_turns(by_result, seed) for style, by_result in styles.items()}


def _taking_turns(by_result: Mapping[str | None, list[ExemplarCandidate]], seed: int) -> list[ExemplarCandidate]:
    rows = [sorted(some, key=lambda one: (one.tokens, one.question)) for _, some in sorted(_by_name(by_result))]
    random.Random(seed).shuffle(rows)  # noqa: S311  as above
    turns: list[ExemplarCandidate] = []
    for at in range(max(map(len, rows), default=0)):
        # Within a turn the shorter first; the shuffle settles what is as short.
        turns += sorted((row[at] for row in rows if at < len(row)), key=lambda one: one.tokens)
    return turns


def _by_name(by_result: Mapping[str | None, list[ExemplarCandidate]]) -> Iterable[tuple[str, list[ExemplarCandidate]]]:
    return ((result or "", some) for result, some in by_result.items())


async def _verdict(text: str, question: Question, score: QuestionScorer) -> ScoredAnswer:
    try:
        return await score(text, question)
    except Unscored:
        return ScoredAnswer(0.0)


def _reasoning(text: str) -> list[str]:
    """The sentences of an answer that reason: without markup, announcements and the result's own."""
    plain = _MARKUP.sub("", without_leading_reasoning(text)).strip()
    sentences = (" ".join(one.split()) for one in _SENTENCE_END.split(plain))
    return [
        one if one[-1] in ".!?" else f"{one}."
        for one in sentences
        if any(map(str.isalnum, one))
        and not one.endswith(":")
        and not _ANNOUNCES.match(one)
        and not _NAMES_THE_RESULT.search(one)
    ]


def _same(text: str) -> str:
    """Equal for questions that differ in blanks, case and their last mark alone."""
    return " ".join(text.split()).casefold().rstrip(".?! ")
