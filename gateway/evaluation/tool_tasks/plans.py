"""Plans of the teacher for tasks, requested and placed as by a gateway with `guidance.tools: plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import orjson

from gateway.errors import EngineError
from gateway.evaluation.setting import STUDENT, TEACHER
from gateway.guidance.keep import keep
from gateway.pipeline.guidance_request import build_teacher_request
from gateway.pipeline.student_request import place_in_messages
from gateway.policy.plan import EngineSnapshot
from gateway.policy.resolve import resolve
from gateway.policy.schema import Route, TenantPolicy
from gateway.protocol.chat import parse_chat

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.engines.base import TeacherRequest
    from gateway.evaluation.generations import TeacherText
    from gateway.protocol.body import Json


class WrittenPlan(NamedTuple):
    """A plan as the student gets it, and the teacher's call: input, output and cached input tokens, and seconds."""

    text: str
    counts: tuple[int, int, int]
    seconds: float


class PlanMissing(Exception):
    """The teacher has not written the plan of this turn."""

    def __init__(self, request: TeacherRequest) -> None:
        super().__init__("the teacher has not written the plan of this turn")
        self.request = request


class Planner:
    """Writes plans of at most `tokens` tokens, and places them in the student's requests."""

    def __init__(self, tokens: int) -> None:
        guidance = {"tools": "plan", "tool_plan_tokens": tokens}
        route = {"model": "eval", "mode": "guided", "teacher": TEACHER, "student": STUDENT, "guidance": guidance}
        self._route = Route.model_validate(route)
        self._policy = TenantPolicy(tenant="eval", routes=(self._route,))
        self._written: dict[bytes, WrittenPlan | EngineError] = {}

    async def write(self, request: TeacherRequest, generate: Callable[[], Awaitable[TeacherText]]) -> None:
        """Store the plan for this request; an error fails the tasks that need the plan."""
        try:
            written = await generate()
        except EngineError as error:
            self._written[_key(request)] = error
            return
        reply = written.truncated(request.max_tokens, ())
        assert reply is not None, "the text is at least as long as requested"
        boundary = self._route.guidance.boundary
        kept = keep(reply.text, None, request.max_tokens, cut=reply.finish == "length", stop=(), boundary=boundary)
        output_tokens = reply.usage.output_tokens if reply.usage is not None else written.output_tokens
        counts = written.input_tokens, output_tokens, written.cached_tokens
        self._written[_key(request)] = WrittenPlan(kept.trimmed.text, counts, written.seconds)

    def place(self, body: Json) -> tuple[Json, WrittenPlan]:
        """Return the student's request with the plan of its turn, and the plan.

        Raises:
            PlanMissing: the plan is not written yet.
            EngineError: the teacher did not write it.
        """
        sent = parse_chat(orjson.dumps({"model": "eval", **body}))
        guidance = resolve(self._policy, self._route, sent, lambda _: EngineSnapshot(None)).guidance
        assert guidance is not None, "a task offers tools, and no field of its requests excludes a plan"
        request = build_teacher_request(guidance, sent)
        plan = self._written.get(_key(request))
        if plan is None:
            raise PlanMissing(request)
        if isinstance(plan, EngineError):
            raise plan
        if not plan.text:
            return body, plan  # a gateway reports `guidance_empty`
        return {**body, "messages": place_in_messages(guidance, body["messages"], plan.text)}, plan


def _key(request: TeacherRequest) -> bytes:
    return orjson.dumps(request.messages)
