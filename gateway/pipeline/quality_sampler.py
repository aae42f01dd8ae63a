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
from gateway.pipeline.shadow import whole
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

MOST_CHARS = 32_768
"""Of one answer: what is longer is not compared."""
MOST_TOKENS = 4_096
"""What an engine may write for a comparison where neither the caller nor the route sets a limit."""
_GUIDED = frozenset({"guided", "teacher_complete"})


class AnswerBuffer:
    """The words of one answer as they go out to its caller."""

    def __init__(self) -> None:
        self._said = StringIO()
        self._whole = True

    def hear(self, replies: Iterable[Json]) -> None:
        """A whole reply, or chunks of one."""
        for reply in replies:
            for choice in reply["choices"]:
                said = choice.get("delta") or choice.get("message") or {}
                self._said.write(text_of(said.get("content")) or choice.get("text") or "")
                if self._said.tell() > MOST_CHARS:
                    self._said, self._whole = StringIO(), False

    @property
    def text(self) -> str | None:
        """All of it; None where there is nothing, or too much."""
        return self._said.getvalue() or None if self._whole else None


def answer_buffer_for(plan: Plan) -> AnswerBuffer | None:
    """What hears an answer that may be compared; None where nothing of it is to be kept."""
    return AnswerBuffer() if plan.quality is not None else None


@dataclass(frozen=True, slots=True)
class _Sample:
    """One guided answer that is compared: who was served it, for what, and what it says."""

    served: ReceiptBuilder
    asked: CompletionRequest
    caller: Caller
    answer: str
    quality: QualityPlan


