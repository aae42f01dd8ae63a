"""A run in two stages with real small models."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web

from gateway.errors import StartupError
from gateway.evaluation.folder import RunFolder
from gateway.evaluation.pair import ConfiguredPair
from gateway.evaluation.record import EXAMPLES, GENERATIONS, STAGES, Example, Question, StageRecord
from gateway.evaluation.setting import Setting
from tests.evaluation.run_folders import read_lines
from tests.evaluation.run_world import QUESTIONS, SETTINGS, SHORT, lines, pair_of, settings_for, staged
from tests.fakes import recording_proxy, served

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from gateway.local.stack import LocalStack

pytestmark = [pytest.mark.models, pytest.mark.timeout(300)]  # a busy machine is slow


@pytest.mark.long
async def test_every_question_is_answered_under_every_setting(tmp_path: Path, engines: LocalStack) -> None:
    progress = await staged(tmp_path, pair_of(engines))
    found: list[Example] = list(read_lines(tmp_path / EXAMPLES, Example))
    assert [(one.setting, one.question) for one in found] == [
        (setting.name, question.id) for setting in SETTINGS for question in QUESTIONS
    ]
    assert [one.error for one in found if one.error] == []
    by_setting = {setting.name: [one for one in found if one.setting == setting.name] for setting in SETTINGS}
    alone, student, guided = (by_setting[setting.name] for setting in SETTINGS[:3])
    assert {one.mode for one in alone} == {"teacher"}
    assert all(one.teacher_output_tokens and not one.student_output_tokens for one in alone)
    assert all(one.student_output_tokens and not one.teacher_output_tokens for one in student)
    for whole, one in zip(alone, guided, strict=True):
        assert one.mode in {"guided", "teacher_complete"}
        assert whole.text.strip().startswith(one.guidance), "the guidance is cut from what the teacher wrote alone"
        assert one.text.startswith(one.guidance)
        if one.finish == "length":
            assert one.cost_usd == one.baseline_usd, "an answer at its limit saves nothing"
        else:
            assert one.cost_usd < one.baseline_usd
    assert progress.steps == sum(total for _, total in progress.stages)


@pytest.mark.long
async def test_the_teacher_is_called_once_per_distinct_request(tmp_path: Path, engines: LocalStack) -> None:
    """The teacher's whole answer serves as cutoff guidance at every m, with either placement."""
    with recording_proxy(engines.teacher.url) as (url, bodies):
        pair = ConfiguredPair(settings_for(url, engines.student.url), "big", "small")
        await staged(tmp_path, pair)
    distinct = len({"chat", "hint", "primed", "completion"}) * len(QUESTIONS)
    texts = [line for line in lines(tmp_path / GENERATIONS) if "opening" in line]
    assert len(texts) == len({line["opening"] for line in texts}) == distinct
    assert sum(body.get("max_tokens") == 12 for body in bodies) == 2 * len(QUESTIONS)
    stages: list[StageRecord] = list(read_lines(tmp_path / STAGES, StageRecord))
    assert sum(one.calls for one in stages if one.stage == "teacher") == distinct


@pytest.mark.long
async def test_a_second_session_requests_only_missing_answers(tmp_path: Path, engines: LocalStack) -> None:
    """Without missing texts the engines are not even probed."""
    await staged(tmp_path, pair_of(engines), SETTINGS[:3], QUESTIONS[:3])
    before = (tmp_path / EXAMPLES).read_bytes()
    nowhere = ConfiguredPair(settings_for("http://127.0.0.1:9", "http://127.0.0.1:9"), "big", "small")
    await staged(tmp_path, nowhere, SETTINGS[:3], QUESTIONS[:3])
    assert (tmp_path / EXAMPLES).read_bytes() == before
    await staged(tmp_path, pair_of(engines), SETTINGS[:4], QUESTIONS)
    calls = Counter(line.get("opening") or line["answer"] for line in lines(tmp_path / GENERATIONS))
    assert set(calls.values()) == {1}
    assert len(lines(tmp_path / EXAMPLES)) == 16


