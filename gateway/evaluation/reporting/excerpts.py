"""Questions on which two settings differ, with a few of the models' own words."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gateway.evaluation.record import Example
    from gateway.evaluation.reporting.comparison import SettingComparison
    from gateway.evaluation.reporting.report import ReportSection

MOST_WORDS = 20
MOST_CHARS = 160
"""Of a text without blanks, twenty words may be all of it."""
EACH = 3
"""So many questions each way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """One question that two settings answered differently: their results, and the end of what they wrote."""

    question: str
    found: str | None
    reference_found: str | None
    text: str
    reference_text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """A few questions that a guided setting alone got right, or wrong.

    against: the teacher or the student alone, and `way` who was right. `count`: of how many these are the first.
    """

    label: str
    against: Literal["student", "teacher"]
    way: Literal["won", "lost"]
    count: int
    shown: tuple[Flip, ...]


def flips(section: ReportSection) -> Iterator[Flips]:
    """Of the best guided setting of each group, or where none pays, the most accurate."""
    for group in section.groups:
        guided = group.guided
        if not guided:
            continue
        row = group.best_row or max(guided, key=lambda one: one.summary.accuracy)
        own = section.answers[row.summary.name]
        sides: tuple[tuple[Literal["student", "teacher"], SettingComparison | None], ...] = (
            ("student", row.student),
            ("teacher", row.teacher),
        )
        for against, found in sides:
            if found is None:
                continue
            other = section.answers[found.reference]
            ways: tuple[tuple[Literal["won", "lost"], tuple[str, ...]], ...] = (
                ("won", found.won),
                ("lost", found.lost),
            )
            for way, questions in ways:
                shown = tuple(_flip(question, own, other) for question in questions[:EACH])
                yield Flips(label=row.label, against=against, way=way, count=len(questions), shown=shown)


def excerpt(text: str) -> str:
    """The last words of a text, where its result is: at most `MOST_WORDS`, in one line, without what cannot be seen."""
    words = "".join(" " if unicodedata.category(char) in _UNSEEN else char for char in text).split()
    short = " ".join(words[-MOST_WORDS:])
    cut = len(words) > MOST_WORDS or len(short) > MOST_CHARS
    return ("\u2026 " if cut else "") + short[-MOST_CHARS:]


# Control characters, directions of writing, halves of characters: a page would be turned about by some of them.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def _flip(question: str, own: Mapping[str, Example], other: Mapping[str, Example]) -> Flip:
    here, there = own[question], other[question]
    return Flip(
        question=question,
        found=_result(here),
        reference_found=_result(there),
        text=excerpt(here.text),
        reference_text=excerpt(there.text),
    )


def _result(one: Example) -> str | None:
    if one.error is not None:
        return f"error {one.error}"
    return None if one.found is None else excerpt(one.found)
