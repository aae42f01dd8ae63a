"""The records of a run's folder, besides the texts of `generations.py`.

run.json        the models, data and settings (`Manifest`)
examples.jsonl  one line for each question and setting (`Example`), computed from the texts
stages.jsonl    one line for each stage of each sitting (`StageRecord`), with its duration
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
    """The result of a scorer.

    Attributes:
        score: 1 for a correct answer, 0 for a wrong one; a judge may return values in between.
        found: The extracted result of the answer; None if there is none.
    """

    score: float
    found: str | None = None

    @property
    def correct(self) -> bool:
        """Return whether the score is at least 0.5."""
        return self.score >= 0.5


class Example(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A question under a setting.

    Attributes:
        setting: Name of the setting (`Setting.name`).
        question: Id of the question in the data set.
        mode: What happened, as in the receipt: guided, teacher_complete, student, teacher.
        score, found: The result of the scorer.
        text: The answer as a caller receives it.
        finish: The finish reason.
        unguided: The receipt's reason for an unguided answer.
        guidance: The kept guidance; `guidance_score` is its score without the student (paper, Table 2). The fields are
        `opening` and `opening_score` on disk.
        *_tokens: Tokens as counted by the engines, without failed calls. `kept_tokens` are the teacher's tokens in the
            answer. The student's tokens include those of a probe.
        cost_usd: Cost of the answer; `teacher_usd` is the teacher's part.
        baseline_usd: Cost of the teacher alone for this prompt and this answer.
        teacher_s, student_s: Writing time of each model in seconds, with concurrent requests.
        total_s: Seconds as measured by the client of a live run.
        length: The reason for the chosen m, if a rule chose it; `chosen_tokens` is m, 0 for no guidance.
        error: Error label of a question without an answer; its score is 0.
    """

    setting: str
    question: str
    mode: str
    score: float
    found: str | None = None
    text: str
    finish: str | None = None
    unguided: str | None = None
    guidance: str = msgspec.field(default="", name="opening")
    guidance_score: float = msgspec.field(default=0.0, name="opening_score")
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
        """Return whether the answer is correct, as `ScoredAnswer.correct`."""
        return ScoredAnswer(self.score).correct


class StageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A stage of one session: its new engine calls (stored texts are not counted) and its duration in seconds."""

    stage: Literal["teacher", "student", "live"]
    setting: str
    calls: int
    seconds: float
    concurrency: int
    at: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The models, data and settings of a run.

    Attributes:
        data: Name of the data set; `questions` is the number of questions used.
        data_sha256: Hash of the questions and their answers.
        settings: Each setting as `Setting.as_dict`.
        prices: USD per 1M input and output tokens, by role.
        live: Whether the run used a whole gateway, else the paper's two stages.
        student_look: Capabilities of the student, for computing answers without it; None before its first call, and
            for a live run.
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
    """Yield the records of a file that a run wrote. Raises msgspec.DecodeError for an invalid line."""
    decoder = msgspec.json.Decoder(kind)
    with path.open("rb") as lines:
        for line in lines:
            yield decoder.decode(line)


def write_lines(path: Path, records: Iterable[Any]) -> None:
    """Replace a file atomically."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in records))
    new.replace(path)
