"""Requests of the first stage equal those of a gateway."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec import structs

from gateway.errors import StartupError
from gateway.evaluation.record import Question
from gateway.evaluation.setting import AutoLength, Setting
from gateway.evaluation.staged import check_staged, teacher_request
from gateway.policy.conditions import to_pattern
from gateway.policy.length import AutoRule, ProbeRule
from gateway.policy.projection_shapes import ENGLISH
from gateway.policy.projections import CUTOFF, SkipRule
from gateway.policy.schema import MAX_GUIDANCE_TOKENS
from tests.evaluation.run_world import EXEMPLARS, QUESTIONS

(QUESTION, *_) = QUESTIONS


def test_an_answer_may_be_longer_than_any_guidance() -> None:
    """A policy's limit for guidance does not limit the teacher alone."""
    request = teacher_request(Setting(mode="teacher", max_tokens=2 * MAX_GUIDANCE_TOKENS), QUESTION, ())
    assert request is not None
    assert request.max_tokens == 2 * MAX_GUIDANCE_TOKENS


def test_the_teacher_alone_uses_the_callers_sampling_and_guidance_the_policys() -> None:
    alone = teacher_request(Setting(mode="teacher", temperature=0.7, top_p=0.9, seed=5), QUESTION, ())
    guided = teacher_request(Setting(mode="guided", tokens=20, temperature=0.7, top_p=0.9, seed=5), QUESTION, ())
    assert alone is not None
    assert guided is not None
    assert (alone.temperature, alone.top_p, alone.seed) == (0.7, 0.9, 5)
    assert (guided.temperature, guided.top_p, guided.seed) == (0.0, None, None)


def test_greedy_guidance_is_the_beginning_of_the_teachers_answer() -> None:
    """The requests differ only in length, so one text serves both."""
    for form, shots in (("chat", 0), ("completion", 2)):
        alone = teacher_request(Setting(mode="teacher", form=form, shots=shots), QUESTION, EXEMPLARS)
        guided = teacher_request(Setting(mode="guided", tokens=20, form=form, shots=shots), QUESTION, EXEMPLARS)
        assert alone is not None
        assert guided is not None
        assert (alone.max_tokens, guided.max_tokens) == (300, 20)
        assert structs.replace(guided, max_tokens=300) == alone


def test_tokens_that_a_projection_may_drop_are_requested_additionally() -> None:
    skipping = replace(CUTOFF, name="direct", skip=SkipRule(tuple(map(to_pattern, ENGLISH)), 24))
    request = teacher_request(Setting(mode="guided", tokens=20, projection=skipping), QUESTION, ())
    assert request is not None
    assert request.max_tokens == 44


def test_a_student_alone_needs_no_teacher() -> None:
    assert teacher_request(Setting(mode="student"), QUESTION, ()) is None


def auto(rule: AutoRule, **more: int) -> Setting:
    return Setting(mode="guided", auto=AutoLength(rule, {}), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("max_tokens", "limit"), [(300, 80), (100, 50)])
def test_the_teacher_is_requested_with_the_maximum_of_the_rule(max_tokens: int, limit: int) -> None:
    """The longest m of the rule: 60, and at most half of an answer."""
    request = teacher_request(auto(AutoRule(), max_tokens=max_tokens), QUESTION, ())
    assert request is not None
    assert request.max_tokens == limit


def test_a_question_for_the_student_alone_calls_no_teacher() -> None:
    greeting = Question("hello", "Hello there!", "x", "exact")
    assert teacher_request(auto(AutoRule()), greeting, ()) is None
    assert teacher_request(auto(AutoRule(), max_tokens=12), QUESTION, ()) is None, "half of it is too little"


def test_a_probe_is_for_a_live_run() -> None:
    check_staged([Setting(mode="student"), auto(AutoRule())])
    with pytest.raises(StartupError, match=r"m=auto: its rule has a probe.*--live"):
        check_staged([auto(AutoRule(probe=ProbeRule()))])
