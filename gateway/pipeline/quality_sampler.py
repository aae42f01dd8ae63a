"""The quality sampler: for a sample of guided answers, get each engine's answer without guidance, and compare.

The agreement of the guided answer with the teacher's measures what callers get. The agreement of the student's answer
measures what they would get without guidance. The difference is the benefit of guidance. The answers are compared and
dropped; nobody sees them. Each call has a receipt.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from io import StringIO
from typing import TYPE_CHECKING

import structlog
from msgspec import structs
from redis.exceptions import RedisError

from gateway.errors import GatewayError, Overloaded
from gateway.pipeline.guidance_request import UNGUIDED
from gateway.pipeline.shadow import without_streaming
from gateway.policy.plan import NO_RETRIES
from gateway.protocol.capabilities.anthropic import answering
from gateway.protocol.messages import text_of
from gateway.quality.comparison import Comparison, QualityTally, grading_request, length_of, parse_grade
from gateway.scoring.agreement import agreement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from gateway.accounting.ledger import Ledger
    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.pipeline.admission import Admission
    from gateway.pipeline.student import StudentCall
    from gateway.policy.book import Caller
    from gateway.policy.plan import Plan, QualityPlan
    from gateway.policy.route_rules import QualityRule
    from gateway.protocol.body import Json
    from gateway.protocol.requests import CompletionRequest
    from gateway.quality.book import QualityStore
    from gateway.quality.switches import SwitchFollower
    from gateway.redis.client import RedisClient
    from gateway.runtime.tasks import BackgroundTasks
    from gateway.telemetry.metrics import Metrics
    from gateway.telemetry.tracing import Tracing

log = structlog.get_logger()

MAX_ANSWER_CHARS = 32_768
"""Longest answer that is compared."""
MAX_ANSWER_TOKENS = 4_096
"""Output limit of a comparison's call if neither the caller nor the route sets one."""
_GUIDED = frozenset({"guided", "teacher_complete"})


class AnswerBuffer:
    """The text of one answer, collected while it is sent to the caller."""

    def __init__(self) -> None:
        self._text = StringIO()
        self._complete_text = True

    def add(self, replies: Iterable[Json]) -> None:
        """Add complete replies, or chunks of one."""
        for reply in replies:
            for choice in reply["choices"]:
                message = choice.get("delta") or choice.get("message") or {}
                self._text.write(text_of(message.get("content")) or choice.get("text") or "")
                if self._text.tell() > MAX_ANSWER_CHARS:
                    self._text, self._complete_text = StringIO(), False

    @property
    def text(self) -> str | None:
        """Return the whole text; None if it is empty or too long."""
        return self._text.getvalue() or None if self._complete_text else None


@dataclass(frozen=True, slots=True)
class _Sample:
    """A guided answer to compare."""

    source: ReceiptBuilder  # the receipt of the guided request
    request: CompletionRequest
    caller: Caller
    answer: str  # the text that its caller got
    quality: QualityPlan


class _SampleSkipped(Exception):
    """A comparison ended without a result. `result` is its label in the metric."""

    def __init__(self, result: str) -> None:
        super().__init__(result)
        self.result = result