class _Ended(Exception):
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
        self._under_way: Counter[tuple[str, str]] = Counter()

    def start(self, served: ReceiptBuilder, asked: CompletionRequest, caller: Caller, heard: AnswerBuffer) -> None:
        """Begin to compare an answer that its caller has; only where it was guided."""
        quality, answer = served.plan.quality, heard.text
        if quality is None or served.mode not in _GUIDED:
            return
        route = served.tenant, served.route
        busy = self._under_way.total() >= self._max_in_flight or self._under_way[route] >= quality.rule.max_in_flight
        if answer is None or busy:
            self._ended("dropped")
        elif served.budget is not None:
            self._ended("refused")  # what is left of a budget past its soft line is for callers
        else:
            self._under_way[route] += 1
            sample = _Sample(served, whole(asked), caller, answer, quality)
            task = self._tasks.spawn(f"{served.id}-quality", self._counted(sample))
            task.add_done_callback(lambda _: self._leaves(route))

    def _leaves(self, route: tuple[str, str]) -> None:
        self._under_way[route] -= 1
        if not self._under_way[route]:
            del self._under_way[route]

    def _ended(self, result: str) -> None:
        self._metrics.quality_samples.labels(result).inc()

    async def _counted(self, sample: _Sample) -> None:
        result = "refused"  # there was no place
        try:
            # One place for all of it: a drain waits for the whole, and no caller's place is asked for a second time.
            async with self._admission.cancel_on_drain():
                with self._admission.slot(sample.caller):
                    result = "dropped"  # unless it ends before a shutdown cuts it, which is no engine's failure
                    await self._compare(sample)
                    result = "made"
        except _Ended as ended:
            result = ended.result
        except Overloaded:
            pass  # what was begun has its receipt
        except Exception:
            result = "failed"
            raise
        finally:
            self._ended(result)

    async def _compare(self, sample: _Sample) -> None:
        """Ask both engines, one after the other: nobody waits. Raises _Ended."""
        teacher = await self._run(sample, sample.quality.teacher, sample.asked, "shadow-teacher", measures=True)
        student = await self._run(sample, _student_alone(sample.served), sample.asked, "shadow-student")
        guided = await self._agreement(sample, sample.answer, teacher, "guided")
        alone = await self._agreement(sample, student, teacher, "student")
        served = sample.served
        length = length_of(served.kept_tokens)
        tally = QualityTally.of(guided, alone)
        comparison = Comparison(
            id=served.id,
            created=served.created,
            tenant=served.tenant,
            compare=sample.quality.rule.compare,
            length=length,
            route=served.route,
            guided=tally.guided,
            student=tally.student,
        )
        with self._asking_redis():
            await self._book.add(comparison)
        # Behind the row, so that both tell of the same comparisons.
        series = self._metrics.series
        labels = series.tenant(served.tenant), series.route(served.tenant, served.route)
        for pair, score in (("guided_teacher", guided), ("student_teacher", alone)):
            self._metrics.quality_agreement.labels(*labels, pair, length).observe(score)

    async def _agreement(self, sample: _Sample, answer: str, teacher: str, whose: str) -> float:
        rule, judge = sample.quality.rule, sample.quality.judge
        if judge is not None:
            asked = grading(sample.asked, answer, teacher)
            score = grade_in(await self._run(sample, judge, asked, f"shadow-judge-{whose}"))
        else:
            assert rule.compare != "judge", "the schema wants a judge then"
            # Thousands of words take milliseconds.
            score = await asyncio.to_thread(agreement, rule.compare, answer, teacher)
        if score is None:
            raise _Ended("unscored")
        return score

    async def _run(
        self, sample: _Sample, plan: Plan, asked: CompletionRequest, name: str, *, measures: bool = False
    ) -> str:
        """What an engine answers, with a receipt of its own, within the route's budget of the day. Raises _Ended."""
        draft = sample.served.beside(_bounded(plan, asked), name)
        max_in_flight = spent = self._ledger.most_usd(draft.plan, asked)
        with self._asking_redis():
            taken = await self._book.take(draft.tenant, draft.route, max_in_flight, sample.quality.rule.max_budget)
        if taken is None:
            raise _Ended("over_budget")
        try:
            with self._tracing.shadow() if self._tracing is not None else nullcontext():
                reply = await self._ask(draft, asked, sample.caller, sample.served if measures else None)
            spent = draft.receipt.cost_usd if draft.receipt is not None else max_in_flight
        except GatewayError as error:
            if _cost_nothing(draft):
                spent = Decimal(0)
            raise _Ended("refused" if draft.refused or draft.admitted is None else "failed") from error
        finally:
            # Where this fails the day counts what it might have cost: less is spent then, and never more.
            with suppress(RedisError, OSError):
                await self._book.settle(taken, spent)
        answer = text_of(reply["choices"][0]["message"].get("content")) or ""
        if len(answer) > MOST_CHARS:
            raise _Ended("dropped")
        return answer

    async def _ask(
        self, draft: ReceiptBuilder, asked: CompletionRequest, caller: Caller, measured: ReceiptBuilder | None = None
    ) -> Json:
        """Like a request, whatever becomes of it. `measured` is the request whose baseline this call measures."""
        with self._admission.settled(draft):
            plan = await self._admission.reserve(draft, asked, caller)
            reply = await self._student_call.complete(plan, asked, UNGUIDED, draft)
            draft.finish_reason = reply["choices"][0].get("finish_reason")
            # Without a limit of the caller's, an answer that ended at the sample's limit is not the whole answer.
            cut = draft.finish_reason == "length" and measured is not None and measured.plan.max_tokens is None
            draft.measures = None if cut else measured
            # Now, and not when it settles: what it cost is given back from what was taken.
            await self._ledger.close(draft)
            return reply

    @contextmanager
    def _asking_redis(self) -> Iterator[None]:
        """Around what is kept there: without it nothing may be spent, and nothing is worth spending on."""
        if not self._client.up:
            raise _Ended("refused")
        try:
            yield
        except (RedisError, OSError) as error:
            self._client.failed(error)
            raise _Ended("refused") from error


def _student_alone(served: ReceiptBuilder) -> Plan:
    """The student that answered, or was to, without guidance."""
    plan = served.plan
    answered = [one for one in plan.finishers if served.student is not None and one.engine == served.student.model]
    finishers = (*answered, *plan.finishers)[:1]
    return structs.replace(
        plan, mode="student", finishers=finishers, guidance=None, length=None, unguided=None, quality=None
    )


def _bounded(plan: Plan, asked: CompletionRequest) -> Plan:
    """One call, of an answer that ends: an engine that fails is not asked again for a comparison's sake."""
    max_in_flight = plan.max_tokens if plan.max_tokens is not None else asked.max_tokens or MOST_TOKENS
    return structs.replace(plan, max_tokens=max_in_flight, retries=NO_RETRIES)


def _cost_nothing(draft: ReceiptBuilder) -> bool:
    """Whether no engine has heard of it."""
    return draft.teacher is None and draft.student is None and all(failed.call is None for failed in draft.failed)
