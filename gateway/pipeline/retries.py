"""Select the engine and the delay of the next attempt after a failed call.

A general retry library does not fit: retries move to other engines, and must keep the text that was already shown.
"""

from __future__ import annotations

import asyncio
import random
import re
from typing import TYPE_CHECKING

from gateway.errors import EngineOverloaded, EngineRejected, EngineUnsupported, InvalidRequest
from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.engines.retry_budget import RetryBudgets
    from gateway.errors import EngineError
    from gateway.pipeline.request_deadline import RequestDeadline
    from gateway.policy.plan import StudentPlan
    from gateway.policy.route_rules import RetryRule
    from gateway.telemetry.metrics import Metrics

# An engine that requests a longer pause is not retried while the caller waits.
LONGEST_PAUSE_S = 5.0
# The longest pause if another engine is left.
_LONGEST_PAUSE_BESIDE_OTHERS_S = 1.0
_LIMITS = ("max_completion_tokens", "max_tokens")
_PROMPT_NAMES = frozenset({"input_text", "input_tokens"})  # vLLM's names of a prompt that is too long
# Fields that the gateway adds to the caller's.
_OWN_FIELDS = frozenset({"add_generation_prompt", "chat_template_kwargs", "continue_final_message", "stream_options"})


async def retry_or_raise(
    retries: Retries,
    error: EngineError,
    builder: ReceiptBuilder,
    metrics: Metrics,
    deadline: RequestDeadline,
    *,
    placed: bool = False,
    continued: bool = False,
) -> None:
    """Wait until the next attempt is due. Raise the error, in the caller's terms, if there is none.

    A caller that has disconnected gets no further attempt, and none starts after the deadline.
    `placed`: the request ended with the guidance as a prefix. An engine may have rejected that, except where it names
    another reason. `continued`: it ended with the text of a failed call, so the caller is not blamed for any reason.
    """
    is_over = builder.caller_left or deadline.left_s <= 0
    pause_s = None if is_over else retries.next_pause_s(error, placed=placed)
    if pause_s is None or pause_s > deadline.left_s:
        # Some engines reject only a request that ends in a prefix. The prefix is the gateway's, not the caller's.
        named = isinstance(error, EngineRejected) and (error.is_filtered or error.exceeds_context)
        caused = not continued and (named or not placed)
        if isinstance(error, EngineRejected) and error.blames_request and caused:
            param = error.param or _refused_field(error, builder)
            raise InvalidRequest(error.message, param=param, code=error.caller_code) from error
        raise error
    builder.record_failure(error)
    metrics.retries.labels(retries.student.engine, error.label).inc()
    if pause_s:
        await asyncio.sleep(pause_s)


def _refused_field(error: EngineRejected, builder: ReceiptBuilder) -> str | None:
    """Return the caller's field that the engine rejected; None if the engine names none, or one of the gateway's own.

    An empty prompt is recognized by the message: TGI calls it `inputs`, and vLLM names no field.
    """
    request, field = builder.request, error.engine_param
    if isinstance(request, TextRequest) and request.has_empty_prompt and "empty" in error.message:
        return "prompt"
    if field is None or request is None:
        return None
    name = re.split(r"[.\[]", field, maxsplit=1)[0]
    if name in request.body:
        # The gateway's guidance may have added messages, so that the position is not the caller's.
        return name if builder.kept_tokens else field
    if name in _LIMITS and (limit := next((one for one in _LIMITS if one in request.body), None)) is not None:
        return limit  # the gateway renames the limit for engines that know only one of the names
    if name in _PROMPT_NAMES:
        return "prompt" if isinstance(request, TextRequest) else "messages"
    return None if name in _OWN_FIELDS else field


