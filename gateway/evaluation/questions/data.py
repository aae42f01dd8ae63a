"""Data sets of an evaluation: by name, from a file, or generated from a seed."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.config.yaml_messages import suggestion
from gateway.config.yaml_source import display_path, in_file_order, read
from gateway.errors import ConfigError, ConfigIssue, StartupError
from gateway.evaluation.questions.data_lines import InvalidLine, question_of, with_choices
from gateway.evaluation.questions.problem_stories import ASIDES, KEPT, PEOPLE, STORIES, ProblemRandom, compared, worth
from gateway.evaluation.record import Question
from gateway.evaluation.scoring import check_name, is_plug_in, plug_in
from gateway.local import WeightsUnavailable, hub
from gateway.local.weights import cache_folder
from gateway.policy.projection_shapes import ExemplarRule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from gateway.evaluation.questions.problem_stories import Sum
    from gateway.policy.projections import Exemplar

MIN_STEPS, MAX_STEPS = 2, 8
"""The range of GSM8K (paper, section 4: Datasets)."""

_LETTERS = "abcde"
_ASIDE_IN = 3  # one problem in three has an irrelevant number
DEFAULT_COUNT = 200
MAX_ISSUES_SHOWN = 10
_SHIPPED = {"numeric": "arithmetic.yaml", "choice": "choices.yaml"}
"""Shipped exemplars by scorer."""
_NO_EXEMPLARS = "has no exemplars: it must be a list: one '- question: ...' with 'answer: ...' per entry"


class Problem(NamedTuple):
    """A problem with its story's name and its calculation (that of the correct person for a choice)."""

    question: Question
    kind: str
    sum: Sum


def problems(count: int, seed: int = 0) -> list[Problem]:
    """Return `count` different word problems with whole numbers as answers."""
    return _distinct("problem", _word_problem, count, seed)


def choice_problems(count: int, seed: int = 0) -> list[Problem]:
    """Return `count` different questions for the person among five with the most or the fewest items."""
    return _distinct("choice", _who, count, seed)


def _distinct(form: str, make: Callable[[ProblemRandom, str], Problem | None], count: int, seed: int) -> list[Problem]:
    found: dict[str, Problem] = {}
    for index in range(count):
        for attempt in itertools.count():
            problem = make(ProblemRandom(f"{form}:{seed}:{index}:{attempt}"), f"{form}-{seed}-{index}")
            if problem is not None and problem.question.text not in found:
                found[problem.question.text] = problem
                break
    return list(found.values())


def _word_problem(draw: ProblemRandom, name: str) -> Problem | None:
    # The minimum of two: many steps are rare, as in GSM8K.
    steps = min(draw.between(MIN_STEPS, MAX_STEPS), draw.between(MIN_STEPS, MAX_STEPS))
    kind = draw.pick(list(STORIES))
    story = STORIES[kind](draw, steps)
    if story.steps != steps:
        return None  # two of its calculations are equal
    *statements, question = story.sentences
    if not draw.below(_ASIDE_IN):
        aside = draw.pick(ASIDES).format(name=draw.pick(PEOPLE), number=draw.between(2, 30))
        statements.insert(draw.between(1, len(statements)), aside)
    text = " ".join([*statements, question])
    return Problem(Question(name, text, str(story.value), "numeric", steps=steps), kind, story.sum)


def _who(draw: ProblemRandom, name: str) -> Problem | None:
    names, thing = draw.some(PEOPLE, len(_LETTERS)), draw.pick(KEPT)
    amounts: list[Sum] = [draw.between(20, 60)]
    statements = [f"{names[0]} has {thing.count(worth(amounts[0]))}."]
    for before, other in itertools.pairwise(names):
        amount, sentence = compared(draw, amounts[-1], other, before, thing.many)
        amounts.append(amount)
        statements.append(sentence)
    values = [worth(amount) for amount in amounts]
    superlative, extreme = draw.pick((("most", max(values)), ("fewest", min(values))))
    if values.count(extreme) > 1:
        return None
    correct = names[values.index(extreme)]
    choices = dict(zip(_LETTERS, draw.some(names, len(names)), strict=True))
    letter = next(letter for letter, name_of_choice in choices.items() if name_of_choice == correct)
    text = with_choices(f"{' '.join(statements)} Who has the {superlative} {thing.many}?", choices)
    question = Question(name, text, letter, "choice", tuple(choices.items()), steps=len(names) - 1)
    return Problem(question, "who", amounts[names.index(correct)])


