"""The quality guard: beside a sample of guided answers, what each engine alone would have answered, and a comparison.

How far the guided answer agrees with the teacher's says what callers get; how far the student's does says what they
would get without guidance. The difference is what guidance is worth. Nobody sees the answers: they are compared and
dropped. What was spent has its receipts.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from decimal import Decimal
from io import StringIO
from typing import TYPE_CHECKING

from msgspec import structs
from redis.exceptions import RedisError

from gateway.errors import GatewayError, Overloaded
from gateway.pipeline.guidance_request import UNGUIDED
from gateway.pipeline.shadow import without_streaming
from gateway.policy.resolve import NO_RETRIES
from gateway.protocol.messages import text_of
from gateway.quality.comparison import Comparison
from gateway.quality.judging import grade_in, grading
from gateway.quality.tally import QualityTally, length_of
from gateway.scoring.agreement import agreement

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gateway.accounting.draft import ReceiptBuilder
    from gateway.accounting.ledger import Ledger
    from gateway.pipeline.admission import Admission
    from gateway.pipeline.student import StudentCall
    from gateway.policy.book import Caller
    from gateway.policy.resolve import Plan, QualityPlan
    from gateway.protocol.body import Json
    from gateway.protocol.requests import CompletionRequest
    from gateway.quality.book import QualityStore
    from gateway.redis.client import RedisClient
    from gateway.runtime.tasks import BackgroundTasks
    from gateway.telemetry.metrics import Metrics
    from gateway.telemetry.tracing import Tracing

MAX_ANSWER_CHARS = 32_768
"""Of one answer: what is longer is not compared."""
MAX_ANSWER_TOKENS = 4_096
"""What an engine may write for a comparison where neither the caller nor the route sets a limit."""
_GUIDED = frozenset({"guided", "teacher_complete"})


class AnswerBuffer:
    """The words of one answer as they go out to its caller."""

    def __init__(self) -> None:
        self._text = StringIO()
        self._complete_text = True

    def add(self, replies: Iterable[Json]) -> None:
        """A whole reply, or chunks of one."""
        for reply in replies:
            for choice in reply["choices"]:
                message = choice.get("delta") or choice.get("message") or {}
                self._text.write(text_of(message.get("content")) or choice.get("text") or "")
                if self._text.tell() > MAX_ANSWER_CHARS:
                    self._text, self._complete_text = StringIO(), False

    @property
    def text(self) -> str | None:
        """All of it; None where there is nothing, or too much."""
        return self._text.getvalue() or None if self._complete_text else None


def answer_buffer_for(plan: Plan) -> AnswerBuffer | None:
    """What hears an answer that may be compared; None where nothing of it is to be kept."""
    return AnswerBuffer() if plan.quality is not None else None


@dataclass(frozen=True, slots=True)
class _Sample:
    """One guided answer that is compared: who was served it, for what, and what it says."""

    source: ReceiptBuilder
    request: CompletionRequest
    caller: Caller
    answer: str
    quality: QualityPlan


class _SampleSkipped(Exception):
    """A comparison that cannot be made, and what it counts as."""

    def __init__(self, result: str) -> None:
        super().__init__(result)
        self.result = result


class QualitySampler:
    """Compares, at most `most` answers at a time in this process; those beyond are dropped."""

    def __init__(
        self,
        student_call: StudentCall,
        admission: Admission,
        ledger: Ledger,
        book: QualityStore,
        client: RedisClient,
        metrics: Metrics,
        tasks: BackgroundTasks,
        *,
        max_in_flight: int,
        tracing: Tracing | None = None,
    ) -> None:
        self._student_call = student_call
        self._admission = admission
        self._ledger = ledger
        self._book = book
        self._client = client
        self._metrics = metrics
        self._tasks = tasks
        self._max_in_flight = max_in_flight
        self._tracing = tracing
        self._in_flight: Counter[tuple[str, str]] = Counter()

    def start(
        self, source: ReceiptBuilder, request: CompletionRequest, caller: Caller, answer_buffer: AnswerBuffer
    ) -> None:
        """Begin to compare an answer that its caller has; only where it was guided."""
        quality, answer = source.plan.quality, answer_buffer.text
        if quality is None or source.mode not in _GUIDED:
            return
        route = source.tenant, source.route
        busy = self._in_flight.total() >= self._max_in_flight or self._in_flight[route] >= quality.rule.max_in_flight
        if answer is None or busy:
            self._count("dropped")
        elif source.budget is not None:
            self._count("refused")  # what is left of a budget past its soft line is for callers
        else:
            self._in_flight[route] += 1
            sample = _Sample(source, without_streaming(request), caller, answer, quality)
            task = self._tasks.spawn(f"{source.id}-quality", self._run_counted(sample))
            task.add_done_callback(lambda _: self._release(route))

    def _release(self, route: tuple[str, str]) -> None:
        self._in_flight[route] -= 1
        if not self._in_flight[route]:
            del self._in_flight[route]

    def _count(self, result: str) -> None:
        self._metrics.quality_samples.labels(result).inc()

    async def _run_counted(self, sample: _Sample) -> None:
        result = "refused"  # there was no place
        try:
            # One place for all of it: a drain waits for the whole, and no caller's place is asked for a second time.
            async with self._admission.cancel_on_drain():
                with self._admission.slot(sample.caller):
                    result = "dropped"  # unless it ends before a shutdown cuts it, which is no engine's failure
                    await self._compare(sample)
                    result = "made"
        except _SampleSkipped as skipped:
            result = skipped.result
        except Overloaded:
            pass  # what was begun has its receipt
        except Exception:
            result = "failed"
            raise
        finally:
            self._count(result)

    async def _compare(self, sample: _Sample) -> None:
        """Ask both engines, one after the other: nobody waits. Raises _Ended."""
        teacher = await self._run(sample, sample.quality.teacher, sample.request, "shadow-teacher", measures=True)
        student = await self._run(sample, _student_alone(sample.source), sample.request, "shadow-student")
        guided = await self._agreement(sample, sample.answer, teacher, "guided")
        alone = await self._agreement(sample, student, teacher, "student")
        source = sample.source
        length = length_of(source.kept_tokens)
        tally = QualityTally.of(guided, alone)
        comparison = Comparison(
            id=source.id,
            created=source.created,
            tenant=source.tenant,
            compare=sample.quality.rule.compare,
            length=length,
            route=source.route,
            guided=tally.guided,
            student=tally.student,
        )
        with self._convert_redis_errors():
            await self._book.add(comparison)
        # Behind the row, so that both tell of the same comparisons.
        series = self._metrics.series
        labels = series.tenant(source.tenant), series.route(source.tenant, source.route)
        for pair, score in (("guided_teacher", guided), ("student_teacher", alone)):
            self._metrics.quality_agreement.labels(*labels, pair, length).observe(score)

    async def _agreement(self, sample: _Sample, answer: str, teacher: str, answer_name: str) -> float:
        rule, judge = sample.quality.rule, sample.quality.judge
        if judge is not None:
            request = grading(sample.request, answer, teacher)
            score = grade_in(await self._run(sample, judge, request, f"shadow-judge-{answer_name}"))
        else:
            assert rule.compare != "judge", "the schema wants a judge then"
            # Thousands of words take milliseconds.
            score = await asyncio.to_thread(agreement, rule.compare, answer, teacher)
        if score is None:
            raise _SampleSkipped("unscored")
        return score

    async def _run(
        self, sample: _Sample, plan: Plan, request: CompletionRequest, name: str, *, measures: bool = False
    ) -> str:
        """What an engine answers, with a receipt of its own, within the route's budget of the day. Raises _Ended."""
        builder = sample.source.beside(_single_bounded_call(plan, request), name)
        max_cost_usd = spent = self._ledger.most_usd(builder.plan, request)
        with self._convert_redis_errors():
            reservation = await self._book.take(
                builder.tenant, builder.route, max_cost_usd, sample.quality.rule.max_budget
            )
        if reservation is None:
            raise _SampleSkipped("over_budget")
        try:
            with self._tracing.shadow() if self._tracing is not None else nullcontext():
                reply = await self._complete(builder, request, sample.caller, sample.source if measures else None)
            spent = builder.receipt.cost_usd if builder.receipt is not None else max_cost_usd
        except GatewayError as error:
            if _had_no_engine_call(builder):
                spent = Decimal(0)
            raise _SampleSkipped("refused" if builder.refused or builder.admitted is None else "failed") from error
        finally:
            # Where this fails the day counts what it might have cost: less is spent then, and never more.
            with suppress(RedisError, OSError):
                await self._book.settle(reservation, spent)
        answer = text_of(reply["choices"][0]["message"].get("content")) or ""
        if len(answer) > MAX_ANSWER_CHARS:
            raise _SampleSkipped("dropped")
        return answer

    async def _complete(
        self,
        builder: ReceiptBuilder,
        request: CompletionRequest,
        caller: Caller,
        measured: ReceiptBuilder | None = None,
    ) -> Json:
        """Like a request, whatever becomes of it. `measured` is the request whose baseline this call measures."""
        with self._admission.settled(builder):
            plan = await self._admission.reserve(builder, request, caller)
            reply = await self._student_call.complete(plan, request, UNGUIDED, builder)
            builder.finish_reason = reply["choices"][0].get("finish_reason")
            # Without a limit of the caller's, an answer that ended at the sample's limit is not the whole answer.
            cut = builder.finish_reason == "length" and measured is not None and measured.plan.max_tokens is None
            builder.measures = None if cut else measured
            # Now, and not when it settles: what it cost is given back from what was taken.
            await self._ledger.close(builder)
            return reply

    @contextmanager
    def _convert_redis_errors(self) -> Iterator[None]:
        """Around what is kept there: without it nothing may be spent, and nothing is worth spending on."""
        if not self._client.up:
            raise _SampleSkipped("refused")
        try:
            yield
        except (RedisError, OSError) as error:
            self._client.failed(error)
            raise _SampleSkipped("refused") from error


def _student_alone(source: ReceiptBuilder) -> Plan:
    """The student that answered, or was to, without guidance."""
    plan = source.plan
    answered = [one for one in plan.finishers if source.student is not None and one.engine == source.student.model]
    finishers = (*answered, *plan.finishers)[:1]
    return structs.replace(
        plan, mode="student", finishers=finishers, guidance=None, length=None, unguided=None, quality=None
    )


def _single_bounded_call(plan: Plan, request: CompletionRequest) -> Plan:
    """One call, of an answer that ends: an engine that fails is not asked again for a comparison's sake."""
    max_tokens = plan.max_tokens if plan.max_tokens is not None else request.max_tokens or MAX_ANSWER_TOKENS
    return structs.replace(plan, max_tokens=max_tokens, retries=NO_RETRIES)


def _had_no_engine_call(builder: ReceiptBuilder) -> bool:
    """Whether no engine has heard of it."""
    return builder.teacher is None and builder.student is None and all(failed.call is None for failed in builder.failed)
