"""A synthetic run whose best lengths may depend on the words of the questions."""

from __future__ import annotations

import random
from dataclasses import replace
from decimal import Decimal

from gateway.evaluation.folder import shown_hash
from gateway.evaluation.record import Example, Manifest, Question
from gateway.evaluation.setting import Setting

LENGTHS = (20, 40, 80)
STUDENT = Setting(mode="student", max_tokens=200)
GUIDED = Setting(mode="guided", max_tokens=200, tokens=40)


def questions(count: int) -> list[Question]:
    """Return questions: half are sums that need help, half are short greetings that need none."""
    return [
        Question(str(number), _sum(number) if number % 2 else _plain(number), "1", "exact") for number in range(count)
    ]


def _sum(number: int) -> str:
    return f"Ann has {number} apples and buys {number + 3} more for $2 each. How much did she pay in total? Explain."


def _plain(number: int) -> str:
    colour = ("red", "green", "blue", "grey", "brown")[number % 5]
    return f"What do people call a house that is painted {colour}?"


def manifest(count: int) -> Manifest:
    settings = [
        STUDENT,
        *(replace(GUIDED, tokens=tokens) for tokens in LENGTHS),
        Setting(mode="teacher", max_tokens=200),
    ]
    return Manifest(
        data="made-up",
        data_sha256="0" * 64,
        questions=count,
        teacher="big",
        student="small",
        settings=[one.as_dict() | {"shown": shown_hash(one, ())} for one in settings],  # as a run writes them
        prices={"teacher": (Decimal(1), Decimal(1)), "student": (Decimal("0.1"), Decimal("0.1"))},
        seed=0,
        live=False,
        version="0.1.0",
        created=1,
    )


def examples(sample: list[Question], *, by_kind: bool, seed: int = 0) -> list[Example]:
    """Return the results of each length.

    `by_kind`: sums are correct only with 80 tokens, and greetings without any but rarely with 80; else the results are
    random.
    """
    chance = random.Random(seed)
    found = []
    for setting in (STUDENT, *(replace(GUIDED, tokens=tokens) for tokens in LENGTHS)):
        for index, one in enumerate(sample):
            if by_kind:
                right = setting.tokens == 80 if index % 2 or index % 5 == 0 else setting.tokens == 0
                right = right or (index % 2 == 0 and setting.tokens == 0)
            else:
                right = chance.random() < 0.3 + setting.tokens / 200
            found.append(example(setting, one, right=right))
    return found


def example(setting: Setting, one: Question, *, right: bool) -> Example:
    cost = Decimal(100 + 10 * setting.tokens) / 10**6
    return Example(
        setting=setting.name,
        question=one.id,
        mode=setting.mode,
        score=float(right),
        text="An answer.",
        teacher_output_tokens=setting.tokens,
        cost_usd=cost,
        teacher_usd=cost,
        baseline_usd=cost,
    )
