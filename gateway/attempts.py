"""Which engine is asked next, and when, after a call that failed.

Retries across engines that keep what was already shown are this gateway's own subject: a retry library knows one
function and one outcome.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from gateway.errors import EngineCannot, EngineOverloaded, EngineRejected, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.errors import EngineError
    from gateway.ledger.draft import Draft
    from gateway.metrics import Metrics
    from gateway.policy.resolve import FinisherPlan, Plan, RetryPlan

# An engine that wants to be left alone for longer is not waited for while the caller does.
LONGEST_PAUSE_S = 5.0
# Nor for longer than this where another could be asked.
_LONGEST_PAUSE_BESIDE_OTHERS_S = 1.0


async def go_on(
    attempts: Attempts, error: EngineError, plan: Plan, draft: Draft, metrics: Metrics, *, placed: bool = False
) -> None:
    """Wait until the next attempt is due. Raises the error, in the caller's terms, when there is none.

    A caller that has disconnected gets none.

    Args:
        placed: whether the engine was to go on with an opening.
    """
    pause_s = attempts.after(error, placed=placed) if not draft.caller_left else None
    if pause_s is None:
        # Not one with an opening in front of its answer: some engines refuse that alone, and it is the gateway's.
        if isinstance(error, EngineRejected) and error.blames_request and not placed:
            raise InvalidRequest(error.message, param=error.param) from error
        raise error
    draft.set_aside(plan, error)
    metrics.retries.labels(attempts.finisher.engine, error.label).inc()
    if pause_s:
        await asyncio.sleep(pause_s)


class Attempts:
    """The calls that one answer may take. Pure.

    Args:
        finishers: the engines, in the order in which they are to be asked; at least one.
        rule: how often the same one is asked again, and after what pause.
        draw: a number from 0 to 1, for pauses that differ from request to request.
    """

    def __init__(
        self, finishers: Sequence[FinisherPlan], rule: RetryPlan, draw: Callable[[], float] = random.random
    ) -> None:
        self._left = list(finishers)
        self._rule = rule
        self._draw = draw
        self._retries = 0

    @property
    def finisher(self) -> FinisherPlan:
        """Who is asked now."""
        return self._left[0]

    def only(self, may: Callable[[FinisherPlan], bool]) -> None:
        """From now on only engines that `may` are asked, beside the present one."""
        self._left[1:] = [one for one in self._left[1:] if may(one)]

    def after(self, error: EngineError, *, placed: bool) -> float | None:
        """How many seconds to wait before `finisher`, another one perhaps, is asked; None: there is nobody left.

        Args:
            placed: whether the engine was to go on with an opening: then it may be that which it refused.
        """
        if error.again and self._retries < self._rule.num_retries:
            pause_s = self._pause_s(error)
            if pause_s <= (LONGEST_PAUSE_S if len(self._left) == 1 else _LONGEST_PAUSE_BESIDE_OTHERS_S):
                self._retries += 1
                return pause_s
        refused = isinstance(error, EngineRejected) and error.blames_request and not isinstance(error, EngineCannot)
        if refused and not placed:
            return None  # the next one would be asked for the same
        self._left.pop(0)
        self._retries = 0
        return 0.0 if self._left else None

    def _pause_s(self, error: EngineError) -> float:
        """Twice as long each time, half of it by chance; and no shorter than the engine asked for."""
        grown_s = self._rule.backoff_s * float(2**self._retries)
        jittered_s = grown_s * (0.5 + self._draw() / 2)
        asked_s = error.asked_s if isinstance(error, EngineOverloaded) else None
        return jittered_s if asked_s is None else asked_s + jittered_s
