"""Which engine is asked next, and when, after a call that failed.

Retries across engines that keep what was already shown are this gateway's own subject: a retry library knows one
function and one outcome.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from gateway.errors import EngineOverloaded, EngineRejected, EngineUnsupported, InvalidRequest
from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.accounting.draft import ReceiptBuilder
    from gateway.engines.retry_budget import RetryBudgets
    from gateway.errors import EngineError
    from gateway.policy.resolve import Plan, RetryPlan, StudentPlan
    from gateway.telemetry.metrics import Metrics

# An engine that wants to be left alone for longer is not waited for while the caller does.
LONGEST_PAUSE_S = 5.0
# Nor for longer than this where another could be asked.
_LONGEST_PAUSE_BESIDE_OTHERS_S = 1.0


async def retry_or_raise(
    retries: Retries, error: EngineError, plan: Plan, builder: ReceiptBuilder, metrics: Metrics, *, placed: bool = False
) -> None:
    """Wait until the next attempt is due. Raises the error, in the caller's terms, when there is none.

    A caller that has disconnected gets none.

    Args:
        placed: whether the engine was to go on with an opening.
    """
    pause_s = retries.next_pause_s(error, placed=placed) if not builder.caller_left else None
    if pause_s is None:
        # Not one with an opening in front of its answer: some engines refuse that alone, and it is the gateway's.
        if isinstance(error, EngineRejected) and error.blames_request and not placed:
            raise InvalidRequest(error.message, param=error.param or _refused_field(error, builder)) from error
        raise error
    builder.set_aside(plan, error)
    metrics.retries.labels(retries.student.engine, error.label).inc()
    if pause_s:
        await asyncio.sleep(pause_s)


def _refused_field(error: EngineRejected, builder: ReceiptBuilder) -> str | None:
    """Return the field of an empty prompt that an engine refused: TGI calls it `inputs`, and vLLM names none."""
    request = builder.request
    refused = isinstance(request, TextRequest) and request.has_empty_prompt and "empty" in error.message
    return "prompt" if refused else None


class RequestRetries:
    """The retries that one request may make: its own bound, and the budget of its tenant at each engine.

    The teacher's retries, the student's, calls of the next student, and a prompt that is sent again without its opening
    all count toward the bound of the request. Only retries of the same engine take from that engine's budget.
    """

    def __init__(self, plan: Plan, builder: ReceiptBuilder, budgets: RetryBudgets, metrics: Metrics) -> None:
        self._plan = plan
        self._draft = builder
        self._budgets = budgets
        self._metrics = metrics

    def may_retry(self, engine: str, *, others: int = 0) -> bool:
        """Return whether the same engine may be called again; if so, the retry is taken from its budget.

        Args:
            others: engines that may still be asked after this one. A call of each is kept for them.
        """
        if self._remaining() <= others:
            return self._refuse(engine, "request")
        rule = self._plan.retries
        if not self._budgets.take(engine, self._draft.tenant, rule.share, rule.floor):
            return self._refuse(engine, "engine")
        return True

    def may_move_on(self, engine: str) -> bool:
        """Return whether another engine may be asked in the place of this one."""
        return self._remaining() > 0 or self._refuse(engine, "request")

    def _remaining(self) -> int:
        return self._plan.max_retries - len(self._draft.failed)

    def _refuse(self, engine: str, budget: str) -> bool:
        self._metrics.retries_refused.labels(engine, budget).inc()
        return False


class Retries:
    """The calls that one answer may take. Pure, but for the budgets of `retries`.

    Args:
        finishers: the engines, in the order in which they are to be asked; at least one.
        rule: how often the same one is asked again, and after what pause.
        retries: whether a retry may be made at all; None: always.
        draw: a number from 0 to 1, for pauses that differ from request to request.
    """

    def __init__(
        self,
        students: Sequence[StudentPlan],
        rule: RetryPlan,
        request_retries: RequestRetries | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._students = list(students)
        self._rule = rule
        self._request_retries = request_retries
        self._draw = draw
        self._retries = 0

    @property
    def student(self) -> StudentPlan:
        """Who is asked now."""
        return self._students[0]

    def keep_only(self, may: Callable[[StudentPlan], bool]) -> None:
        """From now on only engines that `may` are asked, beside the present one."""
        self._students[1:] = [one for one in self._students[1:] if may(one)]

    def next_pause_s(self, error: EngineError, *, placed: bool) -> float | None:
        """How many seconds to wait before `finisher`, another one perhaps, is asked; None: there is nobody left.

        Args:
            placed: whether the engine was to go on with an opening: then it may be that which it refused.
        """
        if error.again and self._retries < self._rule.num_retries:
            pause_s = self._pause_s(error)
            bearable = pause_s <= (LONGEST_PAUSE_S if len(self._students) == 1 else _LONGEST_PAUSE_BESIDE_OTHERS_S)
            if bearable and self._may_retry():
                self._retries += 1
                return pause_s
        refused = (
            isinstance(error, EngineRejected) and error.blames_request and not isinstance(error, EngineUnsupported)
        )
        proven = isinstance(error, EngineRejected) and error.proven
        if refused and not placed and not proven:
            return None  # the next one would be asked for the same
        failed = self._students.pop(0).engine
        self._retries = 0
        if not self._students or not (self._request_retries is None or self._request_retries.may_move_on(failed)):
            return None
        return 0.0

    def _may_retry(self) -> bool:
        return self._request_retries is None or self._request_retries.may_retry(
            self.student.engine, others=len(self._students) - 1
        )

    def _pause_s(self, error: EngineError) -> float:
        """Twice as long each time, half of it by chance; and no shorter than the engine asked for."""
        grown_s = self._rule.backoff_s * float(2**self._retries)
        jittered_s = grown_s * (0.5 + self._draw() / 2)
        asked_s = error.asked_s if isinstance(error, EngineOverloaded) else None
        return jittered_s if asked_s is None else asked_s + jittered_s
