"""What a run leaves in its folder, beside the texts of `generations.py`.

run.json        what was asked of whom (`Manifest`)
examples.jsonl  one line for each question and setting (`Example`): made of the texts, and made anew when asked to
stages.jsonl    one line for each stage of each sitting (`StageRecord`): what it took
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from gateway.accounting.receipt import LengthFacts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

MANIFEST, EXAMPLES, STAGES, GENERATIONS = "run.json", "examples.jsonl", "stages.jsonl", "generations.jsonl"


class ScoredAnswer(msgspec.Struct, frozen=True):
    """What a scorer says of an answer.

    Attributes:
        score: 1 where it is right, 0 where it is wrong; a judge may say something between.
        found: what it took for the answer's result; None: there was none.
    """

    score: float
    found: str | None = None

    @property
    def correct(self) -> bool:
        """Whether the better half of the scale."""
        return self.score >= 0.5


class Example(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One question under one setting.

    Attributes:
        setting: its name (`Setting.name`).
        question: its id in the data set.
        mode: what happened, in the receipt's words: guided, teacher_complete, student, teacher.
        text: the answer as a caller gets it.
        opening: the guidance as it was kept, and `opening_score` what it scores alone (paper, Table 2).
        *_tokens: as the engines counted, failed calls left out; `kept_tokens` of the teacher's are in the answer. The
            student's are with those of a probe.
        length: where m is chosen for each question, why so many were; and `chosen_tokens` how many, 0 for none.
        cost_usd: of the answer; `teacher_usd` of it the teacher's part.
        baseline_usd: the teacher alone, on this prompt and this answer.
        teacher_s, student_s: how long either wrote, beside others; total_s: as a caller saw it, in a live run.
        error: the label of what went wrong; then nothing was answered, and the score is 0.
    """

    setting: str
    question: str
    mode: str
    score: float
    found: str | None = None
    text: str
    finish: str | None = None
    unguided: str | None = None
    opening: str = ""
    opening_score: float = 0.0
    kept_tokens: int = 0
    teacher_input_tokens: int = 0
    teacher_output_tokens: int = 0
    student_input_tokens: int = 0
    student_output_tokens: int = 0
    cost_usd: Decimal
    teacher_usd: Decimal
    baseline_usd: Decimal
    teacher_s: float | None = None
    student_s: float | None = None
    total_s: float | None = None
    length: LengthFacts | None = None
    chosen_tokens: int | None = None
    error: str | None = None

    @property
    def correct(self) -> bool:
        """As `ScoredAnswer.correct`."""
        return ScoredAnswer(self.score).correct


class StageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of one sitting: `calls` that an engine was asked, beside texts that were there, and seconds it took."""

    stage: Literal["teacher", "student", "live"]
    setting: str
    calls: int
    seconds: float
    concurrency: int
    at: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of whom.

    Attributes:
        data: the data set's name, and `questions` how many of it.
        data_sha256: of the questions and their answers.
        settings: each as `Setting.as_dict`.
        prices: USD per 1M tokens, read and written, by role.
        live: whether it went through a whole gateway; else in the paper's two stages.
        student_look: what is known of the student (`Look.continuation`), so that answers can be made anew without it;
            None: it was not asked yet, or it went through a gateway.
    """

    data: str
    data_sha256: str
    questions: int
    teacher: str
    student: str
    settings: list[dict[str, Any]]
    prices: dict[str, tuple[Decimal, Decimal]]
    seed: int
    live: bool
    version: str
    created: int
    student_look: dict[str, Any] | None = None


def read_lines(path: Path, kind: type[Any]) -> Iterator[Any]:
    """The lines of a file that a run wrote. Raises msgspec.DecodeError on one that is none of it."""
    decoder = msgspec.json.Decoder(kind)
    with path.open("rb") as lines:
        for line in lines:
            yield decoder.decode(line)


def write_lines(path: Path, records: Iterable[Any]) -> None:
    """All of a file anew, at once: a reader sees the old one or the new."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in records))
    new.replace(path)