class RequestRetries:
    """The retries that one request may make: its own limit, and the budget of its tenant at each engine.

    Retries of the teacher and the student count toward the limit of the request. So do calls of the next student, and a
    prompt that is resent without its guidance. An engine's budget counts only retries at that engine.
    """

    def __init__(self, builder: ReceiptBuilder, budgets: RetryBudgets, metrics: Metrics) -> None:
        self._builder = builder
        self._budgets = budgets
        self._metrics = metrics

    def may_retry(self, engine: str, *, others: int = 0) -> bool:
        """Return whether the same engine may be called again. If so, take the retry from its budget.

        One call of each of the `others` is reserved, the engines that may be called after this one.
        """
        if self._remaining() <= others:
            return self._refuse(engine, "request")
        if not self._budgets.try_acquire(engine, self._builder.tenant):
            return self._refuse(engine, "engine")
        return True

    def may_move_on(self, engine: str) -> bool:
        """Return whether another engine may be called instead of this one."""
        return self._remaining() > 0 or self._refuse(engine, "request")

    def _remaining(self) -> int:
        return self._builder.plan.max_retries - len(self._builder.failed)

    def _refuse(self, engine: str, budget: str) -> bool:
        self._metrics.retries_refused.labels(engine, budget).inc()
        return False


class Retries:
    """The attempts of one answer. Pure, except for the budgets of `request_retries`; None: every retry is allowed.

    `students` are the engines in the order of their calls, at least one. `draw` returns a number from 0 to 1, so that
    pauses differ between requests.
    """

    def __init__(
        self,
        students: Sequence[StudentPlan],
        rule: RetryRule,
        request_retries: RequestRetries | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._students = list(students)
        self._rule = rule
        self._request_retries = request_retries
        self._draw = draw
        self._retries = 0
        self._has_continued_itself = False

    @property
    def student(self) -> StudentPlan:
        """Return the engine of the current attempt."""
        return self._students[0]

    def keep_only(self, may: Callable[[StudentPlan], bool]) -> bool:
        """Keep only the engines that `may` be called next, and the current one. Return whether there is another one."""
        self._students[1:] = [one for one in self._students[1:] if may(one)]
        return len(self._students) > 1

    def next_pause_s(self, error: EngineError, *, placed: bool) -> float | None:
        """Return the seconds to wait before the next attempt at `student`, which may change; None: no attempt is left.

        If the request ended with the guidance as a prefix (`placed`), the engine may have rejected that.
        """
        if error.retryable and self._retries < self._rule.num_retries:
            pause_s = self._pause_s(error)
            limits, others = self._request_retries, len(self._students) - 1
            bearable = pause_s <= (_LONGEST_PAUSE_BESIDE_OTHERS_S if others else LONGEST_PAUSE_S)
            if bearable and (limits is None or limits.may_retry(self.student.engine, others=others)):
                self._retries += 1
                return pause_s
        if isinstance(error, EngineRejected) and error.blames_request and not error.proven:
            same = not placed and not isinstance(error, EngineUnsupported) and not error.exceeds_context
            # The next engine would get the same request.
            if self._rule.is_filter_final if error.is_filtered else same:
                return None
        failed = self._students.pop(0).engine
        self._retries = 0
        if not self._students or not (self._request_retries is None or self._request_retries.may_move_on(failed)):
            return None
        return 0.0

    def continuation_pause_s(self, error: EngineError, can_continue: Callable[[StudentPlan], bool]) -> float | None:
        """Return the seconds to wait before `student`, which may change, continues a stream that broke with `error`.

        The other engines come first. The same engine gets one call, where no other one is left and the error is
        retryable. None: no engine can continue.
        """
        limits, current = self._request_retries, self.student
        if others := [one for one in self._students[1:] if can_continue(one)]:
            if limits is not None and not limits.may_move_on(current.engine):
                return None
            self._students, self._retries = others, 0
            return 0.0
        may = error.retryable and not self._has_continued_itself and self._retries < self._rule.num_retries
        if not may or not can_continue(current) or (pause_s := self._pause_s(error)) > LONGEST_PAUSE_S:
            return None
        if limits is not None and not limits.may_retry(current.engine):
            return None
        self._students, self._has_continued_itself = [current], True
        self._retries += 1
        return pause_s

    def _pause_s(self, error: EngineError) -> float:
        """Return a pause that doubles with each retry, half of it random, at least as long as the engine requested."""
        grown_s = self._rule.backoff_s * float(2**self._retries)
        jittered_s = grown_s * (0.5 + self._draw() / 2)
        requested_s = error.engine_retry_after_s if isinstance(error, EngineOverloaded) else None
        return jittered_s if requested_s is None else requested_s + jittered_s
