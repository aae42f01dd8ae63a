"""Step 5: let the teacher open the answer.

Paper, section 2: guidance G = F(teacher, prompt), at most m tokens; the student then completes the prompt and G.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from typing import TYPE_CHECKING

import orjson

from gateway.accounting.draft import EngineCall, FailedCall
from gateway.accounting.receipt import BatchFacts
from gateway.accounting.worst_case import TEACHER_RETRIES
from gateway.batching.ticket import Ticket
from gateway.engines.failures import note_failure
from gateway.engines.retry_budget import RetryBudgets
from gateway.errors import (
    EngineError,
    EngineOverloaded,
    EngineRejected,
    GatewayError,
    GuidanceUnavailable,
    InvalidRequest,
    QueueFull,
    TicketUnreadable,
)
from gateway.guidance.ending import EndRule, open_to_end
from gateway.guidance.keep import GrowingKeep
from gateway.pipeline.confidence_probe import STUDENT_CONFIDENT, ConfidenceProbe
from gateway.pipeline.deadlines.deadlines import GuidanceDeadlines
from gateway.pipeline.generation import unread_once_ended
from gateway.pipeline.guidance_request import (
    UNGUIDED,
    Guidance,
    GuidanceStream,
    answered_call,
    build_opening_request,
    guidance_from_reply,
    teacher_input,
)
from gateway.pipeline.retries import RequestRetries
from gateway.policy.projection_size import added_bytes
from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from gateway.accounting.draft import ReceiptBuilder
    from gateway.batching.batcher import Batcher
    from gateway.batching.flights import SingleFlight
    from gateway.batching.ticket import Grant
    from gateway.engines.base import Engine, OpeningReply, OpeningRequest
    from gateway.policy.resolve import GuidancePlan, Plan
    from gateway.protocol.requests import CompletionRequest
    from gateway.runtime.tasks import BackgroundTasks
    from gateway.telemetry.metrics import Metrics

# English has about four bytes to a token; a batch is filled by this, nothing is billed by it.
_BYTES_PER_TOKEN = 4
# Hashing more than this takes milliseconds: a thread does it.
_HASHED_HERE_BYTES = 256_000


class TeacherCall:
    """Asks teachers for openings: each call with a permit of the teacher's batch, identical ones once."""

    def __init__(
        self,
        engines: Mapping[str, Engine],
        batcher: Batcher,
        flights: SingleFlight,
        metrics: Metrics,
        tasks: BackgroundTasks,
        deadlines: GuidanceDeadlines | None = None,
        budgets: RetryBudgets | None = None,
    ) -> None:
        self._engines = engines
        self._batcher = batcher
        self._flights = flights
        self._metrics = metrics
        self._tasks = tasks
        self._deadlines = GuidanceDeadlines() if deadlines is None else deadlines
        self._budgets = budgets or RetryBudgets()
        self._sounding = ConfidenceProbe(engines, metrics)

    async def stream(
        self, plan: Plan, asked: CompletionRequest, draft: ReceiptBuilder
    ) -> AsyncGenerator[str | Guidance, None]:
        """The opening as it is written: pieces that the caller may be shown at once, and at the end all of it.

        Its text begins with what was shown. A teacher that fails after a piece was shown has written a short opening.
        Raises what `open` raises, but never after a piece.
        """
        guidance = plan.guidance
        if guidance is None or not guidance.stream:
            yield await self.open(plan, asked, draft)
            return
        skip = guidance.projection.skip
        heard = GuidanceStream(
            GrowingKeep(skip, guidance.tokens, boundary=guidance.boundary, stop=asked.stop),
            keeps_lead=isinstance(asked, TextRequest),
        )
        # A task of its own: its deadline may not end the caller's work on what was shown.
        opening = self._tasks.spawn("opening", self._open_or_error(plan, asked, draft, heard))
        opening.add_done_callback(lambda _: heard.pieces.put_nowait(""))
        try:
            while piece := await heard.pieces.get():
                yield piece
            guidance_from_reply = opening.result()
        finally:
            opening.cancel()
        if isinstance(guidance_from_reply, GatewayError):
            raise guidance_from_reply
        yield guidance_from_reply

    async def _open_or_error(
        self, plan: Plan, asked: CompletionRequest, draft: ReceiptBuilder, heard: GuidanceStream
    ) -> Guidance | GatewayError:
        try:
            return await self.open(plan, asked, draft, heard)
        except GatewayError as error:
            return error
        finally:
            heard.over = True

    async def open(
        self, plan: Plan, asked: CompletionRequest, draft: ReceiptBuilder, heard: GuidanceStream | None = None
    ) -> Guidance:
        """The opening of the answer. An empty one, with the reason in the draft, when the teacher did not deliver.

        Raises:
            GuidanceUnavailable: it did not, and the policy wants no unguided answer.
            InvalidRequest: likewise, and the teacher blames the request.
            QueueFull: too many requests of the tenant wait, and the policy wants no unguided answer then either.
            StoreUnavailable: Redis is away and the configuration says `reject`.
        """
        guidance = plan.guidance
        if guidance is None:
            draft.unguided = plan.unguided
            return UNGUIDED
        # One moment for all: the caller's timer, the ticket and whoever waits for the same.
        deadline_s = self._deadlines.deadline_s(guidance)
        deadline = asyncio.get_running_loop().time() + deadline_s
        if await self._sounding.is_confident(plan, asked, draft, deadline):
            draft.unguided = STUDENT_CONFIDENT
            return UNGUIDED
        try:
            async with asyncio.timeout_at(deadline):
                reply = await self._ask(plan, guidance, asked, draft, deadline, deadline_s, heard)
        except TimeoutError:
            draft.guided = time.perf_counter()
            self._missed(guidance, deadline_s, draft, heard)
            return self._without(plan, guidance, draft, "teacher_late", None, heard)
        except QueueFull as full:
            draft.guided = time.perf_counter()
            draft.unguided = full.label
            if guidance.reject_when_full:
                raise
            return UNGUIDED
        except TicketUnreadable as unreadable:
            draft.guided = time.perf_counter()
            return self._without(plan, guidance, draft, unreadable.label, None)
        except EngineError as error:
            draft.guided = time.perf_counter()
            if not error.heard:
                draft.teacher = None
            return self._without(plan, guidance, draft, "teacher_" + error.label.removeprefix("engine_"), error, heard)
        opening = guidance_from_reply(plan, guidance, asked, draft, reply, heard)
        return opening if isinstance(opening, Guidance) else self._without(plan, guidance, draft, opening, None)

    async def _ask(
        self,
        plan: Plan,
        guidance: GuidancePlan,
        asked: CompletionRequest,
        draft: ReceiptBuilder,
        deadline: float,
        deadline_s: float,
        heard: GuidanceStream | None,
    ) -> OpeningReply:
        engine = self._engines[guidance.teacher]
        request = build_opening_request(guidance, asked)
        ends = EndRule.of(plan, guidance)
        facts = (guidance.share, engine, request, draft.id, ends)
        ticket = Ticket(
            draft.id,
            tenant=guidance.tenant,
            prompt_tokens=max(1, (asked.size_bytes + added_bytes(guidance.projection, asked)) // _BYTES_PER_TOKEN),
            max_wait_s=guidance.max_wait_s,
            deadline_s=deadline_s,
            weight=guidance.weight,
            work=await asyncio.to_thread(_work, *facts) if asked.size_bytes > _HASHED_HERE_BYTES else _work(*facts),
            cache_ttl_s=guidance.cache_ttl_s,
        )

        def granted(grant: Grant) -> None:
            draft.granted = time.perf_counter()
            draft.batch = BatchFacts(grant.batch_id, grant.batch_size)
            # Until it has answered, nobody knows how much of this it wrote.
            most = guidance.asked_tokens
            draft.teacher = EngineCall(
                guidance.teacher, teacher_input(request), lost_tokens=most, limit_tokens=most, role="guidance"
            )
            draft.running = draft.teacher

        async def ask(grant: Grant) -> OpeningReply:
            retries = min(TEACHER_RETRIES, plan.retries.num_retries)
            bound = RequestRetries(plan, draft, self._budgets, self._metrics)
            batch: str | None = grant.batch_id
            while True:
                try:
                    tell = heard.tell if heard is not None else None
                    return await open_to_end(engine, request, batch, ends, tell)
                except EngineError as error:
                    # Here, since there may be many who hear of it, or nobody any more.
                    note_failure(error, draft.id, self._metrics)
                    # Who is overloaded is not helped by a second call, and there is an answer without.
                    begun = heard is not None and heard.tokens > 0
                    given_up = draft.caller_left or not retries or not error.again
                    if begun or given_up or isinstance(error, EngineOverloaded):
                        raise
                    if not bound.may_retry(error.engine):
                        raise
                    draft.failed.append(FailedCall(error.engine, error.label, draft.teacher if error.heard else None))
                    self._metrics.retries.labels(error.engine, error.label).inc()
                batch = None  # another prompt of the batch may have made its call fail
                retries -= 1
                await asyncio.sleep(plan.retries.backoff_s * (0.5 + random.random() / 2))  # noqa: S311  spreads, hides nothing

        draft.asked = time.perf_counter()
        queue = self._batcher.queue(guidance.teacher)
        try:
            landing = await self._flights.join(queue, ticket, ask, granted, deadline)
        finally:
            draft.running = None
        draft.guided = time.perf_counter()
        reply = landing.reply
        if not landing.shared and draft.shadow_of is None:
            self._deadlines.arrived(
                draft.route,
                guidance,
                draft.guided - draft.asked,
                draft.guided - (draft.granted or draft.asked),
                stopped=reply.finish == "stop" and bool(request.stop),
            )
        unread = unread_once_ended(engine.state.stops_within_s)
        draft.teacher = answered_call(guidance, request, reply, landing.shared, unread)
        return reply

    def _missed(
        self, guidance: GuidancePlan, deadline_s: float, draft: ReceiptBuilder, heard: GuidanceStream | None
    ) -> None:
        """Record late guidance, and tell the caller which setting to change if the route's guidance is often late."""
        if draft.asked is None or draft.guided is None or draft.shadow_of is not None:
            return  # the probe used up the time, or nobody waited
        draft.hint = self._deadlines.missed(
            draft.route,
            guidance,
            deadline_s,
            draft.guided - draft.asked,
            heard.tokens if heard is not None else 0,
            called_s=draft.guided - draft.granted if draft.granted is not None else None,
        )

    def _without(
        self,
        plan: Plan,
        guidance: GuidancePlan,
        draft: ReceiptBuilder,
        reason: str,
        cause: EngineError | None,
        heard: GuidanceStream | None = None,
    ) -> Guidance:
        if heard is not None and heard.shown:
            return self._cut_short(plan, guidance, draft, reason, heard)
        draft.unguided = reason
        if guidance.required and isinstance(cause, EngineRejected) and cause.blames_request:
            # An engine may quote what it read, and of that a part is not the caller's.
            quoted = bool(guidance.projection.shown)
            raise InvalidRequest(
                "This route's teacher cannot take the request." if quoted else cause.message
            ) from cause
        if guidance.required:
            raise GuidanceUnavailable(
                f"The teacher gave no guidance ({reason}), and this route's policy wants no answer without it.",
                retry_after_s=(cause.retry_after_s if cause is not None else None) or 1.0,
            ) from cause
        return UNGUIDED

    @staticmethod
    def _cut_short(
        plan: Plan, guidance: GuidancePlan, draft: ReceiptBuilder, reason: str, heard: GuidanceStream
    ) -> Guidance:
        """What was shown cannot be taken back: the student goes on from there."""
        told = heard.told.getvalue()
        tokens = max(1, round(heard.tokens * len(heard.shown) / len(told)))
        if draft.teacher is not None:
            draft.teacher.text.write(told)
            draft.teacher.lost_tokens = max(0, guidance.asked_tokens - heard.tokens)
        draft.kept_tokens = tokens
        draft.opening = heard.shown
        draft.cut_short = reason
        # A student cannot be asked for nothing.
        whole = "length" if plan.max_tokens is not None and tokens >= plan.max_tokens else None
        return Guidance(heard.shown, "", tokens, whole)


def _work(share: str, engine: Engine, request: OpeningRequest, request_id: str, ends: EndRule | None) -> str:
    """A hash of everything that the guidance depends on, and of who may share it."""
    parts: tuple[object, ...] = (
        share,
        engine.name,
        engine.state.revision or request_id,  # unknown: then nobody else's is the same
        request.messages,
        request.prompt,
        request.max_tokens,
        request.temperature,
        request.top_p,
        request.seed,
        request.stop,
    )
    if ends is not None:
        parts = (*parts, *ends.facts)
    return hashlib.blake2b(orjson.dumps(parts), digest_size=16).hexdigest()
