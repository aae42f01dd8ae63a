"""Exemplars from a teacher's own answers: selection of questions, and styles of answers. Pure functions.

The first tokens of guidance determine its value, and the teacher imitates its exemplars. So each answer is offered in
several styles: with its result first, or last, or alone. The search finds the style that pays.
"""

from __future__ import annotations

import random
import re
from io import StringIO
from typing import TYPE_CHECKING, Literal, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import LiteralScalarString

from gateway.errors import StartupError
from gateway.evaluation.record import ScoredAnswer
from gateway.evaluation.scoring import Unscored
from gateway.guidance.trim import without_leading_reasoning
from gateway.policy.projections import Exemplar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from gateway.evaluation.record import Question
    from gateway.evaluation.run import QuestionScorer

PromptStyle = Literal["as it is", "concise", "primed"]
"""Prompt for an exemplar's answer: the question alone, or the shipped projection `concise` or `primed`."""
Style = Literal["as it is", "concise", "primed", "result alone", "result first", "reasoning first", "given"]
"""Source of an exemplar's answer: the teacher's text, a rule applied to it, or the user."""

# Scorers whose correct answer can be written as text; those of other scorers are patterns or references.
_TEXT_SCORERS = frozenset({"numeric", "exact", "contains", "choice"})
# English has about four bytes per token.
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


_ORIGIN: Mapping[Style, str] = {
    "as it is": "the teacher's, unchanged",
    "concise": "the teacher's, with the concise projection",
    "primed": "the teacher's, after general exemplars",
    "result alone": "the result of the teacher's",
    "result first": "the teacher's, with its result moved to the start",
    "reasoning first": "the teacher's, with its result moved to the end",
}
_WIDTH = 110


class QuestionSplit(NamedTuple):
    """Disjoint parts of the questions: to make exemplars from, to compare sets of them on, and to check the result."""

    pool: tuple[Question, ...]
    select: tuple[Question, ...]
    check: tuple[Question, ...]


class TeacherAnswer(NamedTuple):
    """The teacher's complete answer to a question of the pool, and its tokens."""

    prompted: PromptStyle
    text: str
    tokens: int


class ExemplarCandidate(NamedTuple):
    """An exemplar with the id of its question, the tokens of its answer, and the result that the scorer found."""

    exemplar: Exemplar
    style: Style
    question: str
    tokens: int
    result: str | None = None


def split(
    questions: Sequence[Question], *, pool: int, select: int, check: int, seed: int, exclude: Iterable[str] = ()
) -> QuestionSplit:
    """Draw the three parts in these sizes. Raises StartupError if the data has too few distinct questions.

    `select` and `check` are drawn first, so that a larger pool keeps them and their stored texts. `exclude` are texts
    of questions to leave out, such as those of a later evaluation.
    """
    seen = {_question_key(text) for text in exclude}
    fresh: list[Question] = []
    for question in questions:
        if _question_key(question.text) not in seen:
            seen.add(_question_key(question.text))
            fresh.append(question)
    needed = pool + select + check
    if len(fresh) < needed:
        raise StartupError(
            f"--pool {pool}, --select {select} and --check {check} need {needed} questions, but the data has "
            f"{len(fresh)} distinct ones that are not reserved for an evaluation: add data, or lower one of them."
        )
    random.Random(seed).shuffle(fresh)  # noqa: S311  not security-relevant
    return QuestionSplit(tuple(fresh[select + check :][:pool]), tuple(fresh[:select]), tuple(fresh[select:][:check]))


async def candidates(
    question: Question, answers: Sequence[TeacherAnswer], score: QuestionScorer, *, max_tokens: int
) -> list[ExemplarCandidate]:
    """Return the correct exemplars of a question with at most `max_tokens` tokens, at most one per style.

    A wrong or unscored answer yields none, even if the correct one is known. A teacher continues badly after text that
    it would not write itself. Raises other errors of `score`.
    """
    found: dict[Style, ExemplarCandidate] = {}
    verdicts = [await _verdict(one.text, question, score) for one in answers]
    correct = [one for one, verdict in zip(answers, verdicts, strict=True) if verdict.correct]
    correct.sort(key=lambda one: one.tokens)
    forms: list[tuple[Style, str, int]] = [
        (one.prompted, without_leading_reasoning(one.text).strip(), one.tokens) for one in correct
    ]
    for one in correct:
        for style, text in rewritten(one.text, question):
            forms.append((style, text, max(1, round(one.tokens * len(text) / max(1, len(one.text))))))
    for style, text, tokens in forms:
        if style in found or not text or tokens > max_tokens:
            continue
        verdict = await _verdict(text, question, score)
        if verdict.correct:
            found[style] = ExemplarCandidate(
                Exemplar(question.text.strip(), text), style, question.id, tokens, verdict.found
            )
    return list(found.values())


