"""What a chosen length would have given, out of records at fixed lengths: no model is asked.

A family is one setting at several lengths of guidance, and the student alone as the length 0. For each of its questions
every length was tried, so whatever chooses among them can be judged after the fact.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.errors import StartupError
from gateway.evaluation.setting import Setting
from gateway.evaluation.summary import asked as asked_alike
from gateway.policy.length import choose_length
from gateway.policy.question_features import looks_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gateway.evaluation.question import Question
    from gateway.evaluation.record import Example, Manifest
    from gateway.policy.length_model import LengthModel
    from gateway.policy.length_rules import AutoRule
    from gateway.protocol.requests import CompletionRequest

# What of a guided setting is not shared by its family, or is no word of its description.
_OF_LENGTH = ("name", "mode", "tokens", "shown", "policies")
_FEWEST_LENGTHS = 3


@dataclass(frozen=True, slots=True)
class LengthOutcome:
    """What one length gave for one question. `score`: 1 where it is right, else 0; `teacher_tokens`: what it wrote."""

    score: float
    usd: float
    teacher_tokens: int


@dataclass(frozen=True, slots=True)
class LengthFamily:
    """One setting at several lengths.

    Attributes:
        setting: what all of them share, as `Setting.as_dict` says it.
        lengths: in tokens, rising; the first is 0, the student alone.
        asked: for each question the caller's request, in the order of `cells`.
        cells: for each question what each length gave, in the order of `lengths`.
    """

    setting: dict[str, Any]
    lengths: tuple[int, ...]
    questions: tuple[str, ...]
    asked: tuple[CompletionRequest, ...]
    cells: tuple[tuple[LengthOutcome, ...], ...]

    @property
    def name(self) -> str:
        """In words."""
        return ", ".join(f"{name} {value}" for name, value in self.setting.items() if value not in (None, 0))

    @property
    def max_tokens(self) -> int | None:
        """The limit on an answer."""
        limit: int | None = self.setting.get("max_tokens")
        return limit

    def nearest(self, tokens: int) -> int:
        """Which of the lengths stands for this one: the longest that is not longer, else the shortest that is one."""
        if tokens <= 0:
            return 0
        return max((index for index, one in enumerate(self.lengths) if one <= tokens and index), default=1)


@dataclass(frozen=True, slots=True)
class LengthResult:
    """What a way to choose lengths gives on the average: of answers, the share that is right; USD; teacher's tokens.

    lengths: how often each was chosen.
    """

    right: float
    usd: float
    teacher_tokens: float
    lengths: Mapping[int, int]


def families(manifest: Manifest, examples: Iterable[Example], questions: Sequence[Question]) -> list[LengthFamily]:
    """The families of a run, those with the most lengths first; only questions that all lengths answered count.

    Raises StartupError where there is none: a run needs the student alone and guidance of two lengths or more.
    """
    by_setting: dict[str, dict[str, Example]] = defaultdict(dict)
    for one in examples:
        if one.error is None:
            by_setting[one.setting][one.question] = one
    known = {one.id: one for one in questions}
    found = []
    for shared, named in _kin(manifest.settings):
        tried = {tokens: by_setting.get(name, {}) for tokens, name in named.items()}
        ids = [one for one in known if all(one in examples_of for examples_of in tried.values())]
        if ids:
            found.append(_family(shared, tried, [known[one] for one in ids]))
    if not found:
        raise StartupError(
            "The run has no setting with the student alone and guidance of two lengths or more, each with answers to "
            "these questions: run it with several --tokens, and name the data it was run with."
        )
    return sorted(found, key=lambda one: (-len(one.lengths), -len(one.questions)))


def _kin(settings: Sequence[dict[str, Any]]) -> Iterable[tuple[dict[str, Any], dict[int, str]]]:
    """Settings that differ in nothing but the length, each with its name; with the student's that belongs to them."""
    students = [one for one in settings if one["mode"] == "student"]
    kin: dict[tuple[tuple[str, str], ...], tuple[dict[str, Any], dict[int, str]]] = {}
    for one in settings:
        shared = {name: value for name, value in one.items() if name not in _OF_LENGTH}
        alone = next((student["name"] for student in students if asked_alike(student) == asked_alike(one)), None)
        if one["mode"] == "guided" and one["tokens"] != "auto" and alone is not None:
            _, named = kin.setdefault(_key(one), (shared, {0: alone}))
            named[one["tokens"]] = one["name"]
    return [one for one in kin.values() if len(one[1]) >= _FEWEST_LENGTHS]


def _key(setting: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, repr(value)) for name, value in setting.items() if name not in _OF_LENGTH))


def _family(
    shared: dict[str, Any], tried: Mapping[int, Mapping[str, Example]], questions: list[Question]
) -> LengthFamily:
    lengths = tuple(sorted(tried))
    asking = Setting(
        mode="student", form=shared["form"], max_tokens=shared["max_tokens"], temperature=shared["temperature"]
    )
    return LengthFamily(
        setting=shared,
        lengths=lengths,
        questions=tuple(one.id for one in questions),
        # What was shown before the question does not count: on the path it is not looked at either.
        asked=tuple(asking.asked(one, ()) for one in questions),
        cells=tuple(tuple(_cell(tried[length][one.id]) for length in lengths) for one in questions),
    )


def _cell(example: Example) -> LengthOutcome:
    return LengthOutcome(float(example.correct), float(example.cost_usd), example.teacher_output_tokens)


def by_rules(rule: AutoRule) -> Callable[[CompletionRequest], int]:
    """What a policy's `auto` chooses, as on the gateway's path; without the probe, which asks a model."""
    return lambda asked: choose_length(rule, asked, asked.max_tokens, {}).tokens


def by_model(model: LengthModel) -> Callable[[CompletionRequest], int]:
    """What a learned model chooses by itself."""
    return lambda asked: model.predict(looks_of(asked, asked.max_tokens).numbers).tokens


def by_probe(
    choose: Callable[[CompletionRequest], int], p1: Mapping[str, float], confident: float, family: LengthFamily
) -> list[int]:
    """The same, but for questions of whose first token the student was sure.

    p1: by question, how likely its likeliest first token was; one that is missing was not probed.
    """
    return [
        0 if p1.get(question, 0.0) >= confident else choose(asked)
        for question, asked in zip(family.questions, family.asked, strict=True)
    ]


def would_give(family: LengthFamily, chosen: Sequence[int]) -> LengthResult:
    """What these lengths, one for each question, give on the average."""
    places = [family.nearest(tokens) for tokens in chosen]
    cells = [row[place] for row, place in zip(family.cells, places, strict=True)]
    count = len(cells)
    return LengthResult(
        right=sum(one.score for one in cells) / count,
        usd=sum(one.usd for one in cells) / count,
        teacher_tokens=sum(one.teacher_tokens for one in cells) / count,
        lengths={length: places.count(place) for place, length in enumerate(family.lengths)},
    )


def fixed(family: LengthFamily) -> dict[int, LengthResult]:
    """What each length gives when every question gets it."""
    return {length: would_give(family, [length] * len(family.questions)) for length in family.lengths}