async def test_settings_outside_of_the_current_session_are_kept(tmp_path: Path, engines: LocalStack) -> None:
    await staged(tmp_path, pair_of(engines), SETTINGS[:2], QUESTIONS[:2])
    await staged(tmp_path, pair_of(engines), SETTINGS[2:3], QUESTIONS[:2])
    with RunFolder(tmp_path) as folder:
        assert folder.manifest is not None
        assert [one["name"] for one in folder.manifest.settings] == [setting.name for setting in SETTINGS[:3]]
        assert len(folder.examples) == 6


async def test_examples_are_recomputed_without_a_model(tmp_path: Path, engines: LocalStack) -> None:
    await staged(tmp_path, pair_of(engines), SETTINGS[:3], QUESTIONS[:3])
    before = (tmp_path / EXAMPLES).read_bytes()
    found: list[Example] = list(read_lines(tmp_path / EXAMPLES, Example))
    # llama.cpp reports its cache reads.
    assert all((one.teacher_cached_tokens is None) == (one.teacher_input_tokens == 0) for one in found)
    assert all((one.student_cached_tokens is None) == (one.student_input_tokens == 0) for one in found)
    assert any(one.student_cached_tokens for one in found)
    (tmp_path / EXAMPLES).unlink()
    nowhere = ConfiguredPair(settings_for("http://127.0.0.1:9", "http://127.0.0.1:9"), "big", "small")
    await staged(tmp_path, nowhere, SETTINGS[:3], QUESTIONS[:3], rescore=True)
    assert (tmp_path / EXAMPLES).read_bytes() == before


@pytest.mark.long
async def test_an_engine_that_is_gone_ends_the_run_in_one_line_and_the_rest_comes_later(
    tmp_path: Path, engines: LocalStack
) -> None:
    settings = (*SETTINGS[:3], *SETTINGS[5:7])
    with dying_proxy(engines.teacher.url, after=2) as url:
        dying = ConfiguredPair(settings_for(url, engines.student.url), "big", "small")
        with pytest.raises(StartupError, match="repeat the command to resume"):
            await staged(tmp_path, dying, settings, concurrency=1)
    kept = lines(tmp_path / GENERATIONS)
    assert len(kept) == 2
    await staged(tmp_path, pair_of(engines), settings)
    assert lines(tmp_path / GENERATIONS)[:2] == kept
    found = lines(tmp_path / EXAMPLES)
    assert len(found) == len(settings) * len(QUESTIONS)
    assert [line for line in found if line.get("error")] == []


async def test_a_rejected_question_is_an_example_with_the_error_code(tmp_path: Path, engines: LocalStack) -> None:
    """The run continues, and the next session repeats the question."""
    long = Question("long", "word " * 3000, "1", "numeric")
    await staged(tmp_path, pair_of(engines), SETTINGS[:3], (QUESTIONS[0], long))
    found = {(line["setting"], line["question"]): line.get("error") for line in lines(tmp_path / EXAMPLES)}
    assert found[SETTINGS[1].name, "long"] == "invalid_request", "as a caller of the gateway is told"
    streamed = {found[SETTINGS[at].name, "long"] for at in (0, 2)}
    assert streamed == {"engine_rejected"}, "the teacher's answers are streamed"
    assert [found[setting.name, "q0"] for setting in SETTINGS[:3]] == [None] * 3


async def test_samples_are_drawn_apart_and_alike_in_two_runs(tmp_path: Path, engines: LocalStack) -> None:
    drawn = [Setting(mode="teacher", temperature=1.0, seed=seed, **SHORT) for seed in (0, 1)]
    texts = []
    for name in ("a", "b"):
        await staged(tmp_path / name, pair_of(engines), drawn, QUESTIONS[:2], concurrency=1)
        texts.append([line["text"] for line in lines(tmp_path / name / EXAMPLES)])
    assert texts[0] == texts[1]
    assert texts[0][:2] != texts[0][2:]


def dying_proxy(upstream: str, after: int) -> AbstractContextManager[str]:
    """A proxy that passes some generations and then closes each connection; its other routes keep working."""
    done = 0

    async def forward(request: web.Request) -> web.StreamResponse:
        nonlocal done
        raw = await request.read()
        done += request.method == "POST"
        if done > after:
            assert request.transport is not None
            request.transport.abort()
        async with (
            aiohttp.ClientSession(upstream, headers={"Content-Type": "application/json"}) as session,
            session.request(request.method, request.path, data=raw or None) as answer,
        ):
            return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", forward)
    return served(app)