class HubSet(NamedTuple):
    """A split of a data set: its repository on the hub, and the file in it."""

    repo: str
    file: str
    split: str


HUB_SETS: Mapping[str, HubSet] = {
    "gsm8k": HubSet("openai/gsm8k", "main/test-00000-of-00001.parquet", "test"),
    "csqa": HubSet("tau/commonsense_qa", "data/validation-00000-of-00001.parquet", "validation"),
}
"""Data sets by name (paper, appendix A). CSQA's test split has no answers, so its validation split is used."""

GENERATED, GENERATED_CHOICES = "generated", "generated-choices"
NAMES = (*HUB_SETS, GENERATED, GENERATED_CHOICES)
"""Values of `--data` other than files."""


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
    count: int = DEFAULT_COUNT,
    seed: int = 0,
    scorer: str | None = None,
    exemplars_file: Path | None = None,
    skip_bad: bool = False,
    only_chats: bool = True,
) -> LoadedData:
    """Load the questions of `spec`: one of `NAMES`, or the path of a file with one JSON object per line.

    Args:
        count, seed: Number of generated problems, and their seed.
        scorer: Scorer of all questions, overriding the data: a name, or `package.module:function`.
        exemplars_file: YAML or JSON, a list of {question, answer}; None: the shipped exemplars.
        skip_bad: Skip invalid lines.
        only_chats: Whether no setting sends raw prompts: questions with turns are invalid lines otherwise.

    Raises:
        ConfigError: Invalid lines (the first of them with their numbers), or invalid exemplars.
        StartupError: Unknown data set, missing file, no question, unknown scorer, or an unreachable hub.
    """
    # Check the scorer before the run.
    if scorer is not None and is_plug_in(scorer):
        plug_in(scorer)
    elif scorer is not None and (issue := check_name(scorer)) is not None:
        raise StartupError(f"--scorer: {issue}")
    name, all_questions, skipped = _all(spec, count, seed, scorer, skip_bad, only_chats=only_chats)
    part = part or QuestionRange()
    questions = part.of(all_questions)
    if not questions:
        raise StartupError(
            f"data set '{name}' has {len(all_questions)} questions: --offset {part.offset} skips all of them"
        )
    few_shot = exemplars(exemplars_file) if exemplars_file else shipped([one.scorer for one in all_questions])
    return LoadedData(name, questions, few_shot, skipped)


def _all(
    spec: str, count: int, seed: int, scorer: str | None, skip_bad: bool, *, only_chats: bool
) -> tuple[str, list[Question], tuple[ConfigIssue, ...]]:
    if spec in {GENERATED, GENERATED_CHOICES}:
        made = problems(count, seed) if spec == GENERATED else choice_problems(count, seed)
        return spec, [replace(one.question, scorer=scorer or one.question.scorer) for one in made], ()
    if spec in HUB_SETS:
        rows = enumerate(_hub_rows(spec))
        parsed = ((number + 1, row, f"{spec}-{HUB_SETS[spec].split}-{number}") for number, row in rows)
        return spec, *_questions(parsed, spec, scorer, skip_bad)
    path = Path(spec)
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
    files = [file for kind, file in _SHIPPED.items() if kinds == {kind}]
    return exemplars(Path(__file__).with_name("shipped") / files[0]) if files else ()


def _hub_rows(name: str) -> list[dict[str, Any]]:
    """Return the rows of a data set in order. Its file is downloaded once, next to the cache of weights."""
    hub_set = HUB_SETS[name]
    staging = cache_folder().parent / "datasets" / name
    path = staging / hub_set.file
    if not path.exists():
        try:
            path = hub.download(hub_set.repo, hub_set.file, staging, report=lambda _: None, kind="dataset")
        except WeightsUnavailable as error:
            raise StartupError(
                f"data set '{name}': {error.message}. Name a copy with --data FILE (JSON lines), "
                "or use --data generated, which needs no download"
            ) from error
    try:
        # Imported here, because it belongs to an extra and takes long.
        import pyarrow as arrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError as error:
        raise StartupError(
            f"data set '{name}': reading it needs {error.name}: pip install 'gkt-gateway[eval]'"
        ) from error
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise StartupError(f"data set '{name}': {path} is not Parquet: delete it to download it again") from error
    return rows
