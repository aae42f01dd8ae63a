"""Step 5: let the teacher open the answer.

Paper, section 2: guidance G = F(teacher, prompt), at most m tokens; the student then completes the prompt and G.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

import orjson

from gateway.batching.ticket import Ticket
from gateway.engines.base import OpeningReply, OpeningRequest
from gateway.engines.failures import note_failure
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
from gateway.guidance.ending import open_to_end
from gateway.guidance.keep import GrowingKeep, keep
from gateway.guidance.projection import added_bytes, teacher_messages, teacher_prompt
from gateway.ledger.draft import Call, FailedCall
from gateway.ledger.receipt import BatchFacts
from gateway.ledger.worst_case import TEACHER_RETRIES
from gateway.protocol import TextRequest
from gateway.sounding import STUDENT_CONFIDENT, Sounding

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from gateway.batching.batcher import Batcher
    from gateway.batching.flights import Flights
    from gateway.batching.ticket import Grant
    from gateway.engines.base import Engine
    from gateway.ledger.draft import Draft
    from gateway.metrics import Metrics
    from gateway.policy.length import Choice
    from gateway.policy.projections import Projection
    from gateway.policy.resolve import GuidancePlan, Plan
    from gateway.protocol import CompletionRequest, Json
    from gateway.tasks import Tasks

# What a teacher may write between the moment in which it is hung up on and the one in which it notices.
_MAY_RUN_ON = 4
# English has about four bytes to a token; a batch is filled by this, nothing is billed by it.
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Opening:
    """How an answer opens.

    Attributes:
        text: the guidance as it is shown and sent; empty when the answer goes unguided.
        owed: the whitespace that followed it in what the teacher wrote.
        tokens: of the teacher's tokens, those in `text`.
        whole: the finish_reason when `text` is the whole answer and no student is called; else None.
    """

    text: str = ""
    owed: str = ""
    tokens: int = 0
    whole: str | None = None


UNGUIDED = Opening()


class _Heard:
    """What a teacher was heard to write while its caller listens, and of that what may be shown already."""

    def __init__(self, keep: GrowingKeep, *, keeps_lead: bool) -> None:
        self.keep = keep
        self._keeps_lead = keeps_lead
        self.told = StringIO()
        self.tokens = 0  # an engine tells of one token at a time, or of a few
        self.shown = ""
        self.pieces: asyncio.Queue[str] = asyncio.Queue()
        """What may be shown, piece by piece; at the end an empty one."""
        self.over = False  # the caller listens no longer: others share the call, and it goes on for them

    def tell(self, piece: str) -> None:
        if self.over:
            return
        self.told.write(piece)
        self.tokens += 1
        if more := self.keep.feed(piece):
            if self._keeps_lead and not self.shown:
                more = _lead(self.told.getvalue()) + more
            self.shown += more
            self.pieces.put_nowait(more)


class Guide:
    """Asks teachers for openings: each call with a permit of the teacher's batch, identical ones once."""

    def __init__(
        self, engines: Mapping[str, Engine], batcher: Batcher, flights: Flights, metrics: Metrics, tasks: Tasks
    ) -> None:
        self._engines = engines
        self._batcher = batcher
        self._flights = flights
        self._metrics = metrics
        self._tasks = tasks
        self._sounding = Sounding(engines, metrics)

    async def stream(self, plan: Plan, asked: CompletionRequest, draft: Draft) -> AsyncGenerator[str | Opening, None]:
        """The opening as it is written: pieces that the caller may be shown at once, and at the end all of it.

        Its text begins with what was shown. A teacher that fails after a piece was shown has written a short opening.
        Raises what `open` raises, but never after a piece.
        """
        guidance = plan.guidance
        if guidance is None or not guidance.stream:
            yield await self.open(plan, asked, draft)
            return
        skip = guidance.projection.skip
        heard = _Heard(
            GrowingKeep(skip, guidance.tokens, boundary=guidance.boundary, stop=asked.stop),
            keeps_lead=isinstance(asked, TextRequest),
        )
        # A task of its own: its deadline may not end the caller's work on what was shown.
        opening = self._tasks.spawn("opening", self._open_or_error(plan, asked, draft, heard))
        opening.add_done_callback(lambda _: heard.pieces.put_nowait(""))
        try:
            while piece := await heard.pieces.get():
                yield piece
            opened = opening.result()
        finally:
            opening.cancel()
        if isinstance(opened, GatewayError):
            raise opened
        yield opened

    async def _open_or_error(
        self, plan: Plan, asked: CompletionRequest, draft: Draft, heard: _Heard
    ) -> Opening | GatewayError:
        try:
            return await self.open(plan, asked, draft, heard)
        except GatewayError as error:
            return error
        finally:
            heard.over = True

    async def open(self, plan: Plan, asked: CompletionRequest, draft: Draft, heard: _Heard | None = None) -> Opening:
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
        deadline = asyncio.get_running_loop().time() + guidance.deadline_s
        if await self._sounding.is_sure(plan, asked, draft, deadline):
            draft.unguided = STUDENT_CONFIDENT
            return UNGUIDED
        try:
            async with asyncio.timeout_at(deadline):
                reply = await self._ask(plan, guidance, asked, draft, deadline, heard)
        except TimeoutError:
            draft.guided = time.perf_counter()
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
        opening = opened(plan, guidance, asked, draft, reply, heard)
        return opening if isinstance(opening, Opening) else self._without(plan, guidance, draft, opening, None)

    async def _ask(
        self,
        plan: Plan,
        guidance: GuidancePlan,
        asked: CompletionRequest,
        draft: Draft,
        deadline: float,
        heard: _Heard | None,
    ) -> OpeningReply:
        engine = self._engines[guidance.teacher]
        request = opening_request(guidance, asked)
        ticket = Ticket(
            draft.id,
            tenant=guidance.tenant,
            prompt_tokens=max(1, (asked.size_bytes + added_bytes(guidance.projection, asked)) // _BYTES_PER_TOKEN),
            max_wait_s=guidance.max_wait_s,
            deadline_s=guidance.deadline_s,
            weight=guidance.weight,
            work=_work(guidance.share, engine, request, draft.id, plan.length),
            cache_ttl_s=guidance.cache_ttl_s,
        )

        def granted(grant: Grant) -> None:
            draft.granted = time.perf_counter()
            draft.batch = BatchFacts(grant.batch_id, grant.batch_size)
            # Until it has answered, nobody knows how much of this it wrote.
            draft.teacher = Call(guidance.teacher, read_by(request), lost_tokens=guidance.asked_tokens)

        # What a projection drops of the beginning is asked for beyond m.
        least = request.max_tokens - guidance.tokens + (plan.length.least if plan.length is not None else 0)

        async def ask(grant: Grant) -> OpeningReply:
            retries = min(TEACHER_RETRIES, plan.retries.num_retries)
            while True:
                try:
                    tell = heard.tell if heard is not None else None
                    return await open_to_end(engine, request, grant.batch_id, plan.length, least, tell)
                except EngineError as error:
                    # Here, since there may be many who hear of it, or nobody any more.
                    note_failure(error, draft.id, self._metrics)
                    # Who is overloaded is not helped by a second call, and there is an answer without.
                    begun = heard is not None and heard.tokens > 0
                    if begun or not retries or not error.again or isinstance(error, EngineOverloaded):
                        raise
                    draft.failed.append(FailedCall(error.engine, error.label, draft.teacher if error.heard else None))
                    self._metrics.retries.labels(error.engine, error.label).inc()
                retries -= 1
                await asyncio.sleep(plan.retries.backoff_s * (0.5 + random.random() / 2))  # noqa: S311  spreads, hides nothing

        draft.asked = time.perf_counter()
        landing = await self._flights.join(self._batcher.queue(guidance.teacher), ticket, ask, granted, deadline)
        draft.guided = time.perf_counter()
        reply = landing.reply
        draft.teacher = Call(
            guidance.teacher,
            read_by(request),
            reply.usage,
            StringIO(reply.text),
            lost_tokens=_MAY_RUN_ON if reply.usage is None and reply.ends_at is not None else 0,
            shared=landing.shared,
            span=reply.span,
        )
        return reply

    def _without(
        self,
        plan: Plan,
        guidance: GuidancePlan,
        draft: Draft,
        reason: str,
        cause: EngineError | None,
        heard: _Heard | None = None,
    ) -> Opening:
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
    def _cut_short(plan: Plan, guidance: GuidancePlan, draft: Draft, reason: str, heard: _Heard) -> Opening:
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
        return Opening(heard.shown, "", tokens, whole)


def opening_request(guidance: GuidancePlan, asked: CompletionRequest) -> OpeningRequest:
    """What the teacher is asked."""
    projection = guidance.projection
    return OpeningRequest(
        max_tokens=guidance.asked_tokens,
        **_read_by_teacher(projection, asked),
        temperature=guidance.temperature,
        top_p=guidance.top_p,
        seed=guidance.seed,
        # A hint is not the answer: what stops the answer need not stop it.
        stop=asked.stop if projection.teacher_may_finish else (),
    )


def opened(
    plan: Plan,
    guidance: GuidancePlan,
    asked: CompletionRequest,
    draft: Draft,
    reply: OpeningReply,
    heard: _Heard | None = None,
) -> Opening | str:
    """What a teacher's reply opens the answer with, written down in the draft; why, where nothing of it is left."""
    may_finish = guidance.projection.teacher_may_finish and guidance.may_answer
    shown = guidance.placement == "prefix"
    cut = reply.finish == "length"
    if heard is not None and heard.tokens:
        found = heard.keep.finish(cut=cut)
    else:
        stop, skip = asked.stop if may_finish or shown else (), guidance.projection.skip
        text = reply.text[: reply.ends_at]
        found = keep(text, skip, guidance.tokens, cut=cut, stop=stop, boundary=guidance.boundary)
    trimmed = found.trimmed
    if not trimmed.text:
        return "guidance_boilerplate" if found.skipped else "guidance_empty"
    tokens = _kept_tokens(reply, trimmed.text)
    ended = not found.cut and not trimmed.dropped
    whole: str | None = None
    if (trimmed.stopped and (may_finish or shown)) or (ended and may_finish):
        whole = "stop"
    elif shown and plan.max_tokens is not None and tokens >= plan.max_tokens:
        whole = "length"
    draft.kept_tokens = tokens
    draft.ended_at = plan.length.stop_at if plan.length is not None and reply.ends_at is not None else None
    draft.complete = whole == "stop"
    # An answer that is whole is shown to its end, blanks and all; one that goes on leaves them to the student.
    text = trimmed.text + trimmed.owed if whole == "stop" else trimmed.text
    if isinstance(asked, TextRequest) and shown:
        # As it was shown, where it was: a stream's pieces and its last word need not begin alike.
        text = _lead(heard.told.getvalue() if heard is not None and heard.tokens else reply.text) + text
    draft.opening = text
    return Opening(text, trimmed.owed, tokens, whole)


def _read_by_teacher(projection: Projection, asked: CompletionRequest) -> dict[str, Any]:
    """What the teacher reads, as an OpeningRequest has it."""
    if isinstance(asked, TextRequest):
        assert asked.prompt is not None, "resolve() leaves several prompts, and token ids, unguided"
        return {"prompt": teacher_prompt(projection, asked.prompt)}
    return {"messages": teacher_messages(projection, asked.messages)}


def _lead(text: str) -> str:
    """The blanks with which a text begins. In a chat the template puts them; after a raw prompt they matter."""
    return text[: len(text) - len(text.lstrip())]


def read_by(request: OpeningRequest) -> Sequence[Json]:
    """What the teacher reads, for a count of our own."""
    return request.messages if request.messages is not None else [{"role": "user", "content": request.prompt}]


def _kept_tokens(reply: OpeningReply, kept: str) -> int:
    """The teacher's tokens before the seam: its own count, in proportion to the text that was kept."""
    if reply.usage is None:
        return max(1, len(kept.encode()) // _BYTES_PER_TOKEN)
    written = reply.usage.output_tokens
    if len(kept) >= len(reply.text.strip()):
        return written
    return max(1, min(written, round(written * len(kept) / len(reply.text))))


def _work(share: str, engine: Engine, request: OpeningRequest, request_id: str, length: Choice | None) -> str:
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
    if length is not None and length.stop_at != "none":
        parts = (*parts, length.stop_at, length.least)
    return hashlib.blake2b(orjson.dumps(parts), digest_size=16).hexdigest()
