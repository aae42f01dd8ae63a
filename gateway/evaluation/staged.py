"""A question in the paper's two stages: first the guidance of all questions, then the answers (paper, section 2).

Components of the gateway's request path build the requests and trim the texts; only batching, limits and accounting
are left out. One engine at a time suffices, and the texts of the first stage serve every length in the second.
"""

from __future__ import annotations

import time
from dataclasses import replace
from io import StringIO
from typing import TYPE_CHECKING, NamedTuple

from msgspec import structs

from gateway.accounting.receipt_builder import ReceiptBuilder
from gateway.accounting.shares import EngineCall
from gateway.accounting.worst_case import worst_case
from gateway.evaluation.setting import STUDENT, TEACHER
from gateway.pipeline.guidance_request import (
    UNGUIDED,
    Guidance,
    answered_call,
    build_teacher_request,
    guidance_from_reply,
    teacher_input,
)
from gateway.policy.plan import EngineSnapshot
from gateway.policy.projections import CUTOFF
from gateway.protocol.capabilities.continuation import Continuation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.accounting.engine_set import EngineSet
    from gateway.accounting.estimate import Encoding
    from gateway.accounting.receipt import Receipt
    from gateway.engines.base import TeacherRequest
    from gateway.evaluation.generations import RecordingEngine
    from gateway.evaluation.record import Question
    from gateway.evaluation.setting import Setting
    from gateway.pipeline.student import StudentCall
    from gateway.policy.projections import Exemplar
    from gateway.pricing import Price
    from gateway.protocol.requests import CompletionRequest


class QuestionAnswer(NamedTuple):
    """An answer as its caller receives it, the kept guidance, the receipt, and the writing time of each model.

    `guidance_logprob` is the mean log-probability of the guidance tokens under the student; None if not requested.
    `answer_logprobs` are the mean and the lowest one of the tokens that the student wrote, likewise.
    `no_cache_reads` are the roles whose engine reported 0 tokens read from its prompt cache, rather than no count.
    """

    text: str
    guidance: str
    receipt: Receipt
    teacher_s: float | None
    student_s: float | None
    guidance_logprob: float | None = None
    answer_logprobs: tuple[float, float] | None = None
    no_cache_reads: frozenset[str] = frozenset()


class TokenPrices(NamedTuple):
    """Token prices by engine, and the encodings that count tokens if an engine does not."""

    prices: Mapping[str, Price]
    encodings: Mapping[str, Encoding]


def teacher_request(setting: Setting, question: Question, exemplars: Sequence[Exemplar]) -> TeacherRequest | None:
    """Return the teacher request of the first stage; None if the setting needs no teacher.

    The teacher alone gets the request of guidance by cutoff with the whole answer's limit.
    """
    return None if setting.mode == "student" else _request(setting, setting.request(question, exemplars))


async def answer(
    setting: Setting,
    question: Question,
    exemplars: Sequence[Exemplar],
    teacher: RecordingEngine,
    student_call: StudentCall,
    engine_set: EngineSet,
) -> QuestionAnswer:
    """Compute an answer in the second stage. Raises EngineErrors; KeyError if the teacher's text is missing."""
    request = setting.request(question, exemplars)
    plan = setting.plan(request, engine_set.snapshot if setting.mode != "teacher" else _any_student)
    started = time.perf_counter()
    builder = ReceiptBuilder(
        id=question.id,
        created=0,
        tenant="eval",
        key="eval",
        route="eval",
        stream=False,
        started=started,
        plan=plan,
        engine_set=engine_set,
    )
    # No budget applies, but the reservation bounds the receipt's charge for unknown usage.
    builder.request, builder.reserved = request, worst_case(plan, request, engine_set.prices)
    teacher_s = student_s = guidance_logprob = answer_logprobs = None
    guidance = UNGUIDED
    text = ""
    if setting.mode == "teacher":
        to_teacher = _request(setting, request)
        written = await teacher.teacher_text(to_teacher)
        reply = await teacher.generate_guidance(to_teacher)
        builder.teacher = EngineCall(TEACHER, teacher_input(to_teacher), reply.usage, StringIO(reply.text))
        builder.finish_reason, text = reply.finish, reply.text
        teacher_s = written.seconds_to_tokens(to_teacher.max_tokens)
    else:
        if plan.guidance is not None:
            to_teacher = build_teacher_request(plan.guidance, request)
            written = await teacher.teacher_text(to_teacher)
            reply = await teacher.generate_guidance(to_teacher)
            teacher_s = written.seconds_to_tokens(to_teacher.max_tokens)
            builder.guidance_requested = builder.granted = builder.guided = started
            builder.teacher = answered_call(plan.guidance, to_teacher, reply)
            found = guidance_from_reply(plan, plan.guidance, request, builder, reply)
            if isinstance(found, Guidance):
                guidance = found
            else:
                builder.unguided = found
        else:
            builder.unguided = plan.unguided
        if guidance.finish_reason is not None:
            builder.finish_reason, text = guidance.finish_reason, guidance.text
        else:
            finished = await student_call.complete(request, guidance, builder)
            choice = finished["choices"][0]
            builder.finish_reason, text = choice.get("finish_reason"), choice["message"].get("content") or ""
            student_s, guidance_logprob = finished["seconds"], finished.get("guidance_logprob")
            if scores := finished.get("answer_logprobs"):
                answer_logprobs = (scores[0], scores[1])
    receipt = builder.close("ok", engine_set.prices, engine_set.encodings)
    calls = ((TEACHER, builder.teacher), (STUDENT, builder.student))
    no_reads = frozenset(role for role, call in calls if call and call.usage and call.usage.no_cache_reads)
    return QuestionAnswer(
        text, guidance.text, receipt, teacher_s, student_s, guidance_logprob, answer_logprobs, no_reads
    )


def _request(setting: Setting, request: CompletionRequest) -> TeacherRequest:
    alone = setting.mode == "teacher"
    # A policy limits guidance, not answers: the limit of the teacher alone is set below.
    guided = replace(setting, mode="guided", tokens=1, projection=CUTOFF, placement="prefix") if alone else setting
    guidance = guided.plan(request, _any_student).guidance
    assert guidance is not None, "a plain chat can be guided"
    to_teacher = build_teacher_request(guidance, request)
    if not alone:
        return to_teacher
    # The policy sets the sampling of guidance; the caller sets that of an answer.
    return structs.replace(
        to_teacher,
        max_tokens=setting.max_tokens,
        temperature=setting.temperature,
        top_p=setting.top_p,
        seed=setting.seed,
    )


def _any_student(engine: str) -> EngineSnapshot:
    """Return a student for the first stage, which needs none: its capabilities are known in the second stage."""
    return EngineSnapshot(Continuation("trailing"))
