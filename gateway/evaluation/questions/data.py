"""The questions of an evaluation: a data set by name, a file, or problems made from a seed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from gateway.config.yaml_messages import nearest
from gateway.config.yaml_source import shown
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
"""What `--data` takes beside a file."""

DEFAULT_COUNT = 200
MISTAKES_SHOWN = 10


@dataclass(frozen=True, slots=True)
class LoadedData:
    """Questions, ready to be asked.

    Attributes:
        name: the data set's: as asked for, or the file's without its ending.
        exemplars: for few-shot prompts and primed guidance: of the file that was named, or our own.
        sha256: of the questions, their answers and how they are scored, in order; of nothing else.
        skipped: the lines that were passed over, with what is wrong with each.
    """

    name: str
    questions: tuple[Question, ...]
    exemplars: tuple[Exemplar, ...]
    sha256: str
    skipped: tuple[ConfigIssue, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionRange:
    """Which of a data set's questions: from `offset` on the first `limit`, or `sample` drawn from all, in order.

    Raises StartupError where a number is too small, or both are asked for.
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
            raise StartupError("--limit and --sample exclude each other: take one of them")

    def of(self, questions: Sequence[Question]) -> tuple[Question, ...]:
        rest = questions[self.offset :]
        if self.sample is None:
            return tuple(rest[: self.limit])
        # By hash and not by `random`: a question is drawn or not whatever else the file holds or Python does.
        ranked = sorted(rest, key=lambda one: hashlib.sha256(f"{self.seed}:{one.id}".encode()).digest())
        drawn = {one.id for one in ranked[: self.sample]}
        return tuple(one for one in rest if one.id in drawn)


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
    """The questions that `spec` names: one of `NAMES`, or the path of a file with a JSON object per line.

    Args:
        part: which of them; all unless given.
        count, seed: how many problems are made, and from which seed.
        scorer: scores every question, whatever the data say: a name, or `package.module:function`.
        exemplars_file: YAML or JSON, a list of {question, answer}.
        skip_bad: pass over lines that are no questions, and count them.
        endpoint, folder: as `hub_data.rows`.

    Raises:
        ConfigError: lines that are no questions (the first of them, each with its number), or an exemplar that is none.
        StartupError: no such data set or file, no question in it, an unknown scorer, a hub that cannot be reached.
    """
    if scorer is not None:
        _check_scorer(scorer)
    if count < 1:
        raise StartupError("--count must be 1 or more")
    name, every, skipped = _all(spec, count, seed, scorer, skip_bad, endpoint, folder)
    part = part or QuestionRange()
    questions = part.of(every)
    if not questions:
        raise StartupError(f"data set '{name}' has {len(every)} questions: --offset {part.offset} skips them all")
    shown_before = exemplars(exemplars_file) if exemplars_file else shipped([one.scorer for one in every])
    return LoadedData(name, questions, shown_before, _sha256(questions), skipped)


def _check_scorer(name: str) -> None:
    """Before anything is asked. Raises StartupError."""
    if is_plug_in(name):
        plug_in(name)
    elif (wrong := check_name(name)) is not None:
        raise StartupError(f"--scorer: {wrong}")


def _all(
    spec: str, count: int, seed: int, scorer: str | None, skip_bad: bool, endpoint: str | None, folder: Path | None
) -> tuple[str, list[Question], tuple[ConfigIssue, ...]]:
    if spec in {GENERATED, GENERATED_CHOICES}:
        made = problems(count, seed) if spec == GENERATED else choice_problems(count, seed)
        return spec, [replace(one.question, scorer=scorer or one.question.scorer) for one in made], ()
    if spec in hub_data.HUB_SETS:
        split = hub_data.HUB_SETS[spec].split
        rows = enumerate(hub_data.rows(spec, endpoint=endpoint, folder=folder))
        parsed = ((at + 1, row, f"{spec}-{split}-{at}") for at, row in rows)
        return spec, *_questions(parsed, spec, scorer, skip_bad)
    path = Path(spec)
    if not path.is_file():
        close = nearest(spec, NAMES)
        hint = f" Did you mean '{close}'?" if close else ""
        raise StartupError(f"--data {spec}: no such file, and no data set's name ({', '.join(NAMES)}).{hint}")
    return path.stem, *_questions(_lines(path), shown(path), scorer, skip_bad)


def _lines(path: Path) -> Iterator[tuple[int, Any, str]]:
    """The number of each line that is not blank, what its JSON says or a WrongLine, and an id for it."""
    try:
        raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise StartupError(f"--data {shown(path)} cannot be read: {(error.strerror or str(error)).lower()}") from error
    if raw.lstrip().startswith(b"["):
        raise StartupError(f"--data {shown(path)} is one JSON list: write one object per line, without brackets around")
    for at, line in enumerate(raw.split(b"\n"), start=1):
        if line.strip():
            yield at, _parsed(line), f"{path.stem}-{at}"


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
    raise ValueError(f"{name} is not a number of JSON")


def _questions(
    lines: Iterable[tuple[int, Any, str]], file: str, scorer: str | None, skip_bad: bool
) -> tuple[list[Question], tuple[ConfigIssue, ...]]:
    found: dict[str, Question] = {}
    places: dict[str, int] = {}
    mistakes: list[ConfigIssue] = []
    for at, line, default_id in lines:
        try:
            if isinstance(line, InvalidLine):
                raise line
            question = question_of(line, default_id, scorer)
            if question.id in found:
                raise InvalidLine("id", f"'{question.id}' again, first on line {places[question.id]}: ids must differ")
        except InvalidLine as wrong:
            mistakes.append(ConfigIssue(file, at, 0, wrong.field, wrong.message))
            continue
        found[question.id], places[question.id] = question, at
    if mistakes and not skip_bad:
        raise ConfigError(_first(mistakes, file))
    if not found:
        bad = f" ({len(mistakes)} bad ones were passed over)" if mistakes else ""
        raise StartupError(f"--data {file} holds no question{bad}: write one JSON object per line")
    return list(found.values()), tuple(mistakes)


def _first(mistakes: list[ConfigIssue], file: str) -> list[ConfigIssue]:
    more = len(mistakes) - MISTAKES_SHOWN
    if more <= 0:
        return mistakes
    said = f"{more} more bad lines; --skip-bad passes over all {len(mistakes)} and counts them"
    return [*mistakes[:MISTAKES_SHOWN], ConfigIssue(file, 0, 0, "", said)]


def _sha256(questions: Iterable[Question]) -> str:
    hashed = hashlib.sha256()
    for one in questions:
        hashed.update(orjson.dumps((one.id, one.text, one.answer, one.scorer, one.options)))
    return hashed.hexdigest()
