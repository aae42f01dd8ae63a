"""A search with real small models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.errors import StartupError
from gateway.evaluation.folder import RunFolder
from gateway.evaluation.pair import ConfiguredPair
from gateway.evaluation.priming.exemplars import QuestionSplit, split
from gateway.evaluation.priming.finding import SearchLimits, SearchReport, Trials, find
from gateway.evaluation.record import EXAMPLES, GENERATIONS, Example, Question
from gateway.evaluation.scoring import Scoring
from gateway.evaluation.setting import Setting
from gateway.policy.projections import PRIMED
from tests.evaluation.run_folders import read_lines
from tests.evaluation.run_world import ProgressRecorder, lines, manifest, pair_of, settings_for
from tests.evaluation.test_priming_finding import SearchRecorder
from tests.fakes import recording_proxy

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gateway.local.stack import LocalStack

pytestmark = [pytest.mark.models, pytest.mark.timeout(300)]  # a busy machine is slow

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Cuba": "Havana", "Egypt": "Cairo"}
QUESTIONS = [
    Question(land, f"What is the capital of {land}?", capital, "contains") for land, capital in CAPITALS.items()
]
SETTING = Setting(mode="guided", tokens=6, max_tokens=12)
LIMITS = SearchLimits(calls=60, max_exemplars=1, max_tokens=40, pool_answer_tokens=24)
NOWHERE = "http://127.0.0.1:9"


async def searched(
    path: Path, pair: ConfiguredPair, progress: ProgressRecorder | None = None
) -> tuple[SearchReport, QuestionSplit, SearchRecorder]:
    parts = split(QUESTIONS, pool=2, select=3, check=1, seed=0)
    every = [*parts.select, *parts.check, *parts.pool]
    listener = SearchRecorder()
    with RunFolder(path) as folder:

        def begin(settings: Sequence[Setting]) -> None:
            folder.begin(manifest(pair, settings, every), every)

        trials = Trials(
            folder=folder,
            pair=pair,
            setting=SETTING,
            all_questions=every,
            score=Scoring().score,
            progress=progress or ProgressRecorder(),
            concurrency=4,
            begin=begin,
        )
        return await find(trials, parts, Scoring().score, LIMITS, 0, listener), parts, listener


def texts(path: Path) -> int:
    return len((path / GENERATIONS).read_bytes().splitlines())


class Killed(Exception):
    """An interruption of the search."""


class Ends(ProgressRecorder):
    """Raise after some calls, like a kill."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def step(self, tokens: int = 0) -> None:
        super().step(tokens)
        if self.steps == self.after:
            raise Killed


@pytest.mark.long
async def test_only_the_teacher_gets_exemplars_and_none_of_them_is_evaluated(
    tmp_path: Path, engines: LocalStack
) -> None:
    with (
        recording_proxy(engines.teacher.url) as (teacher, teacher_request),
        recording_proxy(engines.student.url) as (student, to_student),
    ):
        result, parts, listener = await searched(
            tmp_path, ConfiguredPair(settings_for(teacher, student), "big", "small")
        )
    assert listener.steps, "the score without exemplars is told"
    assert result.spent <= LIMITS.calls
    shown = {
        message["content"]
        for body in teacher_request
        for message in body.get("messages", [])[:-1]
        if message["role"] == "user"
    }
    primer = {one.question for one in PRIMED.exemplars}
    assert shown - primer <= {question.text for question in parts.pool}
    seen = [text for body in to_student for text in str(body).split("capital of ")[1:]]
    assert seen
    for body in to_student:
        assert all(question.text not in str(body) for question in parts.pool)
    settings = {example.setting for example in read_lines(tmp_path / EXAMPLES, Example)}
    assert any(", cutoff, prefix, m=6" in name for name in settings)
    assert any(", primed " in name for name in settings)


@pytest.mark.long
async def test_a_killed_search_resumes_and_a_finished_one_makes_no_calls(tmp_path: Path, engines: LocalStack) -> None:
    with pytest.raises(Killed):
        await searched(tmp_path, pair_of(engines), Ends(11))
    kept = texts(tmp_path)
    assert kept > 0
    first, parts, _ = await searched(tmp_path, pair_of(engines))
    assert kept < texts(tmp_path), "it was killed on its way"
    keys = [line.get("opening") or line.get("answer") for line in lines(tmp_path / GENERATIONS)]
    assert len(keys) == len(set(keys)), "nothing was asked twice"
    assert len(keys) <= first.spent, "the same guidance twice takes one answer"
    away = ConfiguredPair(settings_for(NOWHERE, NOWHERE), "big", "small")
    again, _, _ = await searched(tmp_path, away)
    assert again == first
    examples = list(read_lines(tmp_path / EXAMPLES, Example))
    assert {one.question for one in examples} <= {
        question.id for part in (parts.select, parts.check, parts.pool) for question in part
    }


@pytest.mark.long
async def test_an_engine_that_is_away_ends_the_search_and_chooses_nothing(tmp_path: Path, engines: LocalStack) -> None:
    half = ConfiguredPair(settings_for(engines.teacher.url, NOWHERE), "big", "small")
    with pytest.raises(StartupError, match="student small does not respond"):
        await searched(tmp_path, half)
    kept = texts(tmp_path)
    assert kept > 0, "what the teacher wrote is kept"
