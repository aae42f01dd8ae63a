"""Step 6: call a student to complete the answer. In mode teacher, the teacher takes this role.

The caller's body is sent unchanged except for the plan's changes. Paper, section 2: the student continues the prompt
and the guidance, with the user's own sampling settings. The policy places the guidance at the beginning of the answer
(placement prefix) or in the prompt (context, input). A call that fails before its first text was sent is retried, by
the same engine or the next. The guidance is kept. `streamed_answer.py` describes a stream that breaks later.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from gateway.engines.replies import bad_reply
from gateway.errors import EngineError
from gateway.guidance.seam import ends_within_stop
from gateway.pipeline.collected_reply import CollectingRelay
from gateway.pipeline.prefill_echo import prefill_echo
from gateway.pipeline.request_deadline import RequestDeadline, left_s
from gateway.pipeline.retries import retry_or_raise
from gateway.pipeline.stream import join_reply
from gateway.pipeline.streamed_answer import StreamedAnswer
from gateway.pipeline.student_engines import RESTARTED, Calling, StudentEngines, drop_prefix, may_refuse_prefix
from gateway.pipeline.student_request import build_seam, build_student_request, continuation_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.pipeline.guidance_request import Guidance
    from gateway.pipeline.stream import StreamRelay
    from gateway.policy.plan import StudentPlan
    from gateway.protocol.body import Json
    from gateway.protocol.content_run import ChunkGroup
    from gateway.protocol.requests import CompletionRequest

MAX_REPLY_CHARS = 8_000_000
"""Most characters of a collected reply."""
# Fields that engines reject or ignore in a stream: vLLM the first two, OpenAI the formats of `audio` except pcm16.
_NOT_STREAMED = ("prompt_logprobs", "use_beam_search", "audio")


class StudentCall(StudentEngines):
    """Call the engines that complete answers."""

    __slots__ = ()

    async def complete(self, request: CompletionRequest, guidance: Guidance, builder: ReceiptBuilder) -> Json:
        """Return a student's reply, with shown guidance in front. Raises EngineErrors and InvalidRequest.

        If a student rejects the request with the prefix, which the caller did not send, it gets the request without it.
        A content filter would reject that, too. A request that is too long goes to a larger student first.

        The call is streamed if the student's engine is set to `always_stream`, unless the request is one that engines
        reject as a stream. It is also streamed if the guidance ends with the beginning of a stop string. Only the
        gateway sees that string, and ends the call with the answer.
        """
        plan = builder.plan
        student, retries = plan.students[0], None
        streams = builder.engine_set.by_name[student.engine].always_streams and _may_be_streamed(request)
        if not streams and ends_within_stop(guidance.text, request.stop):
            streams = continuation_of(plan, student, guidance) is not None
        if streams:
            return await self._complete_streamed(request, guidance, builder)
        deadline: RequestDeadline | None = None  # set once a call failed
        while True:
            try:
                reply = await self._complete(student, request, guidance, builder, deadline)
                break
            except EngineError as error:
                retries = retries or self.new_retries(builder)
                deadline = deadline or RequestDeadline.of(builder)
                placed = continuation_of(plan, student, guidance) is not None
                larger = self.keep_larger(builder, retries, error)
                if placed and not larger and may_refuse_prefix(error):
                    guidance = drop_prefix(builder, error)
                else:
                    await retry_or_raise(retries, error, builder, self.metrics, deadline, placed=placed)
                    student = retries.student
        if not guidance.text:
            return reply
        seam_join, reasoning_filter = build_seam(plan, student, request, guidance)
        if seam_join is not None:
            join_reply(reply, seam_join, reasoning_filter)
            if seam_join.restarted:
                builder.drop_guidance(RESTARTED)
        return reply

    async def _complete_streamed(self, request: CompletionRequest, guidance: Guidance, builder: ReceiptBuilder) -> Json:
        relay = CollectingRelay()
        try:
            async with aclosing(self.stream(request, guidance, relay, builder)) as groups:
                async for chunks in groups:
                    relay.collect(chunks)
                    if relay.size > MAX_REPLY_CHARS:
                        raise bad_reply(builder.answering_engine, f"a reply of more than {MAX_REPLY_CHARS} characters")
            relay.collect(relay.end())
        finally:
            if relay.restarted:
                builder.drop_guidance(RESTARTED)
        return relay.reply()

    async def _complete(
        self,
        student: StudentPlan,
        request: CompletionRequest,
        guidance: Guidance,
        builder: ReceiptBuilder,
        deadline: RequestDeadline | None,
    ) -> Json:
        if (engine := builder.engine_set.by_name[student.engine]).must_wait(builder.tenant):
            await engine.wait_for_slot(left_s(deadline))
        student_request = build_student_request(builder.plan, student, request, guidance)
        generation = self.begin(student, request, guidance, builder, student_request)
        with Calling(builder, generation, self.metrics):
            called = engine.complete(student_request.body, student_request.prefill)
            reply = await (called if deadline is None else deadline.bound(engine.name, called))
            generation.read_reply(reply)
            if (echo := prefill_echo(student, request, stream=False)) is not None:
                echo.reply(reply)
        return reply

    def stream(
        self, request: CompletionRequest, guidance: Guidance, relay: StreamRelay, builder: ReceiptBuilder
    ) -> AsyncGenerator[ChunkGroup, None]:
        """Yield the guidance and a student's chunks, converted by `relay`. Chunks that arrived together form one group.

        Once text was sent, the answer cannot do without it: only students that can continue it are called. Raises
        EngineErrors and InvalidRequest.
        """
        return StreamedAnswer(self, request, guidance, relay, builder).groups()


def _may_be_streamed(request: CompletionRequest) -> bool:
    """Return whether an engine can stream the answer. The best of several answers is known at their end."""
    if request.generated_choices > request.choices:
        return False
    return all(request.body.get(name) is None or request.body[name] is False for name in _NOT_STREAMED)
