"""Synthetic run folders from a seed, in which better settings cost more."""

from __future__ import annotations

import random
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.evaluation.folder import shown_hash
from gateway.evaluation.record import EXAMPLES, MANIFEST, STAGES, Example, Manifest, StageRecord, write_lines
from gateway.evaluation.setting import Setting
from gateway.policy.projections import CONCISE, HINT, Exemplar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

TEACHER, STUDENT = Setting(mode="teacher"), Setting(mode="student")
GUIDED = Setting(mode="guided", tokens=40)
SETTINGS = (
    TEACHER,
    STUDENT,
    *(replace(GUIDED, tokens=tokens) for tokens in (20, 40, 80)),
    replace(GUIDED, projection=CONCISE),
    replace(GUIDED, projection=HINT, placement="context"),
)
EXEMPLARS = tuple(Exemplar(f"What is {number} + 1?", f"{number + 1}.") for number in range(8))
PRICES = {"teacher": (Decimal("1.00"), Decimal("3.00")), "student": (Decimal("0.10"), Decimal("0.30"))}
_MILLION = Decimal(1_000_000)


def with_shots(settings: Sequence[Setting], *shots: int) -> tuple[Setting, ...]:
    """Return the settings as raw prompts with each number of exemplars."""
    return tuple(replace(one, form="completion", shots=count) for count in shots for one in settings)


def run_folder(
    path: Path,
    settings: Sequence[Setting] = SETTINGS,
    *,
    n: int = 60,
    seed: int = 1,
    change: Callable[[Example], Example] | None = None,
    **manifest: Any,
) -> Path:
    """Write a folder. `change` modifies each example; `manifest` overrides fields."""
    path.mkdir(parents=True, exist_ok=True)
    facts = {
        "data": "sums",
        "data_sha256": "0" * 64,
        "questions": n,
        "teacher": "big",
        "student": "small",
        "settings": [setting.as_dict() | {"shown": shown_hash(setting, EXEMPLARS)} for setting in settings],
        "prices": PRICES,
        "seed": seed,
        "live": False,
        "version": "0.1.0",
        "created": 1_790_000_000,
    }
    (path / MANIFEST).write_bytes(msgspec.json.encode(msgspec.convert(facts | manifest, Manifest)))
    live = bool(manifest.get("live"))
    examples = [example(setting, number, seed, live=live) for setting in settings for number in range(n)]
    write_lines(path / EXAMPLES, examples if change is None else map(change, examples))
    write_lines(path / STAGES, [stage for setting in settings for stage in stages(setting, n, live=live)])
    return path


def example(setting: Setting, number: int, seed: int, *, live: bool = False) -> Example:
    """Return the examples of one question, with a common difficulty and length for all settings."""
    own = random.Random(f"{seed}/{number}")
    hard, length = own.random(), own.randint(30, 160)
    drawn = random.Random(f"{seed}/{number}/{setting.name}")
    skill = _skill(setting)
    correct = drawn.random() < 1 / (1 + 2.718 ** (9 * (hard - skill)))
    opened = min(setting.tokens, length) if setting.mode == "guided" else 0
    teacher = {"teacher": length, "student": 0, "guided": opened}[setting.mode]
    student = {"teacher": 0, "student": int(length * 1.6), "guided": max(0, int(length * 1.2) - opened)}[setting.mode]
    read = 60 + 90 * setting.shots
    teacher_in, student_in = (read if teacher else 0), (read + opened if student else 0)
    teacher_usd = _usd("teacher", teacher_in, teacher)
    teacher_s, student_s = (teacher * 0.4 if teacher else None), (student * 0.15 if student else None)
    answer = number * 3 + 1 if correct else number
    return Example(
        setting=setting.name,
        question=f"q{number:03d}",
        mode=setting.mode if setting.mode != "guided" or student else "teacher_complete",
        score=float(correct),
        found=str(answer),
        text=f"There are {number} boxes with three pens in each, and one lies beside them. The answer is {answer}.",
        finish="length" if length > 150 else "stop",
        guidance="There are boxes" if opened else "",
        guidance_score=float(bool(opened) and correct and opened >= length * 0.8),
        kept_tokens=max(0, opened - 1),
        teacher_input_tokens=teacher_in,
        teacher_output_tokens=teacher,
        student_input_tokens=student_in,
        student_output_tokens=student,
        cost_usd=teacher_usd + _usd("student", student_in, student),
        teacher_usd=teacher_usd,
        baseline_usd=_usd("teacher", read, max(teacher, opened + student)),
        teacher_s=teacher_s,
        student_s=student_s,
        total_s=(teacher_s or 0) / 8 + (student_s or 0) / 8 if live else None,
    )


def stages(setting: Setting, n: int, *, live: bool = False) -> list[StageRecord]:
    """Return the records of the stages."""
    if live:
        return [
            StageRecord(stage="live", setting=setting.name, calls=n, seconds=n * 1.5, concurrency=2, at=1_790_000_500)
        ]
    tokens = 95 if setting.mode == "teacher" else setting.tokens
    found = []
    if setting.mode != "student":
        found.append(("teacher", n * tokens * 0.4 / 8))
    if setting.mode != "teacher":
        found.append(("student", n * (150 - tokens) * 0.15 / 8))
    return [
        StageRecord(
            stage=stage, setting=setting.name, calls=n, seconds=round(seconds, 3), concurrency=8, at=1_790_000_000
        )  # type: ignore[arg-type]
        for stage, seconds in found
    ]


def _skill(setting: Setting) -> float:
    effect = {"cutoff": 0.0, "concise": 0.05, "hint": -0.12}[setting.projection.name]
    alone = {"teacher": 0.75, "student": 0.32, "guided": 0.35 + setting.tokens / 250 + effect}[setting.mode]
    return alone + 0.01 * setting.shots


def _usd(role: str, read: int, written: int) -> Decimal:
    reading, writing = PRICES[role]
    return (read * reading + written * writing) / _MILLION


def read_lines(path: Path, kind: type[Any]) -> Iterator[Any]:
    """Yield the records of a file that a run wrote. Raises msgspec.DecodeError for an invalid line."""
    yield from (msgspec.json.decode(line, type=kind) for line in path.read_bytes().splitlines())