@dataclass(frozen=True, slots=True)
class QualitySampler:
    """Compare samples of guided answers, at most `max_in_flight` at a time in this process. Others are dropped."""

    student_call: StudentCall
    admission: Admission
    ledger: Ledger
    book: QualityStore
    client: RedisClient
    metrics: Metrics
    tasks: BackgroundTasks
    max_in_flight: int
    switches: SwitchFollower
    post_alert: Callable[[Mapping[str, object]], None]  # to the webhook, in the background
    tracing: Tracing | None = None
    _in_flight: Counter[tuple[str, str]] = field(default_factory=Counter, init=False)

    def start(
        self, source: ReceiptBuilder, request: CompletionRequest, caller: Caller, answer_buffer: AnswerBuffer
    ) -> None:
        """Start to compare an answer that its caller has. Only guided answers are compared."""
        quality, answer = source.plan.quality, answer_buffer.text
        if quality is None or source.mode not in _GUIDED:
            return
        route = source.tenant, source.route
        busy = self._in_flight.total() >= self.max_in_flight or self._in_flight[route] >= quality.rule.max_in_flight
        if answer is None or busy:
            self._count("dropped")
        elif source.budget is not None:
            self._count("refused")  # the rest of a budget past its soft threshold is for callers
        else:
            self._in_flight[route] += 1
            sample = _Sample(source, without_streaming(request), caller, answer, quality)
            task = self.tasks.spawn(f"{source.id}-quality", self._run_counted(sample))
            task.add_done_callback(lambda _: self._release(route))

    def _release(self, route: tuple[str, str]) -> None:
        self._in_flight[route] -= 1
        if not self._in_flight[route]:
            del self._in_flight[route]

    def _count(self, result: str) -> None:
        self.metrics.quality_samples.labels(result).inc()

    async def _run_counted(self, sample: _Sample) -> None:
        result = "refused"  # no slot was free
        try:
            # One slot for the whole comparison: a drain waits for all of it, and no second slot is acquired.
            with self.admission.cancel_on_drain(), self.admission.slot(sample.caller):
                result = "dropped"  # the result if a shutdown cancels it, which is not a failure of an engine
                await self._compare(sample)
                result = "made"
        except _SampleSkipped as skipped:
            result = skipped.result
        except Overloaded:
            pass  # each call that was made has its receipt
        except Exception:
            result = "failed"
            raise
        finally:
            self._count(result)

    async def _compare(self, sample: _Sample) -> None:
        """Call both engines, one after the other, and store the comparison. Raises _SampleSkipped."""
        teacher_builder = _child(sample, sample.quality.teacher, sample.request, "shadow-teacher")
        teacher = await self._call(sample, teacher_builder, sample.request, sample.source)
        student_builder = _child(sample, _student_alone(sample.source), sample.request, "shadow-student")
        measures = None if teacher_builder.measures is None else teacher_builder
        student = await self._call(sample, student_builder, sample.request, measures)
        guided = await self._agreement(sample, sample.answer, teacher, "guided")
        alone = await self._agreement(sample, student, teacher, "student")
        source, tally = sample.source, QualityTally.of(guided, alone)
        length, split = length_of(source.kept_tokens), source.plan.split
        comparison = Comparison(
            id=source.id,
            created=source.created,
            tenant=source.tenant,
            compare=sample.quality.rule.compare,
            length=length,
            route=source.route,
            guided=tally.guided,
            student=tally.student,
            variant=split.variant if split is not None else "",
            unit=split.unit if split is not None else "",
        )
        with self._convert_redis_errors():
            await self.book.add(comparison)
        # After the row, so that the metric and the row count the same comparisons.
        series = self.metrics.series
        labels = series.tenant(source.tenant), series.route(source.tenant, source.route)
        for pair, score in (("guided_teacher", guided), ("student_teacher", alone)):
            self.metrics.quality_agreement.labels(*labels, pair, length).observe(score)
        if sample.quality.window is not None:
            await self._check_bound(source, sample.quality.rule, sample.quality.window, guided)

    async def _check_bound(self, source: ReceiptBuilder, rule: QualityRule, window: str, agreement: float) -> None:
        """Count a comparison. If its route fell below its bound, report that guidance is switched off."""
        tenant, route = source.tenant, source.route
        if not self.client.up:
            return  # the comparison counts in the figures only
        try:
            fall = await self.switches.store.count(
                tenant, route, window, rule, arrived_s=source.created, agreement=agreement
            )
        except (RedisError, OSError) as error:
            self.client.failed(error)
            return
        if fall is None:
            return
        facts = {
            "tenant": tenant,
            "route": route,
            "agreement": fall.agreement,
            "min_agreement": float(rule.min_agreement or 0),
            "samples": fall.samples,
            "answer_by": rule.fallback,
        }
        log.warning("guidance_fell_back", **facts)
        self.post_alert({"event": "guidance_fell_back", **facts})
        with suppress(RedisError, OSError):
            await self.switches.catch_up()

    async def _agreement(self, sample: _Sample, answer: str, teacher: str, answer_name: str) -> float:
        rule, judge = sample.quality.rule, sample.quality.judge
        if judge is not None:
            request = grading_request(sample.request, answer, teacher)
            with answering(None):  # the caller's other fields do not fit the judge's request
                score = parse_grade(await self._run(sample, judge, request, f"shadow-judge-{answer_name}"))
        else:
            assert rule.compare != "judge", "the schema requires a judge"
            # Thousands of words take milliseconds.
            score = await asyncio.to_thread(agreement, rule.compare, answer, teacher)
        if score is None:
            raise _SampleSkipped("unscored")
        return score

    async def _run(self, sample: _Sample, plan: Plan, request: CompletionRequest, name: str) -> str:
        """Return an engine's answer, with a receipt of its own, within the route's daily budget."""
        return await self._call(sample, _child(sample, plan, request, name), request)

    async def _call(
        self,
        sample: _Sample,
        builder: ReceiptBuilder,
        request: CompletionRequest,
        measures: ReceiptBuilder | None = None,
    ) -> str:
        """Return the answer of a builder's call, as `_run` does. `measures`: see `ReceiptBuilder.measures`."""
        max_cost_usd = spent = self.ledger.max_usd(builder, request)
        max_budget = sample.quality.rule.max_budget
        with self._convert_redis_errors():
            reservation = await self.book.take(builder.tenant, builder.route, max_cost_usd, max_budget)
        if reservation is None:
            raise _SampleSkipped("over_budget")
        try:
            with self.tracing.shadow() if self.tracing is not None else nullcontext(), self.admission.settled(builder):
                await self.admission.reserve(builder, request, sample.caller)
                reply = await self.student_call.complete(request, UNGUIDED, builder)
                builder.finish_reason = reply["choices"][0].get("finish_reason")
                # If the caller set no limit, an answer that ended at the sample's limit is incomplete.
                cut = builder.finish_reason == "length" and sample.source.plan.max_tokens is None
                builder.measures = measures if builder.student is not None or not cut else None
                # Close the receipt before it settles: the reservation returns the unused part of its cost.
                await self.ledger.close(builder)
            spent = builder.receipt.cost_usd if builder.receipt is not None else max_cost_usd
        except GatewayError as error:
            calls = (builder.teacher, builder.student, *(failed.call for failed in builder.failed))
            if calls.count(None) == len(calls):
                spent = Decimal(0)  # no engine received a call
            raise _SampleSkipped("refused" if builder.refused or builder.admitted is None else "failed") from error
        finally:
            # If this fails, the day counts the maximum cost, so that less is spent, never more.
            with suppress(RedisError, OSError):
                await self.book.settle(reservation, spent)
        answer = text_of(reply["choices"][0]["message"].get("content")) or ""
        if len(answer) > MAX_ANSWER_CHARS:
            raise _SampleSkipped("dropped")
        return answer

    @contextmanager
    def _convert_redis_errors(self) -> Iterator[None]:
        """Raise _SampleSkipped in the block for errors of Redis: without the store, nothing may be spent."""
        if not self.client.up:
            raise _SampleSkipped("refused")
        try:
            yield
        except (RedisError, OSError) as error:
            self.client.failed(error)
            raise _SampleSkipped("refused") from error


def _student_alone(source: ReceiptBuilder) -> Plan:
    plan = source.plan
    answered = [one for one in plan.students if source.student is not None and one.engine == source.student.model]
    unguided = structs.replace(plan, mode="student", guidance=None, unguided=None, quality=None, split=None)
    return structs.replace(unguided, students=(*answered, *plan.students)[:1])


def _child(sample: _Sample, plan: Plan, request: CompletionRequest, name: str) -> ReceiptBuilder:
    return sample.source.child_receipt(_single_bounded_call(plan, request), name)


def _single_bounded_call(plan: Plan, request: CompletionRequest) -> Plan:
    max_tokens = plan.max_tokens if plan.max_tokens is not None else request.max_tokens or MAX_ANSWER_TOKENS
    return structs.replace(plan, max_tokens=max_tokens, retries=NO_RETRIES)
