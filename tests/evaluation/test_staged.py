"""Requests of the first stage equal those of a gateway."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest
from msgspec import structs

from gateway.evaluation.setting import Setting, with_first_exemplars
from gateway.evaluation.staged import teacher_request
from gateway.policy.guidance_rule import MAX_GUIDANCE_TOKENS
from gateway.policy.patterns import to_pattern
from gateway.policy.projection_shapes import ENGLISH
from gateway.policy.projections import CUTOFF, PRIMED, Exemplar, SkipRule
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


MANY = tuple(Exemplar(f"How many are {number} + 1?", f"{number} + 1 = {number + 1}.") for number in range(8))
COUNTS = (1, 2, 4, 8)
PRIMED_BY_MANY = replace(PRIMED, exemplars=MANY)


def prompts(setting: Setting, chat: tuple[tuple[str, str], ...] = ()) -> list[bytes]:
    """Return the teacher's prompts for two questions, a chat as JSON without its end. `chat` precedes the questions."""
    found = []
    for question in QUESTIONS[:2]:
        asked = replace(question, messages=(*chat, ("user", question.text))) if chat else question
        request = teacher_request(setting, asked, MANY)
        assert request is not None
        found.append((request.prompt or "").encode() or orjson.dumps(request.messages).removesuffix(b"]"))
    return found


@pytest.mark.parametrize(
    "settings",
    [
        [Setting(mode="guided", tokens=20, projection=with_first_exemplars(PRIMED_BY_MANY, count)) for count in COUNTS],
        *(
            [Setting(mode=mode, form=form, tokens=20 * (mode == "guided"), shots=count) for count in COUNTS]
            for mode in ("teacher", "guided")
            for form in ("chat", "completion")
        ),
    ],
    ids=["guided primed", "teacher chat", "teacher completion", "guided chat", "guided completion"],
)
def test_exemplars_stand_first_and_a_prompt_with_fewer_begins_those_with_more(settings: list[Setting]) -> None:
    """A prefix cache hits only on equal bytes from the beginning of the prompt."""
    ends = [QUESTIONS[0].text.encode(), QUESTIONS[1].text.encode()]
    shared = []
    for setting in settings:
        found = prompts(setting)
        starts = {prompt[: prompt.index(end)] for prompt, end in zip(found, ends, strict=True)}
        assert len(starts) == 1, "all before the question is equal"
        shared.append(starts.pop())
    for count, start in zip(COUNTS, shared, strict=True):
        assert [one.question.encode() in start for one in MANY] == [place < count for place in range(len(MANY))]
        last = MANY[count - 1].answer.encode()
        assert shared[-1].startswith(start[: start.index(last) + len(last)])


def test_exemplars_follow_the_callers_system_message() -> None:
    """A policy's exemplars are shared by the callers with the same system message."""
    first, second = prompts(
        Setting(mode="guided", tokens=20, projection=PRIMED_BY_MANY), (("system", "Answer in one line."),)
    )
    assert first[: first.index(QUESTIONS[0].text.encode())] == second[: second.index(QUESTIONS[1].text.encode())]
    assert first.index(b"Answer in one line.") < first.index(MANY[0].question.encode())


def test_primed_guidance_has_the_prompt_of_the_teacher_with_the_same_exemplars() -> None:
    """The run uses the same stored text of the teacher for both."""
    for count in COUNTS:
        guided = Setting(mode="guided", tokens=20, projection=with_first_exemplars(PRIMED_BY_MANY, count))
        assert prompts(guided) == prompts(Setting(mode="teacher", shots=count))


def test_tokens_that_a_projection_may_drop_are_requested_additionally() -> None:
    skipping = replace(CUTOFF, name="direct", skip=SkipRule(tuple(map(to_pattern, ENGLISH)), 24))
    request = teacher_request(Setting(mode="guided", tokens=20, projection=skipping), QUESTION, ())
    assert request is not None
    assert request.max_tokens == 44


def test_a_student_alone_needs_no_teacher() -> None:
    assert teacher_request(Setting(mode="student"), QUESTION, ()) is None
