"""Questions, and the records of a run's folder besides the texts of `generations.py`.

run.json        the models, data and settings (`Manifest`)
examples.jsonl  one line for each question and setting (`Example`), computed from the texts
stages.jsonl    one line for each stage of each session (`StageRecord`), with its duration
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec
import orjson

from gateway.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

_T = TypeVar("_T", bound=msgspec.Struct)
_TRUNCATED = "Input data was truncated"
MANIFEST, EXAMPLES, STAGES, GENERATIONS = "run.json", "examples.jsonl", "stages.jsonl", "generations.jsonl"


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a data set.

    Attributes:
        text: The text for the model, including choices. With `messages`: their texts, for a judge.
        answer: The correct answer as its scorer reads it: a number, a choice's letter, a text.
        scorer: Name of the scorer (`scoring.SCORERS`).
        options: Parameters of the scorer: the choices by letter, a pattern.
        messages: Role and text of a chat's messages, the last one of the user; empty: the chat is `text` alone.
    """

    id: str
    text: str
    answer: str
    scorer: str
    options: tuple[tuple[str, str], ...] = ()
    messages: tuple[tuple[str, str], ...] = ()


class ScoredAnswer(msgspec.Struct, frozen=True):
    """The result of a scorer: 1 for a correct answer, 0 for a wrong one; a judge may return values in between.

    `found` is the extracted result of the answer; None if there is none.
    """

    score: float
    found: str | None = None

    @property
    def correct(self) -> bool:
        """Return whether the score is at least 0.5."""
        return self.score >= 0.5


