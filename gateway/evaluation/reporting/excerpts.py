"""Questions on which two settings differ, with the ends of their answers."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gateway.evaluation.record import Example
    from gateway.evaluation.reporting.comparison import SettingComparison
    from gateway.evaluation.reporting.report import ReportSection

MAX_WORDS = 20
MAX_CHARS = 160
"""Limit for texts without spaces, in which 20 words may be the whole text."""
MAX_QUESTIONS = 3
"""Maximum questions per direction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """A question with different results of two settings, and the ends of their answers."""

    question: str
    found: str | None
    reference_found: str | None
    text: str
    reference_text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """Questions that only a guided setting, or only its reference, answers correctly.

    Attributes:
        label: Label of the guided setting.
        against: The teacher or the student alone.
        way: Whether the guided setting is right (`won`) or its reference (`lost`).
        count: Number of these questions; `shown` are the first ones.
    """

    label: str
    against: Literal["student", "teacher"]
    way: Literal["won", "lost"]
    count: int
    shown: tuple[Flip, ...]


def flips(section: ReportSection) -> Iterator[Flips]:
    """Yield the flips of the best guided setting of each group; if none pays, of the most accurate one."""
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
                shown = tuple(_flip(question, own, other) for question in questions[:MAX_QUESTIONS])
                yield Flips(label=row.label, against=against, way=way, count=len(questions), shown=shown)


def excerpt(text: str) -> str:
    """Return the last words of a text, which hold its result: at most `MAX_WORDS`, in one line and printable."""
    words = "".join(" " if unicodedata.category(char) in _INVISIBLE else char for char in text).split()
    short = " ".join(words[-MAX_WORDS:])
    cut = len(words) > MAX_WORDS or len(short) > MAX_CHARS
    return ("\u2026 " if cut else "") + short[-MAX_CHARS:]


# Control characters, writing directions, surrogates: some of them would corrupt a page.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def _flip(question: str, own: Mapping[str, Example], other: Mapping[str, Example]) -> Flip:
    answer, reference_answer = own[question], other[question]
    return Flip(
        question=question,
        found=_result(answer),
        reference_found=_result(reference_answer),
        text=excerpt(answer.text),
        reference_text=excerpt(reference_answer.text),
    )


def _result(one: Example) -> str | None:
    if one.error is not None:
        return f"error {one.error}"
    return None if one.found is None else excerpt(one.found)
