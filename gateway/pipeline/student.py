"""Step 6: let a finisher (a student; in mode teacher, the teacher) complete the answer.

The caller's body goes out as it came, but for what the plan changes. Paper, section 2: the student continues the
prompt and the guidance, with the user's own sampling settings. A call that fails before its first word was sent on is
made again, by the same engine or the next, and the guidance that was written is kept.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import TYPE_CHECKING

from gateway.accounting.draft import EngineCall
from gateway.engines.failures import note_failure
from gateway.engines.retry_budget import RetryBudgets
from gateway.errors import EngineError, EngineRejected
from gateway.pipeline.generation import GenerationTracker
from gateway.pipeline.guidance_request import UNGUIDED
from gateway.pipeline.prefill_echo import prefill_echo
from gateway.pipeline.retries import RequestRetries, Retries, retry_or_raise
from gateway.pipeline.stream import join_reply
from gateway.pipeline.student_request import build_student_request, is_prefix, seam, thoughts, writes_again
from gateway.policy.resolve import EngineSnapshot
from gateway.protocol.messages import text_of
from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from types import TracebackType

    from gateway.accounting.draft import ReceiptBuilder
    from gateway.engines.guard import GuardedEngine
    from gateway.pipeline.guidance_request import Guidance
    from gateway.pipeline.stream import StreamRelay
    from gateway.pipeline.student_request import StudentRequest
    from gateway.policy.resolve import Plan, StudentPlan
    from gateway.protocol.body import Json
    from gateway.protocol.requests import CompletionRequest
    from gateway.telemetry.metrics import Metrics


RESTARTED = "student_started_anew"
"""Why an answer is unguided whose student was told to begin with the opening, and began otherwise."""


class StudentCall:
    """Calls the engines that complete answers."""

    def __init__(
        self, engines: Mapping[str, GuardedEngine], metrics: Metrics, budgets: RetryBudgets | None = None
    ) -> None:
        self._engines = engines
        self._metrics = metrics
        self._budgets = budgets or RetryBudgets()

    def engine_snapshot(self, engine: str, tenant: str = "") -> EngineSnapshot:
        """Return what is known of an engine now, for a tenant."""
        guarded = self._engines[engine]
        state = guarded.state
        return EngineSnapshot(
            state.continuation, guarded.rests_for(tenant), state.reasoning, takes_prompts=state.takes_prompts
        )

    def check_available(self, plan: Plan, draft: ReceiptBuilder) -> None:
        """Check that a finisher can use the guidance. Call it before the teacher.

        Raises CircuitOpen if every finisher refuses the tenant's calls now.
        """
        if plan.guidance is None:
            return
        refusals = [self._engines[one.engine].refusal(draft.tenant) for one in plan.finishers]
        resting = [one for one in refusals if one is not None]
        if resting and len(resting) == len(refusals):
            for one in resting:
                note_failure(one, draft.id, self._metrics)
            raise min(resting, key=lambda one: one.retry_after_s or 0.0)

    async def complete(self, plan: Plan, asked: CompletionRequest, opening: Guidance, draft: ReceiptBuilder) -> Json:
        """A finisher's reply, with shown guidance in front. Raises EngineErrors and InvalidRequest.

        Where one refuses the request with the opening, which the caller did not send, it gets it without.
        """
        attempts = self._attempts(plan, draft)
        while True:
            finisher = attempts.finisher
            try:
                reply = await self._complete(plan, finisher, asked, opening, draft)
                break
            except EngineError as error:
                placed = is_prefix(plan, finisher, opening)
                if placed and isinstance(error, EngineRejected) and error.blames_request:
                    draft.set_aside(plan, error)
                    draft.drop_guidance("student_refused_prefix")
                    opening = UNGUIDED
                else:
                    await retry_or_raise(attempts, error, plan, draft, self._metrics, placed=placed)
        joint = seam(plan, finisher, asked, opening)
        if joint is not None:
            join_reply(reply, joint, thoughts(finisher, opening))
            if joint.restarted:
                draft.drop_guidance(RESTARTED)
        return reply

    async def _complete(
        self, plan: Plan, finisher: StudentPlan, asked: CompletionRequest, opening: Guidance, draft: ReceiptBuilder
    ) -> Json:
        sent = build_student_request(plan, finisher, asked, opening)
        generation = self._begin(plan, finisher, asked, opening, draft, sent)
        with _Calling(plan, draft, generation, self._metrics):
            reply = await self._engines[finisher.engine].complete(sent.body, sent.prefill)
            generation.read_reply(reply)
            if (echo := prefill_echo(finisher, asked, stream=False)) is not None:
                echo.reply(reply)
        return reply

    async def stream(
        self, plan: Plan, asked: CompletionRequest, opening: Guidance, relay: StreamRelay, draft: ReceiptBuilder
    ) -> AsyncGenerator[list[Json], None]:
        """The opening, and a finisher's chunks as `relay` turns them into the caller's, those together that came so.

        Raises EngineErrors and InvalidRequest.

        Once the opening has left there is no going back to an answer without it: only who can go on with it is asked.
        """
        attempts = self._attempts(plan, draft)
        while True:
            finisher = attempts.finisher
            joint = seam(plan, finisher, asked, opening)
            if opened := relay.join(joint, thoughts(finisher, opening) if joint is not None else None):
                draft.saw_first_token()
                yield opened
            if relay.opened:
                attempts.only(_continues)
            begun = False
            try:
                async with aclosing(self._stream(plan, finisher, asked, opening, relay, draft)) as groups:
                    async for chunks in groups:
                        begun = True
                        yield chunks
                return
            except EngineError as error:
                if begun:
                    raise
                await retry_or_raise(attempts, error, plan, draft, self._metrics, placed=joint is not None)

    async def _stream(
        self,
        plan: Plan,
        finisher: StudentPlan,
        asked: CompletionRequest,
        opening: Guidance,
        relay: StreamRelay,
        draft: ReceiptBuilder,
    ) -> AsyncGenerator[list[Json], None]:
        sent = build_student_request(plan, finisher, asked, opening)
        # The receipt wants usage, whether the caller does or not.
        sent.body["stream_options"] = {**(asked.body.get("stream_options") or {}), "include_usage": True}
        generation = self._begin(plan, finisher, asked, opening, draft, sent)
        echo = prefill_echo(finisher, asked, stream=True)
        with _Calling(plan, draft, generation, self._metrics):
            async with aclosing(self._engines[finisher.engine].stream(sent.body, sent.prefill)) as groups:
                async for chunks in groups:
                    relayed = []
                    now = time.perf_counter()
                    for chunk in chunks:
                        generation.read(chunk, now)
                        if echo is not None:
                            echo.chunk(chunk)
                        if draft.first_token is None and _says(chunk):
                            draft.saw_first_token()
                        if (one := relay.feed(chunk)) is not None:
                            relayed.append(one)
                        if relay.done:
                            break
                    if relayed:
                        yield relayed
                    if relay.done or generation.stopped:
                        return
            generation.finish()

    def _begin(
        self,
        plan: Plan,
        finisher: StudentPlan,
        asked: CompletionRequest,
        opening: Guidance,
        draft: ReceiptBuilder,
        sent: StudentRequest,
    ) -> GenerationTracker:
        """Write down the call that is made now. Raises ConnectionResetError where the caller has left meanwhile."""
        if draft.caller_left:
            raise ConnectionResetError("The caller disconnected.")
        draft.running = call = EngineCall(finisher.engine, sent.reads)
        _set_call(plan, draft, call)
        if draft.kept_tokens:
            draft.placed = _placement(plan, finisher, opening)
            draft.rewritten = draft.placed == "prefix" and writes_again(finisher)
        return GenerationTracker(
            call,
            limit=sent.body.get(asked.limit_field),
            choices=asked.choices,
            generated_choices=asked.generated_choices,
            stops_within_s=self._engines[finisher.engine].state.stops_within_s,
            preface=_preface(finisher, asked, sent),
            now=time.perf_counter(),
        )

    def _attempts(self, plan: Plan, draft: ReceiptBuilder) -> Retries:
        retries = RequestRetries(plan, draft, self._budgets, self._metrics)
        return Retries(plan.finishers, plan.retries, retries)


class _Calling:
    """The context of a finisher's call. It counts a failure, and removes a call that the engine did not receive."""

    __slots__ = ("_draft", "_generation", "_metrics", "_plan")

    def __init__(self, plan: Plan, draft: ReceiptBuilder, generation: GenerationTracker, metrics: Metrics) -> None:
        self._plan = plan
        self._draft = draft
        self._generation = generation
        self._metrics = metrics

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, EngineError):
            note_failure(error, self._draft.id, self._metrics)
            if not error.heard:
                _set_call(self._plan, self._draft, None)
        self._draft.running = None
        self._generation.close(time.perf_counter())


def _continues(finisher: StudentPlan) -> bool:
    return finisher.continuation is not None and not finisher.continuation.writes_again


def _preface(finisher: StudentPlan, asked: CompletionRequest, sent: StudentRequest) -> str | None:
    """Text that the engine may repeat before its own; None: more than can be told here."""
    echo = bool(asked.body.get("echo"))
    if isinstance(asked, TextRequest):
        return None if echo else ""
    if sent.prefill is not None:
        return sent.prefill.text if finisher.continuation is None or finisher.continuation.echo or echo else ""
    last = asked.messages[-1]  # some engines repeat a caller's prefill
    return text_of(last.get("content")) or "" if last["role"] == "assistant" else ""


def _placement(plan: Plan, finisher: StudentPlan, opening: Guidance) -> str:
    if is_prefix(plan, finisher, opening):
        return "prefix"
    return "input" if plan.guidance is not None and plan.guidance.placement == "input" else "context"


def _set_call(plan: Plan, draft: ReceiptBuilder, call: EngineCall | None) -> None:
    if plan.mode == "teacher":
        draft.teacher = call
    else:
        draft.student = call


def _says(chunk: Json) -> bool:
    return any(text_of((choice.get("delta") or {}).get("content")) for choice in chunk["choices"])
