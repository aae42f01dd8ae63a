"""Stream one answer from the students: attempts before the first text, and continuation of a stream that breaks later.

A call that fails before its first text is repeated by the same engine or the next. A stream that breaks later is
continued by the next engine (`broken_answer.py`). An answer that cannot be continued starts anew if nothing was sent.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

from gateway.errors import EngineError, EngineRejected, InvalidRequest
from gateway.pipeline.broken_answer import DEFAULT_ENCODING, BrokenAnswer, may_continue, sent_text, written_tokens
from gateway.pipeline.prefill_echo import prefill_echo
from gateway.pipeline.request_deadline import RequestDeadline, left_s, within
from gateway.pipeline.retries import retry_or_raise
from gateway.pipeline.student_engines import RESTARTED, Calling, drop_prefix, may_refuse_prefix
from gateway.pipeline.student_request import build_seam, build_student_request, tokens_before
from gateway.pipeline.student_stream import StudentStream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.pipeline.generation import GenerationTracker
    from gateway.pipeline.guidance_request import Guidance
    from gateway.pipeline.stream import StreamRelay
    from gateway.pipeline.student_engines import StudentEngines
    from gateway.pipeline.student_request import StudentRequest
    from gateway.policy.plan import StudentPlan
    from gateway.protocol.content_run import ChunkGroup
    from gateway.protocol.requests import CompletionRequest


class StreamedAnswer:
    """The attempts of one streamed answer. `relay` converts the chunks of all engines to the caller's."""

    def __init__(
        self,
        students: StudentEngines,
        request: CompletionRequest,
        guidance: Guidance,
        relay: StreamRelay,
        builder: ReceiptBuilder,
    ) -> None:
        self._students, self._request, self._guidance = students, request, guidance
        self._relay, self._builder = relay, builder
        self._retries = students.new_retries(builder)
        self._student = self._retries.student
        self._placed = False  # whether the student's request ends with a prefix
        self._has_output = False  # whether the current call sent something that the caller gets
        self._generation: GenerationTracker | None = None  # of the current call
        self._broken: BrokenAnswer | None = None  # the answer so far, after a call that failed within it
        self._deadline: RequestDeadline | None = None  # set once a call failed

    async def groups(self) -> AsyncGenerator[ChunkGroup, None]:
        """Yield the guidance and the chunks, grouped as they arrived. Raises EngineErrors and InvalidRequest."""
        builder = self._builder
        while True:
            if opened := self._join():
                builder.mark_first_token()
                yield opened
            try:
                engine = builder.engine_set.by_name[self._student.engine]
                if engine.must_wait(builder.tenant):
                    await engine.wait_for_slot(left_s(self._deadline))
                stream, generation, student_request = self._begin(self._student)
                called = engine.stream(student_request.body, student_request.prefill)
                with Calling(builder, generation, self._students.metrics):
                    async with aclosing(within(self._deadline, engine.name, called)) as groups:
                        async for chunks in groups:
                            if relayed := stream.read(chunks):
                                self._has_output = True
                                began = time.perf_counter()
                                yield relayed
                                generation.hold(began, time.perf_counter())
                            if stream.done:
                                break
                        else:
                            generation.finish()
                self._count_continued("ok")
                return
            except EngineError as error:
                await self._recover(error)

    def _join(self) -> ChunkGroup:
        """Set the seam before the current student's text. Return the guidance that can be sent now."""
        plan, relay, broken = self._builder.plan, self._relay, self._broken
        self._student = student = self._retries.student
        self._has_output = False
        seam_join, reasoning_filter = build_seam(plan, student, self._request, self._guidance, broken)
        self._placed = seam_join is not None
        opened: ChunkGroup = ()
        if broken is None:
            if plan.names_engine:
                relay.name_model(student.engine)
            opened = relay.join(seam_join, reasoning_filter)
        else:
            relay.resume(seam_join, reasoning_filter, len(broken.sent))
        if relay.has_sent_guidance:
            self._retries.keep_only(lambda one: one.continuation is not None and not one.continuation.writes_again)
        return opened

    def _begin(self, student: StudentPlan) -> tuple[StudentStream, GenerationTracker, StudentRequest]:
        """Record a streamed call that starts now. Return the reader of its chunks."""
        request, guidance, broken, builder = self._request, self._guidance, self._broken, self._builder
        student_request = build_student_request(builder.plan, student, request, guidance, broken)
        # The receipt needs usage even if the caller does not.
        options = {**(request.body.get("stream_options") or {}), "include_usage": True}
        joined = broken is not None or (guidance.text and request.stop)
        if joined and student.counts_chunks:
            options["continuous_usage_stats"] = True  # a stop string across the seam ends the call before its usage
        student_request.body.update(stream=True, stream_options=options)
        generation = self._students.begin(student, request, guidance, builder, student_request, broken)
        self._generation = generation
        echo = prefill_echo(student, request, stream=True)
        return StudentStream(generation, echo, self._relay, builder), generation, student_request

    async def _recover(self, error: EngineError) -> None:
        """Return when the next attempt is due. Raise the error, in the caller's terms, if there is none."""
        builder, retries, relay = self._builder, self._retries, self._relay
        self._deadline = deadline = self._deadline or RequestDeadline.of(builder)
        self._count_continued("failed")
        larger = self._students.keep_larger(builder, retries, error)
        if self._has_output:
            if (longer := await self._continuation(error, deadline)) is not None:
                self._broken = longer
                return
            if self._broken is not None or not relay.restart():
                if isinstance(error, EngineRejected) and error.is_filtered:
                    raise InvalidRequest(error.message, code=error.caller_code) from error
                raise error
        if self._placed and not larger and not relay.has_sent_guidance and may_refuse_prefix(error):
            self._guidance = drop_prefix(builder, error)
        else:
            metrics, continued = self._students.metrics, self._broken is not None
            await retry_or_raise(retries, error, builder, metrics, deadline, placed=self._placed, continued=continued)

    async def _continuation(self, error: EngineError, deadline: RequestDeadline) -> BrokenAnswer | None:
        """Return the answer so far when the next call is due; None if no engine can continue the answer."""
        builder, broken, generation = self._builder, self._broken, self._generation
        plan, student, request = builder.plan, self._student, self._request
        if builder.caller_left or generation is None or not may_continue(request, self._relay, error):
            return None
        seam, reasoning_filter = build_seam(plan, student, request, self._guidance, broken)
        if broken is None:
            first = seam.initial_text if seam is not None else ""
            in_prompt = bool(self._guidance.text) and seam is None
            broken = BrokenAnswer(first, tokens_before(plan, student, self._guidance), in_prompt)
        if (sent := sent_text(broken.sent, generation.text, seam, reasoning_filter)) is None:
            return None
        encoding = builder.engine_set.encodings.get(student.engine, DEFAULT_ENCODING)
        tokens = await written_tokens(generation, encoding)
        longer = broken.longer(sent, tokens, request)
        if plan.max_tokens is not None and longer.max_tokens >= plan.max_tokens:
            return None

        engines = builder.engine_set.by_name

        def can_continue(one: StudentPlan) -> bool:
            return longer.suits(one) and engines[one.engine].refusal(builder.tenant) is None

        if deadline.left_s <= 0 or (pause_s := self._retries.continuation_pause_s(error, can_continue)) is None:
            return None
        if pause_s > deadline.left_s:
            return None
        if self._relay.restarted:
            builder.drop_guidance(RESTARTED)
        builder.continue_answer(tokens.likely, generation.input_tokens)
        builder.record_failure(error)
        self._students.metrics.retries.labels(student.engine, error.label).inc()
        await asyncio.sleep(pause_s)
        return longer

    def _count_continued(self, outcome: str) -> None:
        if self._broken is not None:
            self._students.metrics.streams_continued.labels(self._student.engine, outcome).inc()