def given(own: Sequence[Exemplar], parts: QuestionSplit) -> list[ExemplarCandidate]:
    """Return the user's exemplars as candidates. Raises StartupError if one is a question of `select` or `check`."""
    compared = {_question_key(question.text): question for question in (*parts.select, *parts.check)}
    for index, one in enumerate(own):
        if (known := compared.get(_question_key(one.question))) is not None:
            raise StartupError(
                f"Exemplar {index + 1} of --exemplars is question '{known.id}' of the data, on which exemplars are "
                "compared: remove it from one of them."
            )
    return [
        ExemplarCandidate(
            one, "given", f"{index + 1} of --exemplars", max(1, len(one.answer.encode()) // _BYTES_PER_TOKEN)
        )
        for index, one in enumerate(own)
    ]


def rewritten(text: str, question: Question) -> list[tuple[Style, str]]:
    """Return a correct answer in other forms: its result alone, first and last, with its own reasoning.

    The reasoning omits announcements ("To find this, we need to ...") and the sentence that states the result. A
    shorter variant follows for long answers: only sentences with a calculation or the correct choice.
    Returns an empty list if the result is not a text (`regex`, a judge).
    """
    if question.scorer not in _TEXT_SCORERS:
        return []
    answer = question.answer.strip()
    choices = dict(question.options) if question.scorer == "choice" else {}
    named, letter = (f"({answer}) {choices[answer]}", f"({answer})") if answer in choices else (answer, answer)
    alone = named if named.endswith((".", "!", "?")) else f"{named}."
    forms: list[tuple[Style, str]] = [("result alone", alone)]
    if reasoning := _reasoning(text):
        key = choices.get(answer, answer).casefold()
        first = next((one for one in reasoning if key in one.casefold()), reasoning[0])
        statement = named if choices else f"The answer is {named}"
        forms.append(("result first", f"{statement}: {first}"))
        core = [one for one in reasoning if (key in one.casefold() if choices else "=" in one)]
        variants = (" ".join(one) for one in (reasoning, core) if one)
        forms += [("reasoning first", f"{variant} The answer is {letter}.") for variant in variants]
    return forms


def ordered_by_style(found: Iterable[ExemplarCandidate], seed: int) -> dict[Style, list[ExemplarCandidate]]:
    """Return the candidates by style, in the order of trials: neighbors differ in results, shorter ones are first."""
    styles: dict[Style, dict[str | None, list[ExemplarCandidate]]] = {}
    for one in found:
        styles.setdefault(one.style, {}).setdefault(one.result, []).append(one)
    return {style: _interleave(by_result, seed) for style, by_result in styles.items()}


def _interleave(by_result: Mapping[str | None, list[ExemplarCandidate]], seed: int) -> list[ExemplarCandidate]:
    groups = [group for _, group in sorted(by_result.items(), key=lambda item: item[0] or "")]
    rows = [sorted(group, key=lambda one: (one.tokens, one.question)) for group in groups]
    random.Random(seed).shuffle(rows)  # noqa: S311  not security-relevant
    turns: list[ExemplarCandidate] = []
    for index in range(max(map(len, rows), default=0)):
        # Within a turn the shorter first; the shuffle decides ties.
        turns += sorted((row[index] for row in rows if index < len(row)), key=lambda one: one.tokens)
    return turns


async def _verdict(text: str, question: Question, score: QuestionScorer) -> ScoredAnswer:
    try:
        return await score(text, question)
    except Unscored:
        return ScoredAnswer(0.0)


def _reasoning(text: str) -> list[str]:
    """Return the reasoning sentences of an answer: without markup, announcements and the statement of the result."""
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


def _question_key(text: str) -> str:
    """Return a key that ignores white space, case and final punctuation."""
    return " ".join(text.split()).casefold().rstrip(".?! ")


def exemplar_yaml(shown: Sequence[ExemplarCandidate], provenance: Sequence[str]) -> str:
    """Return the file's text: one comment line per line of `provenance`, then the exemplars with their sources."""
    texts = [(_text(one.exemplar.question), _text(one.exemplar.answer)) for one in shown]
    entries = CommentedSeq([CommentedMap(question=question, answer=answer) for question, answer in texts])
    for at, one in enumerate(shown):
        entries.yaml_set_comment_before_after_key(at, before=_origin(one))
    yaml = YAML()
    yaml.width = _WIDTH
    yaml.allow_unicode = True
    output = StringIO()
    yaml.dump(entries, output)
    return "".join(f"# {_plain(line)}\n" for line in provenance) + "\n" + output.getvalue()


def write_file(path: Path, text: str, *, overwrite: bool) -> None:
    """Write the file. Raises StartupError if it exists and may not be overwritten, or cannot be written."""
    try:
        with path.open("w" if overwrite else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise exists_error(path) from None
    except OSError as error:
        raise StartupError(f"{path} cannot be written: {error.strerror}. Name another file with --out.") from error


def exists_error(path: Path) -> StartupError:
    return StartupError(f"{path} exists. Name another file with --out, or overwrite it with --force.")


def _origin(one: ExemplarCandidate) -> str:
    if one.style == "given":
        return f"Number {_plain(one.question)}, unchanged."
    return f"Question {_plain(one.question)} of the data; its answer is {_ORIGIN[one.style]}, {one.tokens} tokens."


def _text(text: str) -> str:
    """Keep several lines as a YAML literal if possible: without trailing blanks and leading white space."""
    lines = text.split("\n")
    is_literal = all(line == line.rstrip() and line.isprintable() for line in lines)
    return LiteralScalarString(text) if len(lines) > 1 and is_literal and text[0].strip() and lines[-1] else text


def _plain(text: str) -> str:
    """Return the text as one line, so that it stays within a comment."""
    return " ".join("".join(mark if mark.isprintable() else " " for mark in text).split())
