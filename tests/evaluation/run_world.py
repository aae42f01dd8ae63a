"""A few questions, the small models, and runs with them."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import orjson

from gateway.config.settings import Settings
from gateway.evaluation.folder import RunFolder, digest
from gateway.evaluation.pair import ConfiguredPair, manifest_facts
from gateway.evaluation.record import Manifest, Question
from gateway.evaluation.run import EvalWork, StagedRun
from gateway.evaluation.scoring import Scoring
from gateway.evaluation.setting import Setting
from gateway.policy.projections import CUTOFF, HINT, Exemplar

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gateway.local.stack import LocalStack

QUESTIONS = tuple(
    Question(f"q{at}", text, answer, "numeric")
    for at, (text, answer) in enumerate(
        (
            ("A shelf holds 4 rows of 6 jars. How many jars are there?", "24"),
            ("Tom has 9 pens and gives 5 away. How many are left?", "4"),
            ("A bus has 30 seats, and 12 are taken. How many are free?", "18"),
            ("Three boxes hold 7 apples each. How many apples are that?", "21"),
        )
    )
)
EXEMPLARS = (
    Exemplar("Two bags hold 5 nuts each. How many nuts are that?", "2 bags x 5 nuts = 10 nuts. The answer is 10."),
    Exemplar("A cat eats 3 fish a day. How many in 4 days?", "3 fish x 4 days = 12 fish. The answer is 12."),
)
PRIMED = replace(CUTOFF, name="primed", exemplars=EXEMPLARS)
SHORT: dict[str, Any] = {"max_tokens": 12}
SETTINGS = (
    Setting(mode="teacher", **SHORT),
    Setting(mode="student", **SHORT),
    Setting(mode="guided", tokens=4, **SHORT),
    Setting(mode="guided", tokens=8, **SHORT),
    Setting(mode="guided", tokens=8, placement="context", **SHORT),
    Setting(mode="guided", tokens=8, projection=HINT, placement="context", **SHORT),
    Setting(mode="guided", tokens=8, projection=PRIMED, **SHORT),
    Setting(mode="teacher", form="completion", shots=2, **SHORT),
    Setting(mode="guided", tokens=8, form="completion", shots=2, **SHORT),
)


@dataclass
class ProgressRecorder:
    """A progress receiver that records its calls."""

    stages: list[tuple[str, int]] = field(default_factory=list)
    steps: int = 0

    def begin(self, stage: str, total: int) -> None:
        self.stages.append((stage, total))

    def step(self, tokens: int = 0) -> None:
        self.steps += 1

    def end(self) -> None: ...


def settings_for(teacher_url: str, student_url: str) -> Settings:
    """Return two models as in config.yaml."""
    dear = {"input_per_1m": Decimal("0.90"), "output_per_1m": Decimal("0.90")}
    cheap = {"input_per_1m": Decimal("0.10"), "output_per_1m": Decimal("0.10")}
    patience = {"first_token": 600.0, "total": 900.0, "idle": 600.0}
    teacher = {"name": "big", "api_base": f"{teacher_url}/v1", "price": dear, "continuation": "none"}
    student = {"name": "small", "api_base": f"{student_url}/v1", "price": cheap}
    models = [model | {"protocol": "openai", "timeouts": patience} for model in (teacher, student)]
    return Settings.model_validate({"models": models})


def pair_of(engines: LocalStack) -> ConfiguredPair:
    """Return the session's small models."""
    return ConfiguredPair(settings_for(engines.teacher.url, engines.student.url), "big", "small")


def manifest(
    pair: ConfiguredPair,
    settings: Sequence[Setting],
    questions: Sequence[Question] = QUESTIONS,
    *,
    live: bool = False,
    **more: Any,
) -> Manifest:
    facts: dict[str, Any] = {
        "data": "ours",
        "data_sha256": digest(questions),
        "questions": len(questions),
        "settings": [setting.as_dict() for setting in settings],
        "seed": 0,
        "live": live,
        "version": "0",
        "created": int(time.time()),
    }
    return Manifest(**(facts | manifest_facts(pair) | more))


async def staged(
    path: Path,
    pair: ConfiguredPair,
    settings: Sequence[Setting] = SETTINGS,
    questions: Sequence[Question] = QUESTIONS,
    *,
    concurrency: int = 4,
    pauses_s: Sequence[float] = (0.01,),
    rescore: bool = False,
) -> ProgressRecorder:
    """Run one session in this folder."""
    progress = ProgressRecorder()
    work = EvalWork(questions, EXEMPLARS, settings, Scoring().score)
    with RunFolder(path) as folder:
        folder.begin(manifest(pair, settings, questions), questions)
        run = StagedRun(folder, work, pair, progress, concurrency=concurrency, pauses_s=pauses_s)
        with closing(run):
            if rescore:
                await run.rescore()
            else:
                await run.run()
    return progress


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]