class Example(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A question (its id) under a setting (its name).

    Attributes:
        mode: What happened, as in the receipt: guided, teacher_complete, student, teacher.
        score, found: The result of the scorer.
        text: The answer as a caller receives it; `finish` is its finish reason.
        unguided: The receipt's reason for an unguided answer.
        guidance: The kept guidance; `guidance_score` is its score without the student (paper, Table 2). The fields are
            `opening` and `opening_score` on disk.
        guidance_logprob: Mean log-probability of the guidance tokens under the student; None if it was not requested.
        answer_logprobs: Mean and lowest log-probability of the tokens that the student wrote; None likewise.
        *_tokens: Tokens as counted by the engines, without failed calls. `kept_tokens` are the teacher's tokens in the
            answer. The student's tokens include those of a warm-up.
        *_cached_tokens: The part of the input tokens that the engine read from its prompt cache; None: not reported.
        cost_usd: Cost of the answer; `teacher_usd` is the teacher's part.
        baseline_usd: Cost of the teacher alone for this prompt and this answer.
        teacher_s, student_s: Writing time of each model in seconds, with concurrent requests.
        total_s: Seconds as measured by the client of a live run.
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
    guidance_logprob: float | None = None
    answer_logprobs: tuple[float, float] | None = None
    kept_tokens: int = 0
    teacher_input_tokens: int = 0
    teacher_output_tokens: int = 0
    student_input_tokens: int = 0
    student_output_tokens: int = 0
    teacher_cached_tokens: int | None = None
    student_cached_tokens: int | None = None
    cost_usd: Decimal
    teacher_usd: Decimal
    baseline_usd: Decimal
    teacher_s: float | None = None
    student_s: float | None = None
    total_s: float | None = None
    error: str | None = None

    @property
    def correct(self) -> bool:
        return ScoredAnswer(self.score).correct


class StageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A stage of one session: its new engine calls (stored texts are not counted) and its duration in seconds."""

    stage: Literal["teacher", "student", "live"]
    setting: str
    calls: int
    seconds: float
    concurrency: int
    at: int


Metric = Literal["accuracy", "preference"]
"""Meaning of the scores: correct answers; or how much a judge prefers answers to the teacher's, where 0.5 is a tie."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The models, data and settings (as `Setting.as_dict`) of a run, and the number of questions used.

    Attributes:
        data_sha256: Hash of the questions and their answers.
        prices: USD per 1M input and output tokens, by role.
        live: Whether the run used a whole gateway, else the paper's two stages.
        metric: Meaning of the scores.
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
    metric: Metric = "accuracy"


def write_lines(path: Path, records: Iterable[Any]) -> None:
    replace_file(path, b"".join(msgspec.json.encode(record) + b"\n" for record in records))


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file atomically."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    new.replace(path)


def stored_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the valid lines of a file, if it exists. A kill may have truncated the last one: end it with a newline."""
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")
    for line in content.splitlines():
        with suppress(orjson.JSONDecodeError):
            yield orjson.loads(line)


@dataclass(frozen=True)
class RunRecords:
    """The records of a run's folder, with remarks on missing ones. An unfinished run has fewer examples."""

    path: Path
    manifest: Manifest
    examples: tuple[Example, ...]
    stages: tuple[StageRecord, ...]
    remarks: tuple[str, ...]

    @cached_property
    def by_setting(self) -> Mapping[str, Mapping[str, Example]]:
        """Return the examples by setting name and question id, in file order."""
        found: dict[str, dict[str, Example]] = {}
        for one in self.examples:
            found.setdefault(one.setting, {})[one.question] = one
        return found

    def require_accuracy(self) -> None:
        """Raise StartupError if the scores do not say which answers are correct."""
        if self.manifest.metric == "preference":
            raise StartupError(
                f"{self.path}: its scores are a judge's preferences, and this command needs correct answers. "
                "`gkt-gateway eval report` shows the preferences. For correct answers, give the questions answers, or "
                "run them with --scorer judge."
            )


class _SettingFields(msgspec.Struct):
    name: str
    mode: Literal["teacher", "student", "guided"]
    form: Literal["chat", "completion"]
    shots: int
    max_tokens: int
    temperature: float


class _GuidedFields(_SettingFields):
    tokens: int
    projection: str
    placement: str
    boundary: str


def read_run(path: Path) -> RunRecords:
    """Read a run's folder. Raises StartupError with file and line if a file is missing or invalid."""
    remarks: list[str] = []
    stages: tuple[StageRecord, ...] = ()
    try:
        manifest = _manifest(path / MANIFEST)
        examples = _examples(path / EXAMPLES, manifest, remarks)
        if (path / STAGES).is_file():
            stages = tuple(one for _, one in _lines(path / STAGES, StageRecord, remarks))
        else:
            remarks.append(f"{STAGES} is missing, so the durations of the stages are unknown.")
    except OSError as error:
        raise StartupError(f"{error.filename or path}: cannot be read: {(error.strerror or 'error').lower()}") from None
    return RunRecords(path, manifest, examples, stages, tuple(remarks))


def _manifest(path: Path) -> Manifest:
    if not path.is_file():
        raise StartupError(f"{path}: no such file: name a folder that `gkt-gateway eval run` wrote")
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        for setting in manifest.settings:
            msgspec.convert(setting, _GuidedFields if setting.get("mode") == "guided" else _SettingFields)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StartupError(f"{path}: not written by `gkt-gateway eval run`: {error}") from None
    if not manifest.settings:
        raise StartupError(f"{path}: settings is empty")
    return manifest


def _examples(path: Path, manifest: Manifest, remarks: list[str]) -> tuple[Example, ...]:
    if not path.is_file():
        raise StartupError(f"{path}: no such file: let `gkt-gateway eval run` finish in this folder first")
    settings = dict.fromkeys(setting["name"] for setting in manifest.settings)
    found: dict[tuple[str, str], Example] = {}
    for number, one in _lines(path, Example, remarks):
        if one.setting not in settings:
            raise StartupError(f"{path}, line {number}: setting {one.setting!r} is not in {MANIFEST}")
        if not 0 <= one.score <= 1:
            raise StartupError(f"{path}, line {number}: score must be between 0 and 1, not {one.score}")
        if not all(amount.is_finite() for amount in (one.cost_usd, one.teacher_usd, one.baseline_usd)):
            raise StartupError(f"{path}, line {number}: money must be a finite number")
        # A live run appends a line for a repeated question: the last line counts.
        found[one.setting, one.question] = one
    if not found:
        raise StartupError(f"{path}: no examples: let `gkt-gateway eval run` finish in this folder first")
    answers = Counter(setting for setting, _ in found)
    remarks += [
        f"{name}: only {answers[name]} of {manifest.questions} questions have answers."
        for name in settings
        if answers[name] < manifest.questions
    ]
    return tuple(found.values())


def _lines(path: Path, kind: type[_T], remarks: list[str]) -> Iterator[tuple[int, _T]]:
    """Yield each line with its number. A line may be incomplete if a run was killed and resumed."""
    decoder = msgspec.json.Decoder(kind)
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if str(error) != _TRUNCATED:
                raise StartupError(f"{path}, line {number}: not written by `gkt-gateway eval run`: {error}") from None
            remarks.append(f"{path.name}, line {number}: skipped, because a kill truncated it.")
