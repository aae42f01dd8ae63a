"""A length for each question: two stages and a whole gateway agree.

The engines are fakes, since the teacher's text determines where it ends: at a sentence, at a line, or at neither.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from gateway.evaluation.folder import RunFolder
from gateway.evaluation.live import run_live, setting_routes, start_gateway
from gateway.evaluation.pair import ConfiguredPair
from gateway.evaluation.record import EXAMPLES, GENERATIONS, Example, Question
from gateway.evaluation.run import EvalWork
from gateway.evaluation.scoring import Scoring
from gateway.evaluation.setting import AutoLength, Setting
from gateway.policy.conditions import to_pattern
from gateway.policy.length import AutoRule, LengthRule, ProbeRule
from gateway.policy.projections import CUTOFF, SkipRule
from tests import fake_texts
from tests.evaluation.run_folders import read_lines
from tests.evaluation.run_world import ProgressRecorder, lines, manifest, settings_for, staged
from tests.fakes import FakeEngine, says, says_with_odds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from aiohttp import web

pytestmark = pytest.mark.timeout(120)

ASKED = (
    Question("sum", "Tom has 9 pens and gives 5 away. How many are left in total?", "4", "numeric"),
    Question("why", "Why is the sky blue? Explain it.", "blue", "contains"),
    Question("hello", "Hello there!", "Hello", "contains"),
)
WRITTEN = {
    "sum": "Sure! He had 9 pens at first. Then 5 of them are gone.\n So 9 - 5 is what is left: 4 pens",
    "why": "Light is scattered by the air and blue light is scattered most of all of it",
    "hello": "Hello to you as well.",
}
SUMS = LengthRule(name="sums", prompt="maths", tokens=14)
GREETINGS = LengthRule(name="greetings", prompt="trivial", tokens=0)
RULE = AutoRule(min=3, max=16, default=8, rules=(SUMS, GREETINGS))
SURE = replace(CUTOFF, name="sure", skip=SkipRule((to_pattern("Sure[,!]"),), 3))


def auto(rule: AutoRule = RULE, **more: Any) -> Setting:
    return Setting(mode="guided", auto=AutoLength(rule, {"stop_at": rule.stop_at}), **({"max_tokens": 40} | more))


def told_apart() -> list[Setting]:
    """A name identifies one rule; these differ in other keys."""
    return [
        auto(),
        auto(RULE.model_copy(update={"stop_at": "sentence"}), boundary="sentence"),
        auto(RULE.model_copy(update={"stop_at": "step"}), max_tokens=60),
        auto(RULE.model_copy(update={"stop_at": "sentence"}), projection=SURE),
        auto(RULE.model_copy(update={"stop_at": "sentence"}), form="completion"),
        auto(max_tokens=14),
        replace(auto(), tokens=8, auto=None),
    ]


async def writes(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """A teacher that writes one word per token up to its limit."""
    prompt = body["inputs"] if "inputs" in body else body["messages"][-1]["content"]
    text = next(WRITTEN[one.id] for one in ASKED if one.text in prompt)
    limit = body["parameters"]["max_new_tokens"] if "inputs" in body else body["max_tokens"]
    words = fake_texts.words(text)
    return await says("".join(words[:limit]), "length" if len(words) >= limit else "stop")(request, body)


@pytest.fixture
def fakes() -> Iterator[tuple[FakeEngine, FakeEngine]]:
    with (
        FakeEngine(writes).running() as teacher,
        FakeEngine(says_with_odds(" and that is it.", 0.5)).running() as student,
    ):
        yield teacher, student


def pair_of(fakes: tuple[FakeEngine, FakeEngine]) -> ConfiguredPair:
    """Both engines use TGI's protocol, which needs no probe of continuation."""
    settings = settings_for(*(one.url for one in fakes))
    models = [one.model_copy(update={"protocol": "tgi", "continuation": "trailing"}) for one in settings.models]
    models = [one.model_copy(update={"api_base": fake.url}) for one, fake in zip(models, fakes, strict=True)]
    return ConfiguredPair(settings.model_copy(update={"models": tuple(models)}), "big", "small")


async def live(path: Path, pair: ConfiguredPair, settings: Sequence[Setting]) -> list[Example]:
    routes = setting_routes(settings)
    with RunFolder(path) as folder:
        folder.begin(manifest(pair, settings, ASKED, live=True), ASKED)
        async with start_gateway(pair, routes, path) as caller:
            work = EvalWork(ASKED, (), settings, Scoring().score)
            await run_live(routes, folder, work, caller, ProgressRecorder(), concurrency=1, pauses_s=(0.01,))
    return list(read_lines(path / EXAMPLES, Example))


