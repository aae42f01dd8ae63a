"""One question answered in the paper's two stages: the guidance first, for all; then the answers (paper, section 2).

What is sent and kept is decided by the parts of the gateway's own path; only its batcher, limits and ledger are left
out. So one engine at a time need be there, and the texts of the first stage serve every length in the second.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from io import StringIO
from typing import TYPE_CHECKING

from msgspec import structs

from gateway.accounting.calls import EngineCall
from gateway.accounting.draft import ReceiptBuilder
from gateway.accounting.worst_case import worst_case
from gateway.capabilities.continuation import Continuation
from gateway.errors import StartupError
from gateway.guidance.ending import EndRule, open_to_end
from gateway.pipeline.generation import unread_once_ended
from gateway.pipeline.guidance_request import (
    UNGUIDED,
    Guidance,
    answered_call,
    build_opening_request,
    guidance_from_reply,
    teacher_input,
)
from gateway.policy.length import longest
from gateway.policy.projections import CUTOFF
from gateway.policy.resolve import EngineSnapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gateway.accounting.baseline import Encoding
    from gateway.accounting.receipt import Receipt
    from gateway.engines.base import OpeningReply, OpeningRequest
    from gateway.evaluation.generations import RecordingEngine
    from gateway.evaluation.question import Question
    from gateway.evaluation.setting import Setting
    from gateway.pipeline.student import StudentCall
    from gateway.policy.projections import Exemplar
    from gateway.policy.resolve import GuidancePlan, Plan
    from gateway.pricing import Price
    from gateway.protocol.requests import CompletionRequest

TEACHER, STUDENT = "teacher", "student"
# While the teacher writes, the student need not be there: what it can is known when it answers.
_ANY_STUDENT = EngineSnapshot(Continuation("trailing"))


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """What became of one question.

    Attributes:
        text: the answer as a caller gets it, guidance included where that is shown.
        opening: the guidance as it was kept; empty without one.
        teacher_s, student_s: how long either wrote, beside others; None: it was not asked.
    """

    text: str
    opening: str
    receipt: Receipt
    teacher_s: float | None
    student_s: float | None


@dataclass(frozen=True, slots=True)
class TokenPrices:
    """What tokens cost, and what counts them where an engine does not."""

    prices: Mapping[str, Price]
    encodings: Mapping[str, Encoding]


def to_teacher(setting: Setting, question: Question, exemplars: Sequence[Exemplar]) -> OpeningRequest | None:
    """What the first stage asks the teacher; None where the setting has no teacher, or its rule leaves it out here.

    The teacher alone is asked as for guidance by cutoff, of the answer's whole length. Where a rule chooses m for each
    question, the teacher is asked for as much as the rule may ever choose: what it wrote serves another rule too.
    """
    if setting.mode == "student":
        return None
    asked = setting.asked(question, exemplars)
    if setting.auto is None:
        return _request(setting, asked)
    guidance = _plan(setting, asked).guidance
    if guidance is None:
        return None
    most = longest(setting.auto.rule, setting.max_tokens) + guidance.projection.skip_tokens
    return structs.replace(build_opening_request(guidance, asked), max_tokens=most)


def check(settings: Iterable[Setting]) -> None:
    """Raises StartupError where a setting cannot be answered in two stages."""
    for setting in settings:
        if setting.auto is not None and setting.auto.rule.probe is not None:
            raise StartupError(
                f"{setting.name}: its rule has a probe, which asks the student before the teacher, and in two stages "
                "the student is asked after it. Run it with --live, or leave the probe out."
            )


async def answer(
    setting: Setting,
    question: Question,
    exemplars: Sequence[Exemplar],
    teacher: RecordingEngine,
    finisher: StudentCall,
    money: TokenPrices,
) -> QuestionAnswer:
    """The second stage. Raises EngineErrors; KeyError where the teacher's text is not there."""
    asked = setting.asked(question, exemplars)
    plan = setting.plan(
        asked, finisher.engine_snapshot if setting.mode != "teacher" else _any_student, TEACHER, STUDENT
    )
    started = time.perf_counter()
    draft = ReceiptBuilder(
        id=question.id, created=0, tenant="eval", key="eval", route="eval", stream=False, started=started, plan=plan
    )
    # A tenant's budget has no part here, but the reservation bounds what the receipt charges for unknown usage.
    draft.request, draft.reserved = asked, worst_case(plan, asked, money.prices)
    teacher_s = student_s = None
    opening = UNGUIDED
    text = ""
    if setting.mode == "teacher":
        request = _request(setting, asked)
        written = await teacher.written(request)
        reply = written.first(request.max_tokens, tuple(request.stop))
        assert reply is not None, "written() returns as much as was asked for"
        draft.teacher = EngineCall(TEACHER, teacher_input(request), reply.usage, StringIO(reply.text))
        draft.finish_reason, text, teacher_s = reply.finish, reply.text, written.seconds_to(request.max_tokens)
    else:
        if plan.guidance is not None:
            request = build_opening_request(plan.guidance, asked)
            reply, teacher_s = await _opening(plan, plan.guidance, request, teacher)
            draft.guidance_requested = draft.granted = draft.guided = started
            unread = unread_once_ended(teacher.state.stops_within_s)
            draft.teacher = answered_call(plan.guidance, request, reply, unread=unread)
            found = guidance_from_reply(plan, plan.guidance, asked, draft, reply)
            if isinstance(found, Guidance):
                opening = found
            else:
                draft.unguided = found
        else:
            draft.unguided = plan.unguided
        if opening.finish_reason is not None:
            draft.finish_reason, text = opening.finish_reason, opening.text
        else:
            finished = await finisher.complete(plan, asked, opening, draft)
            choice = finished["choices"][0]
            draft.finish_reason, text = choice.get("finish_reason"), choice["message"].get("content") or ""
            student_s = finished["seconds"]
    receipt = draft.close("ok", money.prices, money.encodings)
    return QuestionAnswer(text, opening.text, receipt, teacher_s, student_s)


async def _opening(
    plan: Plan, guidance: GuidancePlan, request: OpeningRequest, teacher: RecordingEngine
) -> tuple[OpeningReply, float]:
    """What the teacher would have written, with how long it took: its call ends where the gateway would end it."""
    written = await teacher.written(request)
    reply = await open_to_end(teacher, request, "", EndRule.of(plan, guidance), None)
    hung_up = reply.usage is None and reply.ends_at is not None
    return reply, written.seconds_until(len(reply.text)) if hung_up else written.seconds_to(request.max_tokens)


def _request(setting: Setting, asked: CompletionRequest) -> OpeningRequest:
    alone = setting.mode == "teacher"
    # A policy limits guidance, and no answer: what the teacher alone may write is said below.
    guided = replace(setting, mode="guided", tokens=1, projection=CUTOFF, placement="prefix") if alone else setting
    plan = _plan(guided, asked)
    assert plan.guidance is not None, "a plain chat can be guided"
    request = build_opening_request(plan.guidance, asked)
    if not alone:
        return request
    # Guidance is drawn as the policy says; an answer as its caller does.
    return structs.replace(
        request,
        max_tokens=setting.max_tokens,
        temperature=setting.temperature,
        top_p=setting.top_p,
        seed=setting.seed,
    )


def _plan(setting: Setting, asked: CompletionRequest) -> Plan:
    return setting.plan(asked, _any_student, TEACHER, STUDENT)


def _any_student(engine: str) -> EngineSnapshot:
    return _ANY_STUDENT
