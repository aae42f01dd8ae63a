"""Run folders with known truth: each setting has a fixed probability of a correct answer and fixed costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from gateway.evaluation.folder import shown_hash
from gateway.evaluation.record import EXAMPLES, MANIFEST, Example, Manifest, write_lines
from gateway.evaluation.setting import Setting
from gateway.policy.projections import CONCISE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TEACHER, STUDENT = Setting(mode="teacher"), Setting(mode="student")
M20, M40, M80 = (Setting(mode="guided", tokens=tokens) for tokens in (20, 40, 80))
CONCISE_40 = replace(M40, projection=CONCISE)
PRICES = {"teacher": (Decimal(0), Decimal(1)), "student": (Decimal(0), Decimal("0.1"))}


@dataclass(frozen=True, slots=True)
class Truth:
    """A setting with its accuracy and the tokens of each model, at 1 USD per 1M teacher tokens and 0.1 USD per 1M
    student tokens."""

    setting: Setting
    accuracy: float
    teacher: int
    student: int

    @property
    def cost_usd(self) -> Decimal:
        return (self.teacher * PRICES["teacher"][1] + self.student * PRICES["student"][1]) / 1_000_000


ALONE = (Truth(TEACHER, 0.8, 200, 0), Truth(STUDENT, 0.4, 0, 200))
"""The teacher gains 0.4 of accuracy over the student for 180 USD per 1M answers."""


def draws(truths: Sequence[Truth], n: int, seed: int) -> np.ndarray:
    """Return an array (n, k) of correct answers. Half of the difficulty of a question is common to all settings."""
    rng = np.random.default_rng(seed)
    hard, own = rng.standard_normal((n, 1)), rng.standard_normal((n, len(truths)))
    # Each column is normal with variance 1, so its quantile is exceeded with the setting's probability.
    from scipy.stats import norm

    return ((hard + own) / np.sqrt(2) < norm.ppf([one.accuracy for one in truths])).astype(float)


def folder_of(
    path: Path, truths: Sequence[Truth], n: int, seed: int = 0, *, exactly: bool = False, **manifest: Any
) -> Path:
    """Write a run's folder. `exactly`: the first questions are correct, as many as the accuracy requires."""
    path.mkdir(parents=True, exist_ok=True)
    right = draws(truths, n, seed)
    facts = {
        "data": "sums",
        "data_sha256": "0" * 64,
        "questions": n,
        "teacher": "big",
        "student": "small",
        "settings": [one.setting.as_dict() | {"shown": shown_hash(one.setting, ())} for one in truths],
        "prices": PRICES,
        "seed": seed,
        "live": False,
        "version": "0.1.0",
        "created": 1_790_000_000,
    }
    (path / MANIFEST).write_bytes(msgspec.json.encode(msgspec.convert(facts | manifest, Manifest)))
    write_lines(
        path / EXAMPLES,
        [
            example(one, number, right=number < one.accuracy * n if exactly else bool(right[number, column]))
            for column, one in enumerate(truths)
            for number in range(n)
        ],
    )
    return path


def example(one: Truth, number: int, *, right: bool) -> Example:
    """Return the examples of a question."""
    return Example(
        setting=one.setting.name,
        question=f"q{number:04d}",
        mode=one.setting.mode,
        score=float(right),
        text="The answer is 7.",
        finish="stop",
        teacher_output_tokens=one.teacher,
        student_output_tokens=one.student,
        cost_usd=one.cost_usd,
        teacher_usd=one.teacher * PRICES["teacher"][1] / 1_000_000,
        baseline_usd=Decimal(one.teacher + one.student) / 1_000_000,
        teacher_s=one.teacher * 0.05 if one.teacher else None,
    )
