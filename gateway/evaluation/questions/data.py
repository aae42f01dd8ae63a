"""Data sets of an evaluation: by name, from a file, or generated from a seed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from gateway.config.yaml_messages import nearest
from gateway.config.yaml_source import display_path
from gateway.errors import ConfigError, ConfigIssue, StartupError
from gateway.evaluation.questions import hub_data
from gateway.evaluation.questions.data_lines import InvalidLine, question_of
from gateway.evaluation.questions.exemplars_file import exemplars, shipped
from gateway.evaluation.questions.problems import choice_problems, problems
from gateway.evaluation.scoring import check_name, is_plug_in, plug_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gateway.evaluation.question import Question
    from gateway.policy.projections import Exemplar

GENERATED, GENERATED_CHOICES = "generated", "generated-choices"
NAMES = (*hub_data.HUB_SETS, GENERATED, GENERATED_CHOICES)
"""Values of `--data` other than files."""

DEFAULT_COUNT = 200
MAX_ISSUES_SHOWN = 10


@dataclass(frozen=True, slots=True)
class LoadedData:
    """The loaded questions.

    Attributes:
        name: Name of the data set, or of the file without its suffix.
        questions: The questions.
        exemplars: Exemplars of few-shot prompts and primed guidance, from the given file or shipped.
        sha256: Hash of the questions, their answers and scorers, in order.
        skipped: The skipped lines with their errors.
    """

    name: str
    questions: tuple[Question, ...]
    exemplars: tuple[Exemplar, ...]
    sha256: str
    skipped: tuple[ConfigIssue, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionRange:
    """Selection of questions: the first `limit` from `offset` on, or a random `sample` of these, in order.

    Raises StartupError for a number that is too small, or if both are given.
    """

    offset: int = 0
    limit: int | None = None
    sample: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.offset < 0:
            raise StartupError("--offset must be 0 or more")
        for name in ("limit", "sample"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise StartupError(f"--{name} must be 1 or more")
        if self.limit is not None and self.sample is not None:
            raise StartupError("--limit and --sample exclude each other: use one of them")

    def of(self, questions: Sequence[Question]) -> tuple[Question, ...]:
        candidates = questions[self.offset :]
        if self.sample is None:
            return tuple(candidates[: self.limit])
        # By hash, not by `random`: the selection of a question does not depend on other lines or on the Python version.
        ranked = sorted(candidates, key=lambda one: hashlib.sha256(f"{self.seed}:{one.id}".encode()).digest())
        drawn = {one.id for one in ranked[: self.sample]}
        return tuple(one for one in candidates if one.id in drawn)


def load(
    spec: str,
    part: QuestionRange | None = None,
    *,
    count: int = DEFAULT_COUNT,
    seed: int = 0,
    scorer: str | None = None,
    exemplars_file: Path | None = None,
    skip_bad: bool = False,
    endpoint: str | None = None,
    folder: Path | None = None,
) -> LoadedData:
    """Load the questions of `spec`: one of `NAMES`, or the path of a file with one JSON object per line.

    Args:
        spec: The name or path.
        part: Selection of questions; None: all.
        count, seed: Number of generated problems, and their seed.
        scorer: Scorer of all questions, overriding the data: a name, or `package.module:function`.
        exemplars_file: YAML or JSON, a list of {question, answer}.
        skip_bad: Skip and count invalid lines.
        endpoint, folder: As in `hub_data.rows`.

    Raises:
        ConfigError: Invalid lines (the first of them with their numbers), or invalid exemplars.
        StartupError: Unknown data set, missing file, no question, unknown scorer, or an unreachable hub.
    """
    if scorer is not None:
        _check_scorer(scorer)
    if count < 1:
        raise StartupError("--count must be 1 or more")
    name, all_questions, skipped = _all(spec, count, seed, scorer, skip_bad, endpoint, folder)
    part = part or QuestionRange()
    questions = part.of(all_questions)
    if not questions:
        raise StartupError(
            f"data set '{name}' has {len(all_questions)} questions: --offset {part.offset} skips all of them"
        )
    few_shot = exemplars(exemplars_file) if exemplars_file else shipped([one.scorer for one in all_questions])
    return LoadedData(name, questions, few_shot, _sha256(questions), skipped)


def _check_scorer(name: str) -> None:
    """Check the scorer before the run. Raises StartupError."""
    if is_plug_in(name):
        plug_in(name)
    elif (issue := check_name(name)) is not None:
        raise StartupError(f"--scorer: {issue}")


def _all(
    spec: str, count: int, seed: int, scorer: str | None, skip_bad: bool, endpoint: str | None, folder: Path | None
) -> tuple[str, list[Question], tuple[ConfigIssue, ...]]:
    if spec in {GENERATED, GENERATED_CHOICES}:
        made = problems(count, seed) if spec == GENERATED else choice_problems(count, seed)
        return spec, [replace(one.question, scorer=scorer or one.question.scorer) for one in made], ()
    if spec in hub_data.HUB_SETS:
        split = hub_data.HUB_SETS[spec].split
        rows = enumerate(hub_data.rows(spec, endpoint=endpoint, folder=folder))
        parsed = ((number + 1, row, f"{spec}-{split}-{number}") for number, row in rows)
        return spec, *_questions(parsed, spec, scorer, skip_bad)
    path = Path(spec)
    if not path.is_file():
        close = nearest(spec, NAMES)
        hint = f" Did you mean '{close}'?" if close else ""
        raise StartupError(f"--data {spec}: neither a file nor a data set ({', '.join(NAMES)}).{hint}")
    return path.stem, *_questions(_lines(path), display_path(path), scorer, skip_bad)


def _lines(path: Path) -> Iterator[tuple[int, Any, str]]:
    """Yield the number of each nonblank line, its parsed JSON or an InvalidLine, and a default id."""
    try:
        raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise StartupError(
            f"--data {display_path(path)} cannot be read: {(error.strerror or str(error)).lower()}"
        ) from error
    if raw.lstrip().startswith(b"["):
        raise StartupError(f"--data {display_path(path)} is a JSON list: write one object per line, without brackets")
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if line.strip():
            yield number, _parsed(line), f"{path.stem}-{number}"


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line, parse_float=Decimal, parse_constant=_no_number)
    except UnicodeDecodeError:
        return InvalidLine("", "not UTF-8 text: save the file as UTF-8")
    except json.JSONDecodeError as error:
        return InvalidLine("", f"not valid JSON: {error.msg[0].lower()}{error.msg[1:]}, at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return InvalidLine("", f"not valid JSON: {error}")


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _questions(
    lines: Iterable[tuple[int, Any, str]], file: str, scorer: str | None, skip_bad: bool
) -> tuple[list[Question], tuple[ConfigIssue, ...]]:
    found: dict[str, Question] = {}
    line_numbers: dict[str, int] = {}
    issues: list[ConfigIssue] = []
    for number, line, default_id in lines:
        try:
            if isinstance(line, InvalidLine):
                raise line
            question = question_of(line, default_id, scorer)
            if question.id in found:
                raise InvalidLine(
                    "id", f"'{question.id}' is a duplicate of line {line_numbers[question.id]}: ids must differ"
                )
        except InvalidLine as issue:
            issues.append(ConfigIssue(file, number, 0, issue.field, issue.message))
            continue
        found[question.id], line_numbers[question.id] = question, number
    if issues and not skip_bad:
        raise ConfigError(_first(issues, file))
    if not found:
        bad = f" ({len(issues)} bad lines skipped)" if issues else ""
        raise StartupError(f"--data {file} has no question{bad}: write one JSON object per line")
    return list(found.values()), tuple(issues)


def _first(issues: list[ConfigIssue], file: str) -> list[ConfigIssue]:
    more = len(issues) - MAX_ISSUES_SHOWN
    if more <= 0:
        return issues
    text = f"{more} more bad lines; --skip-bad skips and counts all {len(issues)}"
    return [*issues[:MAX_ISSUES_SHOWN], ConfigIssue(file, 0, 0, "", text)]


def _sha256(questions: Iterable[Question]) -> str:
    hashed = hashlib.sha256()
    for one in questions:
        hashed.update(orjson.dumps((one.id, one.text, one.answer, one.scorer, one.options)))
    return hashed.hexdigest()
