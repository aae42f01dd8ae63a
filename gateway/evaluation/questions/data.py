"""Data sets of an evaluation: two shipped ones by name, or a file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.config.yaml_messages import suggestion
from gateway.config.yaml_source import display_path, in_file_order, read
from gateway.errors import ConfigError, ConfigIssue, StartupError
from gateway.evaluation.questions.data_lines import InvalidLine, question_of
from gateway.evaluation.scoring import check_name, is_plug_in, plug_in
from gateway.policy.projection_shapes import ExemplarRule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gateway.evaluation.record import Question
    from gateway.policy.projections import Exemplar

NAMES = ("gsm8k", "csqa")
"""Values of `--data` other than files: shipped questions, the data sets of the paper (appendix A)."""
MAX_ISSUES_SHOWN = 10
_SHIPPED_FOLDER = Path(__file__).with_name("shipped")
_SHIPPED_EXEMPLARS = {"numeric": "arithmetic.yaml", "choice": "choices.yaml"}
"""Shipped exemplars by scorer."""
_NO_EXEMPLARS = "has no exemplars: it must be a list: one '- question: ...' with 'answer: ...' per entry"


class LoadedData(NamedTuple):
    """The loaded questions, exemplars of few-shot prompts and primed guidance, and the issues of skipped lines."""

    name: str
    questions: tuple[Question, ...]
    exemplars: tuple[Exemplar, ...]
    skipped: tuple[ConfigIssue, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionRange:
    """The first `limit` questions from `offset` on, or a random `sample` in order. Raises StartupError for both."""

    offset: int = 0
    limit: int | None = None
    sample: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
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
    scorer: str | None = None,
    exemplars_file: Path | None = None,
    skip_bad: bool = False,
    only_chats: bool = True,
) -> LoadedData:
    """Load the questions of `spec`: one of `NAMES`, or the path of a file with one JSON object per line.

    Args:
        scorer: Scorer of all questions, overriding the data: a name, or `package.module:function`.
        exemplars_file: YAML or JSON, a list of {question, answer}; None: the shipped exemplars.
        skip_bad: Skip invalid lines.
        only_chats: Whether no setting sends raw prompts: questions with turns are invalid lines otherwise.

    Raises:
        ConfigError: Invalid lines (the first of them with their numbers), or invalid exemplars.
        StartupError: Unknown data set, missing file, no question, or unknown scorer.
    """
    # Check the scorer before the run.
    if scorer is not None and is_plug_in(scorer):
        plug_in(scorer)
    elif scorer is not None and (issue := check_name(scorer)) is not None:
        raise StartupError(f"--scorer: {issue}")
    name, all_questions, skipped = _all(spec, scorer, skip_bad, only_chats=only_chats)
    part = part or QuestionRange()
    questions = part.of(all_questions)
    if not questions:
        raise StartupError(
            f"data set '{name}' has {len(all_questions)} questions: --offset {part.offset} skips all of them"
        )
    few_shot = exemplars(exemplars_file) if exemplars_file else shipped([one.scorer for one in all_questions])
    return LoadedData(name, questions, few_shot, skipped)


def _all(
    spec: str, scorer: str | None, skip_bad: bool, *, only_chats: bool
) -> tuple[str, list[Question], tuple[ConfigIssue, ...]]:
    path = _SHIPPED_FOLDER / f"{spec}.jsonl" if spec in NAMES else Path(spec)
    if not path.is_file():
        hint = suggestion(spec, NAMES)
        raise StartupError(f"--data {spec}: neither a file nor a data set ({', '.join(NAMES)}).{hint}")
    return path.stem, *_questions(_lines(path), display_path(path), scorer, skip_bad, only_chats=only_chats)


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
    lines: Iterable[tuple[int, Any, str]], file: str, scorer: str | None, skip_bad: bool, *, only_chats: bool = True
) -> tuple[list[Question], tuple[ConfigIssue, ...]]:
    found: dict[str, Question] = {}
    line_numbers: dict[str, int] = {}
    issues: list[ConfigIssue] = []
    for number, line, default_id in lines:
        try:
            if isinstance(line, InvalidLine):
                raise line
            question = question_of(line, default_id, scorer, only_chats=only_chats)
            if question.id in found:
                raise InvalidLine(
                    "id", f"'{question.id}' is a duplicate of line {line_numbers[question.id]}: ids must differ"
                )
        except InvalidLine as issue:
            issues.append(ConfigIssue(file, number, 0, issue.field, issue.message))
            continue
        found[question.id], line_numbers[question.id] = question, number
    if issues and not skip_bad:
        if (more := len(issues) - MAX_ISSUES_SHOWN) > 0:
            text = f"{more} more bad lines; --skip-bad skips and counts all {len(issues)}"
            issues[MAX_ISSUES_SHOWN:] = [ConfigIssue(file, 0, 0, "", text)]
        raise ConfigError(issues)
    if not found:
        bad = f" ({len(issues)} bad lines skipped)" if issues else ""
        raise StartupError(f"--data {file} has no question{bad}: write one JSON object per line")
    return list(found.values()), tuple(issues)


def exemplars(path: Path) -> tuple[Exemplar, ...]:
    """Read a YAML or JSON list of {question, answer}. Raises ConfigError with the line of every issue."""
    source, issues = read(path, of=list)
    if source is None:
        raise ConfigError(issues)
    checked = [part.check(ExemplarRule) for part in source.entries()]
    issues += [issue for _, found in checked for issue in found]
    if not issues and not checked:
        issues = [ConfigIssue(source.file, 0, 0, "", _NO_EXEMPLARS)]
    if issues:
        raise ConfigError(in_file_order(issues))
    return tuple(entry.exemplar() for entry, _ in checked if entry is not None)


def shipped(scorers: Sequence[str]) -> tuple[Exemplar, ...]:
    """Return the shipped exemplars for questions with these scorers: all numeric, or all choice; none for others."""
    kinds = set(scorers)
    files = [file for kind, file in _SHIPPED_EXEMPLARS.items() if kinds == {kind}]
    return exemplars(_SHIPPED_FOLDER / files[0]) if files else ()
