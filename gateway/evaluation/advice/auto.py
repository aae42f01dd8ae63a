"""The results of chosen guidance lengths, computed from records at fixed lengths without calling a model.

A family is one setting at several lengths of guidance, with the student alone as length 0. Every length was tried for
each question, so any rule that chooses among them can be evaluated afterwards.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.errors import StartupError
from gateway.evaluation.setting import Setting
from gateway.evaluation.summary import request_key
from gateway.policy.length import choose_length
from gateway.policy.question_features import features_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gateway.evaluation.question import Question
    from gateway.evaluation.record import Example, Manifest
    from gateway.policy.length_model import LengthModel
    from gateway.policy.length_rules import AutoRule
    from gateway.protocol.requests import CompletionRequest

# Keys of a guided setting that differ in its family, or do not belong to its description.
_LENGTH_KEYS = ("name", "mode", "tokens", "shown", "policies")
_MIN_LENGTHS = 3


@dataclass(frozen=True, slots=True)
class LengthOutcome:
    """Result of one length for one question. `score`: 1 if correct, else 0; `teacher_tokens`: the teacher's output."""

    score: float
    usd: float
    teacher_tokens: int


@dataclass(frozen=True, slots=True)
class LengthFamily:
    """A setting at several lengths.

    Attributes:
        setting: The shared keys of `Setting.as_dict`.
        lengths: In tokens, ascending; the first is 0, the student alone.
        questions: Ids of the questions.
        requests: The caller's request of each question.
        cells: The results of each question, in the order of `lengths`.
    """

    setting: dict[str, Any]
    lengths: tuple[int, ...]
    questions: tuple[str, ...]
    requests: tuple[CompletionRequest, ...]
    cells: tuple[tuple[LengthOutcome, ...], ...]

    @property
    def name(self) -> str:
        """Return a readable name."""
        return ", ".join(f"{name} {value}" for name, value in self.setting.items() if value not in (None, 0))

    @property
    def max_tokens(self) -> int | None:
        """Return the token limit of an answer."""
        limit: int | None = self.setting.get("max_tokens")
        return limit

    def nearest(self, tokens: int) -> int:
        """Return the index of the longest length that is not longer than `tokens`, else of the shortest guided one."""
        if tokens <= 0:
            return 0
        return max((index for index, one in enumerate(self.lengths) if one <= tokens and index), default=1)


@dataclass(frozen=True, slots=True)
class LengthResult:
    """Mean results of a choice of lengths.

    Attributes:
        right: Share of correct answers.
        usd, teacher_tokens: Mean cost and mean teacher output of an answer.
        lengths: Number of questions by chosen length.
    """

    right: float
    usd: float
    teacher_tokens: float
    lengths: Mapping[int, int]


def families(manifest: Manifest, examples: Iterable[Example], questions: Sequence[Question]) -> list[LengthFamily]:
    """Return the families of a run, those with the most lengths first, on the questions that all lengths answered.

    Raises StartupError without a family: a run needs the student alone and guidance of at least two lengths.
    """
    by_setting: dict[str, dict[str, Example]] = defaultdict(dict)
    for one in examples:
        if one.error is None:
            by_setting[one.setting][one.question] = one
    known = {one.id: one for one in questions}
    found = []
    for shared, named in _groups(manifest.settings):
        tried = {tokens: by_setting.get(name, {}) for tokens, name in named.items()}
        ids = [one for one in known if all(one in examples_of for examples_of in tried.values())]
        if ids:
            found.append(_family(shared, tried, [known[one] for one in ids]))
    if not found:
        raise StartupError(
            "The run needs a setting with the student alone and guidance of at least two lengths, each with answers to "
            "these questions: run it with several --tokens, and name the data of the run."
        )
    return sorted(found, key=lambda one: (-len(one.lengths), -len(one.questions)))


def _groups(settings: Sequence[dict[str, Any]]) -> Iterable[tuple[dict[str, Any], dict[int, str]]]:
    """Return settings that differ only in the length, each with the names by length, including the student's."""
    students = [one for one in settings if one["mode"] == "student"]
    groups: dict[tuple[tuple[str, str], ...], tuple[dict[str, Any], dict[int, str]]] = {}
    for one in settings:
        shared = {name: value for name, value in one.items() if name not in _LENGTH_KEYS}
        alone = next((student["name"] for student in students if request_key(student) == request_key(one)), None)
        if one["mode"] == "guided" and one["tokens"] != "auto" and alone is not None:
            _, named = groups.setdefault(_key(one), (shared, {0: alone}))
            named[one["tokens"]] = one["name"]
    return [one for one in groups.values() if len(one[1]) >= _MIN_LENGTHS]


def _key(setting: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, repr(value)) for name, value in setting.items() if name not in _LENGTH_KEYS))


def _family(
    shared: dict[str, Any], tried: Mapping[int, Mapping[str, Example]], questions: list[Question]
) -> LengthFamily:
    lengths = tuple(sorted(tried))
    request_setting = Setting(
        mode="student", form=shared["form"], max_tokens=shared["max_tokens"], temperature=shared["temperature"]
    )
    return LengthFamily(
        setting=shared,
        lengths=lengths,
        questions=tuple(one.id for one in questions),
        # The exemplars of the prompt are left out: the request path does not use them for the choice either.
        requests=tuple(request_setting.request(one, ()) for one in questions),
        cells=tuple(tuple(_cell(tried[length][one.id]) for length in lengths) for one in questions),
    )


def _cell(example: Example) -> LengthOutcome:
    return LengthOutcome(float(example.correct), float(example.cost_usd), example.teacher_output_tokens)


def by_rules(rule: AutoRule) -> Callable[[CompletionRequest], int]:
    """Return the choice of a policy's `auto`, as on the request path but without the probe, which calls a model."""
    return lambda request: choose_length(rule, request, request.max_tokens, {}).tokens


def by_model(model: LengthModel) -> Callable[[CompletionRequest], int]:
    """Return the choice of a length model."""
    return lambda request: model.predict(features_of(request, request.max_tokens).numbers).tokens


def by_probe(
    choose: Callable[[CompletionRequest], int], p1: Mapping[str, float], confident: float, family: LengthFamily
) -> list[int]:
    """Return the chosen lengths, with 0 for questions on whose first token the student was confident.

    Args:
        choose: The choice for other questions.
        p1: Probability of the student's most probable first token, by question; missing questions were not probed.
        confident: The minimum probability.
        family: The questions.
    """
    return [
        0 if p1.get(question, 0.0) >= confident else choose(request)
        for question, request in zip(family.questions, family.requests, strict=True)
    ]


def evaluate_lengths(family: LengthFamily, chosen: Sequence[int]) -> LengthResult:
    """Return the mean results of these lengths, one for each question."""
    indices = [family.nearest(tokens) for tokens in chosen]
    cells = [row[index] for row, index in zip(family.cells, indices, strict=True)]
    count = len(cells)
    return LengthResult(
        right=sum(one.score for one in cells) / count,
        usd=sum(one.usd for one in cells) / count,
        teacher_tokens=sum(one.teacher_tokens for one in cells) / count,
        lengths={length: indices.count(index) for index, length in enumerate(family.lengths)},
    )


def fixed_lengths(family: LengthFamily) -> dict[int, LengthResult]:
    """Return the mean results of each length for all questions."""
    return {length: evaluate_lengths(family, [length] * len(family.questions)) for length in family.lengths}