async def in_stages(path: Path, pair: ConfiguredPair, settings: Sequence[Setting]) -> list[Example]:
    await staged(path, pair, settings, ASKED, concurrency=1)
    return list(read_lines(path / EXAMPLES, Example))


@pytest.mark.long
async def test_both_paths_choose_cut_and_count_alike(tmp_path: Path, fakes: tuple[FakeEngine, FakeEngine]) -> None:
    pair = pair_of(fakes)
    settings = told_apart()
    there = await in_stages(tmp_path / "staged", pair, settings)
    here = await live(tmp_path / "live", pair, settings)
    assert [one.error for one in (*there, *here) if one.error] == []
    for one, other in zip(there, here, strict=True):
        assert (one.setting, one.question) == (other.setting, other.question)
        for name in (
            "mode", "text", "guidance", "unguided", "finish", "length", "chosen_tokens", "kept_tokens",
            "teacher_input_tokens", "teacher_output_tokens", "student_input_tokens", "student_output_tokens",
            "cost_usd", "teacher_usd", "baseline_usd",
        ):  # fmt: skip
            assert getattr(one, name) == getattr(other, name), (one.setting, one.question, name)


async def test_each_question_has_its_length_and_keeps_why(tmp_path: Path, fakes: tuple[FakeEngine, FakeEngine]) -> None:
    settings = told_apart()[:3]
    found = await in_stages(tmp_path, pair_of(fakes), settings)
    whole, sentence, step = (
        {one.question: one for one in found if one.setting == setting.name} for setting in settings
    )
    assert {name: one.chosen_tokens for name, one in whole.items()} == {"sum": 14, "why": 8, "hello": 0}
    assert whole["sum"].length is not None
    assert whole["sum"].length.rule == "sums"
    assert whole["sum"].guidance == "Sure! He had 9 pens at first. Then 5 of them are gone", (
        "a line's marks are the student's"
    )
    assert (whole["hello"].unguided, whole["hello"].mode, whole["hello"].teacher_usd) == ("auto_rule", "student", 0)
    assert sentence["sum"].guidance == "Sure! He had 9 pens at first."
    assert sentence["sum"].length is not None
    assert sentence["sum"].length.ended == "sentence"
    assert step["sum"].guidance == whole["sum"].guidance
    assert step["sum"].length is not None
    assert step["sum"].length.ended == "step"
    assert step["why"].length is not None
    assert step["why"].length.ended is None


async def test_the_teacher_writes_once_and_its_text_serves_every_rule(
    tmp_path: Path, fakes: tuple[FakeEngine, FakeEngine]
) -> None:
    pair = pair_of(fakes)
    await in_stages(tmp_path / "one", pair, told_apart()[:3])
    calls = len(fakes[0].requests)
    assert [body["max_tokens"] for body in fakes[0].requests] == [16, 16]
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / GENERATIONS).write_bytes((tmp_path / "one" / GENERATIONS).read_bytes())
    (one,) = {example.chosen_tokens for example in await in_stages(tmp_path / "two", pair, [
        auto(AutoRule(min=3, max=16, default=5, rules=()))
    ])}  # fmt: skip
    assert one == 5
    assert len(fakes[0].requests) == calls + 1, "the greeting alone, of which the other rule asked nothing"


async def test_a_confident_student_answers_alone_in_a_live_run_and_its_probe_is_counted(
    tmp_path: Path, fakes: tuple[FakeEngine, FakeEngine]
) -> None:
    sure = RULE.model_copy(update={"probe": ProbeRule(confident=0.4, deadline_s=10.0)})
    unsure = RULE.model_copy(update={"probe": ProbeRule(confident=0.9, deadline_s=10.0)})
    settings = [auto(sure), auto(unsure, boundary="sentence"), Setting(mode="student", max_tokens=40)]
    found = {(one.setting, one.question): one for one in await live(tmp_path, pair_of(fakes), settings)}
    first, second, alone = (found[setting.name, "sum"] for setting in settings)
    assert (first.unguided, first.chosen_tokens, first.teacher_usd) == ("student_confident", 0, 0)
    assert first.length is not None
    assert first.length.probe is not None
    assert first.length.probe.outcome == "confident"
    assert (second.unguided, second.chosen_tokens) == (None, 14)
    assert first.student_output_tokens == alone.student_output_tokens + 1
    assert first.cost_usd > alone.cost_usd
    assert [line for line in lines(tmp_path / EXAMPLES) if line.get("length", {}).get("probe")]
